"""`lepton baseline update`, and compressing against what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

from lepton_cli.report import store
from tests.cli.small import data, model, recipe
from tests.conftest import Invoke
from tests.report import builders


def test_a_report_becomes_the_baseline(invoke: Invoke, tmp_path: Path) -> None:
    store.write_json(builders.report(gates=(builders.verdict(outcome="fail"),)), tmp_path / "report.json")
    found = invoke("baseline", "update", "report.json", "-o", "kept/base.json")
    assert found.exit_code == 0
    assert "wrote kept/base.json" in found.stdout
    assert "the gate on size.file failed" in found.stderr
    kept = store.read(tmp_path / "kept" / "base.json")
    assert kept.gates == ()
    assert kept.variants == builders.report().variants


def test_a_broken_report_does_not(invoke: Invoke, tmp_path: Path) -> None:
    store.write_json(builders.report(complete=False, status="failed"), tmp_path / "report.json")
    found = invoke("baseline", "update", "report.json", "-o", "base.json")
    assert found.exit_code == 2
    assert "error[baseline.incomplete]" in found.stderr
    assert not (tmp_path / "base.json").exists()
    assert invoke("baseline", "update", "missing.json").exit_code == 2


def test_compress_is_judged_against_the_baseline(invoke: Invoke, tmp_path: Path) -> None:
    data(tmp_path / "data.npz")
    path = model(tmp_path / "a.onnx")
    recipe(tmp_path / "recipe.yaml", gates="gates:\n  - {metric: size.file, max_ratio: 1, against: baseline}\n")
    refused = invoke("compress", path, "-r", "recipe.yaml", "-o", "out")
    assert refused.exit_code == 2
    assert "error[gate.no-baseline]" in refused.stderr
    assert "recipe.yaml:12" in refused.stderr
    assert not (tmp_path / "out").exists()

    plain = recipe(tmp_path / "plain.yaml")
    assert invoke("compress", path, "-r", plain, "-o", "first").exit_code == 0
    assert invoke("baseline", "update", "first/report.json", "-o", "base.json").exit_code == 0
    judged = invoke("compress", path, "-r", "recipe.yaml", "-o", "out", "--baseline", "base.json")
    assert judged.exit_code == 0, judged.output

    other = model(tmp_path / "retrained.onnx", scale=2)
    refused = invoke("compress", other, "-r", "recipe.yaml", "-o", "other", "--baseline", "base.json")
    assert refused.exit_code == 2
    assert "error[baseline.other-model]" in refused.stderr
    assert json.loads((tmp_path / "other" / "report.json").read_text())["status"] == "failed"
