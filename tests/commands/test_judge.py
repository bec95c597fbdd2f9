"""Judging stored reports and bare models: what is judged, and that nothing unjudgeable ever passes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_cli.commands.judge import is_model, judge
from lepton_cli.errors import ExitCode, ReportError
from lepton_cli.recipe.load import LoadedBudget, load_budget
from lepton_cli.report import baseline, store
from tests.report import builders

MODEL = Path(__file__).parents[2] / "sample_models" / "digits_mlp.onnx"


def budget(folder: Path, *gates: str) -> LoadedBudget:
    path = folder / "budget.yaml"
    path.write_text("version: 1\ngates:\n" + "".join(f"  - {{{gate}}}\n" for gate in gates))
    return load_budget(path)


def stored(folder: Path, **changes: object) -> Path:
    path = folder / "report.json"
    store.write_json(builders.report(**changes), path)
    return path


def test_a_report_is_judged_anew(tmp_path: Path) -> None:
    path = stored(tmp_path, gates=(builders.verdict("nodes"),))
    found = judge(path, budget(tmp_path, "metric: size.file, max: 1 kB", "metric: accuracy.top1, min: 90 %"))
    assert [(v.metric, v.verdict) for v in found.gates] == [("size.file", "fail"), ("accuracy.top1", "pass")]
    assert found.status == "gate_failed"
    assert "1 of 2 gates FAILED" in found.headline
    assert found.gates[0].where == f"{tmp_path / 'budget.yaml'}:3"


@pytest.mark.parametrize("change", [{"complete": False}, {"status": "failed"}, {"status": "interrupted"}])
def test_a_run_that_broke_off_is_not_judged(tmp_path: Path, change: dict[str, object]) -> None:
    path = stored(tmp_path, **change)
    with pytest.raises(ReportError) as found:
        judge(path, budget(tmp_path, "metric: size.file, max: 1 GB"))
    assert found.value.code == "report.incomplete"
    assert found.value.exit_code is ExitCode.CANNOT_START


def test_a_metric_that_was_never_measured_is_an_error(tmp_path: Path) -> None:
    path = stored(tmp_path, accuracy=None)
    with pytest.raises(ReportError, match="not measured") as found:
        judge(path, budget(tmp_path, "metric: accuracy.top1, min: 1 %"))
    assert found.value.code == "gate.metric-missing"


def test_a_baseline_takes_part(tmp_path: Path) -> None:
    path = stored(tmp_path)
    base = tmp_path / "base.json"
    baseline.update(builders.report(), base)
    gates = budget(tmp_path, "metric: size.file, max_ratio: 0.5, against: baseline")
    assert judge(path, gates, baseline=base).gates[0].verdict == "fail"
    with pytest.raises(ReportError, match="no") as missing:
        judge(path, gates)
    assert missing.value.code == "gate.no-baseline"


def test_the_baseline_of_another_model_is_refused(tmp_path: Path) -> None:
    other = builders.report()
    first = other.variants[0].model_copy(
        update={"file": other.variants[0].file.model_copy(update={"sha256": "f" * 64})}
    )
    base = tmp_path / "base.json"
    baseline.update(other.model_copy(update={"variants": (first, other.variants[1])}), base)
    with pytest.raises(ReportError) as found:
        judge(stored(tmp_path), budget(tmp_path, "metric: size.file, max: 1 GB"), baseline=base)
    assert found.value.code == "baseline.other-model"


def test_a_bare_model_is_judged_on_size_and_structure(tmp_path: Path) -> None:
    gates = budget(tmp_path, "metric: size.file, max: 1 kB", "metric: macs, max: 10 G", "metric: nodes, max: 1 k")
    found = judge(MODEL, gates)
    assert [verdict.verdict for verdict in found.gates] == ["fail", "pass", "pass"]


def test_a_bare_model_has_no_accuracy(tmp_path: Path) -> None:
    gates = budget(
        tmp_path, "metric: size.file, max: 1 GB", "metric: agreement, min: 1 %", "metric: throughput, min: 1"
    )
    with pytest.raises(ReportError) as found:
        judge(MODEL, gates)
    assert found.value.code == "gate.needs-report"
    assert "`agreement`, `throughput`" in found.value.message
    assert str(found.value.where).endswith("budget.yaml:4:5")


def test_a_ratio_needs_something_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(ReportError) as found:
        judge(MODEL, budget(tmp_path, "metric: size.file, max_ratio: 2"))
    assert found.value.code == "gate.no-reference"


def test_work_that_depends_on_unknown_sizes_is_not_judged(tmp_path: Path) -> None:
    import onnx

    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 1, H, W] x) => (float[N, 1, H, W] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "open.onnx")
    with pytest.raises(ReportError) as found:
        judge(tmp_path / "open.onnx", budget(tmp_path, "metric: macs, max: 1 G"))
    assert found.value.code == "gate.needs-report"


def test_what_is_a_model_and_what_a_report(tmp_path: Path) -> None:
    (tmp_path / "stored").write_text(' {"format_version": "1.0"}')
    (tmp_path / "weights.bin").write_bytes(b"\x08\x08\x12")
    assert is_model(Path("missing.onnx"))
    assert is_model(tmp_path / "weights.bin")
    assert not is_model(tmp_path / "stored")
    assert not is_model(Path("missing.json"))


def test_judging_a_report_imports_nothing_that_runs_models(tmp_path: Path) -> None:
    path = stored(tmp_path)
    budget(tmp_path, "metric: size.file, max: 1 GB")
    arguments = ["gate", str(path), "--budget", str(tmp_path / "budget.yaml"), "--json"]
    code = (
        "import atexit, json, sys\n"
        "from lepton_cli.cli.main import make_app\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'jinja2', 'torch'}\n"
        "atexit.register(lambda: sys.stderr.write(json.dumps(sorted(heavy & set(sys.modules)))))\n"
        f"make_app({arguments[0]!r})({arguments!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr) == []
    assert json.loads(done.stdout)["status"] == "ok"
