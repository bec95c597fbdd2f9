"""Comparing: models with other input names, judged like any other run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_cli.commands import adhoc
from lepton_cli.commands.compare import compare
from lepton_cli.commands.job import Job, prepare
from lepton_cli.commands.run import Arguments, Run
from lepton_cli.errors import OutputError, ReportError
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import load_budget
from lepton_cli.report import baseline, store
from tests.cli.small import data, model
from tests.report import builders


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    first = model(tmp_path / "a.onnx")
    loaded = io.load(first)
    options = {"time": "20 ms", "threads": 1}
    return prepare(loaded, adhoc.recipe(loaded.model, options, data=data(tmp_path / "data.npz"), memory=False))


def test_renamed_inputs_get_the_same_samples(job: Job, tmp_path: Path) -> None:
    found = compare(
        job,
        model(tmp_path / "b.onnx", name="features"),
        Silent(),
        run=Run(Arguments("compare", (Path("a"), Path("b")))),
    )
    report = found.report
    assert found.error is None
    assert report.accuracy is not None
    assert report.accuracy.fidelity[0].max_abs_error == 0
    assert report.variants[0].size.macs == report.variants[1].size.macs == 8 * 8 + 8 * 3
    assert report.reproduce == "lepton compare a b"
    assert report.latency is not None
    assert report.latency.changes[0].variant == "compressed"


def test_what_is_missing_is_found_before_measuring(job: Job, tmp_path: Path) -> None:
    second = model(tmp_path / "b.onnx")
    path = tmp_path / "budget.yaml"
    path.write_text("version: 1\ngates:\n  - {metric: nodes, max_ratio: 1, against: baseline}\n")
    with pytest.raises(ReportError) as found:
        compare(job, second, Silent(), budget=load_budget(path))
    assert found.value.code == "gate.no-baseline"
    assert str(found.value.where).startswith(f"{path}:3")
    (tmp_path / "base.json").write_text("{}")
    with pytest.raises(ReportError):
        compare(job, second, Silent(), budget=load_budget(path), baseline=tmp_path / "base.json")


def test_a_baseline_of_another_model_leaves_a_report_that_says_so(job: Job, tmp_path: Path) -> None:
    baseline.update(builders.report(), tmp_path / "base.json")
    path = tmp_path / "budget.yaml"
    path.write_text("version: 1\ngates:\n  - {metric: nodes, max_ratio: 1, against: baseline}\n")
    found = compare(
        job,
        model(tmp_path / "b.onnx"),
        Silent(),
        output=tmp_path / "out",
        budget=load_budget(path),
        baseline=tmp_path / "base.json",
    )
    assert found.error is not None
    assert found.error.code == "baseline.other-model"
    stored = store.read(tmp_path / "out" / "report.json")
    assert (stored.status, stored.complete) == ("failed", False)


def test_reports_do_not_go_where_a_model_is(job: Job, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        compare(job, model(tmp_path / "b.onnx"), Silent(), output=tmp_path)
