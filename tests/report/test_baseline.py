"""Baselines: small, of a finished run, and only for the model they were made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_cli.errors import ReportError
from lepton_cli.report import baseline, facts, store
from lepton_cli.report.model import FileFacts
from tests.report import builders


def test_update_stores_the_numbers_without_the_bulk(tmp_path: Path) -> None:
    report = builders.report()
    stored = baseline.update(report, tmp_path / "baseline.json")
    assert store.read(tmp_path / "baseline.json") == stored
    assert facts.names(stored) == facts.names(report)
    assert (tmp_path / "baseline.json").stat().st_size < len(store.to_json(report)) / 2
    assert baseline.load(tmp_path / "baseline.json", report) == stored


def test_another_model_is_refused(tmp_path: Path) -> None:
    report = builders.report()
    baseline.update(report, tmp_path / "baseline.json")
    first = report.variants[0].model_copy(update={"file": FileFacts(path="new.onnx", sha256="9" * 64)})
    with pytest.raises(ReportError) as caught:
        baseline.load(tmp_path / "baseline.json", report.model_copy(update={"variants": (first, report.variants[1])}))
    assert caught.value.code == "baseline.other-model"
    assert "baseline update" in (caught.value.hint or "")


def test_a_bare_model_is_compared_with_its_earlier_state(tmp_path: Path) -> None:
    report = builders.report(variants=(builders.variant("model", builders.sizes(), 1),))
    baseline.update(report, tmp_path / "baseline.json")
    changed = builders.report(variants=(builders.variant("other", builders.sizes(1.1), 1),))
    assert baseline.load(tmp_path / "baseline.json", changed).variants[0].name == "model"


def test_a_missing_baseline_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ReportError) as caught:
        baseline.load(tmp_path / "none.json", builders.report())
    assert "baseline update" in (caught.value.hint or "")


def test_an_unfinished_run_is_no_baseline(tmp_path: Path) -> None:
    for changes in ({"complete": False}, {"status": "failed"}):
        with pytest.raises(ReportError) as caught:
            baseline.update(builders.report(**changes), tmp_path / "baseline.json")
        assert caught.value.code == "baseline.incomplete"
    assert not (tmp_path / "baseline.json").exists()
