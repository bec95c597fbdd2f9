"""What else could be run: each way that is open to the model, timed against the float model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.progress import Silent
from lepton_cli.quantize import alternatives, dynamic, fp16, speed
from lepton_cli.quantize.spec import ConvertFp16, QuantizeDynamic
from lepton_cli.step import Context
from tests.quantize.builders import Graph, context, mlp, ops, rows


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[ir.Model]]:
    """The models that were compared; the k-th is k times as fast as the first, and a bit."""
    found: list[list[ir.Model]] = []

    def compare(models: list[ir.Model], feeds: Any, context: Context) -> tuple[list[speed.Gain], int]:
        assert set(feeds) == {"x"}
        found.append(models)
        return [speed.Gain(gain, 1.0) for gain in (1.0, 2.00049, 3.0006)][: len(models)], 0

    monkeypatch.setattr(speed, "compare", compare)
    return found


FEEDS = {"x": rows(1).feeds["x"]}


def test_each_way_is_written_and_timed_beside_the_float_model(timed: list[list[ir.Model]], tmp_path: Path) -> None:
    model = mlp()
    found = alternatives.measure(model, FEEDS, context(rows(), tmp_path))
    assert found == {"float": 1.0, "quantize.dynamic": 2.0, "convert.fp16": 3.001}
    ((first, second, third),) = timed
    assert first is model
    assert "MatMulInteger" in ops(second)
    assert "Cast" in ops(third)


def test_ways_that_are_closed_or_change_nothing_are_left_out(timed: list[list[ir.Model]], tmp_path: Path) -> None:
    graph = Graph()
    small = graph.model(graph.linear(graph.take("x", ["b", 64]), 64, 10))
    assert set(alternatives.measure(small, FEEDS, context(rows(), tmp_path))) == {"float", "convert.fp16"}
    model = fp16.convert(mlp(), ConvertFp16(step="convert.fp16", keep_io=False), context(rows(), tmp_path)).model
    data = rows()
    data.feeds["x"] = data.feeds["x"].astype(np.float16)
    assert set(alternatives.measure(model, FEEDS, context(data, tmp_path))) == {"float", "quantize.dynamic"}
    assert set(alternatives.measure(dynamic_of(tmp_path), FEEDS, context(rows(), tmp_path))) == {"float"}
    assert alternatives.measure(dynamic_of(tmp_path), FEEDS, context(rows(), tmp_path))["float"] == 1.0


def dynamic_of(tmp_path: Path) -> ir.Model:
    """A model that is quantized already: the first way raises."""
    return dynamic.quantize(mlp(), QuantizeDynamic(step="quantize.dynamic"), context(rows(), tmp_path)).model


def test_the_trials_show_no_progress_of_their_own(
    timed: list[list[ir.Model]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loud(Silent):
        def stage(self, *arguments: Any, **options: Any) -> Any:
            raise AssertionError

    alternatives.measure(mlp(), FEEDS, context(rows(), tmp_path, progress=Loud()))
    assert len(timed) == 1


@pytest.mark.parametrize(
    ("speeds", "words"),
    [
        ({"float": 1.0, "quantize.dynamic": 1.5, "convert.fp16": 0.5}, "`quantize.dynamic` (1.5x)"),
        ({"float": 1.0, "quantize.dynamic": 1.2, "convert.fp16": 1.4}, "`convert.fp16` (1.4x)"),
        ({"float": 1.0, "quantize.dynamic": 1.03}, "`quantize.dynamic` (1.03x)"),
        ({"float": 1.0, "quantize.dynamic": 1.029}, "float"),
        ({"float": 1.0, "quantize.dynamic": 0.9}, "float"),
        ({"float": 1.2, "quantize.dynamic": 0.9}, "float"),
        ({"float": 1.0}, "float"),
    ],
)
def test_the_best_way_is_the_fastest_by_three_percent_at_least(speeds: dict[str, float], words: str) -> None:
    assert alternatives.best(speeds) == words
