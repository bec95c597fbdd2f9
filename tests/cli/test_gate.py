"""`lepton gate`: verdicts, exit codes and outputs; nothing that cannot be judged ever ends in 0."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepton_cli.report import baseline, store
from tests.conftest import Invoke
from tests.report import builders

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    store.write_json(builders.report(), path)
    return path


def budget(folder: Path, *gates: str, name: str = "budget.yaml") -> str:
    (folder / name).write_text("version: 1\ngates:\n" + "".join(f"  - {{{gate}}}\n" for gate in gates))
    return name


def test_each_gate_is_listed_with_limit_value_and_place(invoke: Invoke, report: Path, tmp_path: Path) -> None:
    gates = budget(
        tmp_path,
        "metric: size.file, max: 150 kB",
        "metric: accuracy.top1, max_drop: 1 pp",
        "metric: latency.median, provider: cpu, batch: 1, max_ratio: 0.41",
        "metric: latency.median, provider: cuda, max: 1 s",
        "metric: nodes, max: 50, level: warn",
    )
    found = invoke("gate", report, "--budget", gates)
    assert found.exit_code == 1
    assert "1 of 5 gates FAILED (size.file over by 37,168 bytes)" in found.stdout.splitlines()[0]
    assert "gates: 1 passed, 2 failed, 1 inconclusive, 1 skipped" in found.stdout
    for said in ("found 187,168 bytes", "budget.yaml:3", "no CUDA device", "largest:", "  warn ", "  pass "):
        assert said in found.stdout
    assert max(map(len, found.stdout.splitlines()[1:])) <= 100


def test_a_warning_fails_nothing_and_strict_fails_what_is_undecided(
    invoke: Invoke, report: Path, tmp_path: Path
) -> None:
    warned = budget(tmp_path, "metric: nodes, max: 50, level: warn", name="warn.yaml")
    assert invoke("gate", report, "-b", warned).exit_code == 0
    undecided = budget(tmp_path, "metric: latency.median, provider: cpu, batch: 1, max_ratio: 0.41")
    assert invoke("gate", report, "-b", undecided).exit_code == 0
    strict = invoke("gate", report, "-b", undecided, "--strict")
    assert strict.exit_code == 1
    assert "inconclusive, which --strict counts as failed" in " ".join(strict.stdout.split())


def test_machine_readable_outputs(invoke: Invoke, report: Path, tmp_path: Path) -> None:
    gates = budget(tmp_path, "metric: size.file, max: 150 kB")
    found = invoke("gate", report, "-b", gates, "--json", "--junit", "junit.xml", "--github")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["gates"][0]["verdict"] == "fail"
    assert ET.parse(tmp_path / "junit.xml").getroot()[0].get("failures") == "1"
    assert found.stderr.startswith("::error file=budget.yaml,line=3,title=size.file::")


def _truncated(text: str) -> str:
    return text[: len(text) // 2]


def _edited(change: Edit) -> Callable[[str], str]:
    def edit(text: str) -> str:
        document = json.loads(text)
        change(document)
        return json.dumps(document)

    return edit


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (_truncated, "report.truncated"),
        (_edited(lambda report: report.update(format_version="2.0")), "report.version"),
        (_edited(lambda report: report.update(format_version="0.9")), "report.version"),
        (_edited(lambda report: report.update(complete=False)), "report.incomplete"),
        (_edited(lambda report: report.update(status="interrupted")), "report.incomplete"),
        (_edited(lambda report: report["variants"][1]["size"].update(file="small")), "report.invalid"),
        (_edited(lambda report: report["variants"][1]["size"].update(file=float("nan"))), "report.invalid"),
        (_edited(lambda report: report["accuracy"]["values"].pop("compressed")), "gate.metric-missing"),
        (_edited(lambda report: report.pop("environment")), "report.invalid"),
        (_edited(lambda report: report.update(variants=[])), "gate.metric-missing"),
        (lambda text: "[]", "report.not-a-report"),
        (lambda text: "", "report.not-a-report"),
        (lambda text: text.replace("{", "[", 1), "report."),
    ],
)
def test_no_damaged_report_passes(
    invoke: Invoke, report: Path, tmp_path: Path, edit: Callable[[str], str], code: str
) -> None:
    report.write_text(edit(report.read_text()))
    gates = budget(tmp_path, "metric: size.file, max: 1 GB", "metric: accuracy.top1, min: 1 %")
    found = invoke("gate", report, "-b", gates)
    assert found.exit_code == 2, found.output
    assert f"error[{code}" in found.stderr
    as_json = invoke("gate", report, "-b", gates, "--json")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout)["error"]["code"].startswith(code)


def test_no_wrong_budget_passes(invoke: Invoke, report: Path, tmp_path: Path) -> None:
    twice = budget(tmp_path, "metric: size.file, max: 1 MB", "metric: size.file, max: 2 MB", name="twice.yaml")
    wrong = {
        twice: "recipe.duplicate-gate",
        budget(tmp_path, "metric: size.file, max: 1000", name="unit.yaml"): "recipe.",
        budget(tmp_path, "metric: size.fil, max: 1 MB", name="name.yaml"): "recipe.",
        budget(tmp_path, "metric: accuracy.f1, min: 1 %", name="unmeasured.yaml"): "gate.metric-missing",
        budget(tmp_path, "metric: latency.median, batch: 64, max: 1 s", name="batch.yaml"): "gate.metric-missing",
        budget(tmp_path, "metric: nodes, max_ratio: 1, against: baseline", name="base.yaml"): "gate.no-baseline",
        budget(tmp_path, name="none.yaml"): "recipe.",
        "missing.yaml": "recipe.not-found",
    }
    for name, code in wrong.items():
        found = invoke("gate", report, "-b", name)
        assert found.exit_code == 2, name
        assert f"error[{code}" in found.stderr, found.stderr


def test_baselines(invoke: Invoke, report: Path, tmp_path: Path) -> None:
    gates = budget(tmp_path, "metric: size.file, max_ratio: 1, against: baseline")
    missing = invoke("gate", report, "-b", gates, "--baseline", "base.json")
    assert missing.exit_code == 2
    assert "lepton baseline update" in missing.stderr
    baseline.update(builders.report(), tmp_path / "base.json")
    assert invoke("gate", report, "-b", gates, "--baseline", "base.json").exit_code == 0
    other = json.loads((tmp_path / "base.json").read_text())
    other["variants"][0]["file"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    refused = invoke("gate", report, "-b", gates, "--baseline", "other.json")
    assert refused.exit_code == 2
    assert "error[baseline.other-model]" in refused.stderr


def test_a_bare_model(invoke: Invoke, samples: Path, tmp_path: Path) -> None:
    gates = budget(tmp_path, "metric: size.file, max: 1 kB", "metric: parameters, max: 10 M")
    found = invoke("gate", samples / "digits_mlp.onnx", "-b", gates)
    assert found.exit_code == 1
    assert "gates: 1 passed, 1 failed" in found.stdout
    asked = budget(tmp_path, "metric: latency.median, max: 1 s", name="time.yaml")
    assert "error[gate.needs-report]" in invoke("gate", samples / "digits_mlp.onnx", "-b", asked).stderr


def test_broken_models(invoke: Invoke, tmp_path: Path) -> None:
    gates = budget(tmp_path, "metric: size.file, max: 1 GB")
    (tmp_path / "broken.onnx").write_bytes(b"\x00" * 40)
    for name in ("broken.onnx", "missing.onnx", "missing.json"):
        assert invoke("gate", name, "-b", gates).exit_code == 2
