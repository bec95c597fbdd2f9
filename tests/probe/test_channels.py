"""Ends per channel over all batches, against numpy on the whole data."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.probe.channels import Channels, collect
from tests.quantize.builders import Graph, Samples, Scalars, Told, WithConstants, context


def net() -> ir.Model:
    """`t0` = -2 x [b, 3, 5, 4] and `t1`, the same with the channels last."""
    graph = Graph()
    y = graph.op("Mul", graph.take("x", ["b", 3, 5, 4]), graph.constant(np.float32(-2)))
    return graph.model(graph.op("Relu", graph.op("Transpose", y, perm=[0, 2, 3, 1])))


def data(count: int = 10) -> Samples:
    values = np.random.default_rng(0).normal(0, 1, (count, 3, 5, 4)) * np.array([1, 10, 100]).reshape(3, 1, 1)
    return Samples(x=values.astype(np.float32))


@pytest.mark.parametrize(("tensor", "axis"), [("t0", 1), ("t1", -1), ("t1", 3)])
def test_ends_are_those_of_the_whole_data(tensor: str, axis: int, tmp_path: Path) -> None:
    samples = data()
    found = collect(net(), {tensor: axis}, samples, context(samples, tmp_path))
    y = -2 * samples.feeds["x"]
    assert list(found) == [tensor]
    assert found[tensor].low.tolist() == y.min(axis=(0, 2, 3)).tolist()
    assert found[tensor].high.tolist() == y.max(axis=(0, 2, 3)).tolist()


def test_every_batch_may_hold_an_end(tmp_path: Path) -> None:
    for position in range(10):
        samples = data()
        samples.feeds["x"][position, 0, 0, 0], samples.feeds["x"][position, 1, 4, 3] = 50, -70
        found = collect(net(), {"t0": 1}, samples, context(samples, tmp_path))["t0"]
        assert (found.low[0], found.high[1]) == (-100, 140)


@pytest.mark.parametrize("sign", [-1, 1])
def test_ends_always_hold_zero(sign: int, tmp_path: Path) -> None:
    samples = Samples(x=sign * (1 + np.abs(data().feeds["x"])))
    found = collect(net(), {"t0": 1}, samples, context(samples, tmp_path))["t0"]
    assert (found.high if sign > 0 else found.low).tolist() == [0, 0, 0]
    assert (found.low if sign > 0 else found.high).all()


def test_several_tensors_in_one_pass(tmp_path: Path) -> None:
    samples, told = data(), Told()
    found = collect(net(), {"t0": 2, "t1": 1}, samples, context(samples, tmp_path, progress=told))
    y = -2 * samples.feeds["x"]
    assert found["t0"].high.tolist() == found["t1"].high.tolist() == y.max(axis=(0, 1, 3)).tolist()
    assert told.stages == [("channel ranges", 10)]
    assert told.counts == [4, 4, 2]


def test_no_tensors_need_no_pass(tmp_path: Path) -> None:
    told = Told()
    assert collect(net(), {}, data(), context(data(), tmp_path, progress=told)) == {}
    assert told.stages == []


def test_progress_counts_samples_not_scalars_and_states(tmp_path: Path) -> None:
    graph = Graph()
    factor = graph.op("Mul", graph.take("scalar", []), graph.take("state", [1]))
    model = graph.model(graph.op("Relu", graph.op("Mul", factor, graph.take("x", ["b", 3]))))
    constants = {"scalar": np.array(3, dtype=np.float32), "state": np.ones(1, dtype=np.float32)}
    samples, told = WithConstants(constants, x=np.ones((3, 3), dtype=np.float32)), Told()
    found = collect(model, {"t1": 1}, samples, context(samples, tmp_path, progress=told))
    assert found["t1"].high.tolist() == [3, 3, 3]
    assert told.counts == [3]


def test_a_batch_without_any_axis_is_one_sample(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.op("Mul", graph.take("x", []), graph.constant(np.float32([1, -2]))))
    samples, told = Scalars(x=np.float32([3, 4])), Told()
    found = collect(model, {"t0": 0}, samples, context(samples, tmp_path, progress=told))
    assert (found["t0"].low.tolist(), found["t0"].high.tolist()) == ([0, -8], [4, 0])
    assert told.counts == [1, 1]


def test_widest_is_the_greater_magnitude_of_both_ends() -> None:
    ends = Channels(np.float32([-3, 0, -1, 0]), np.float32([1, 2, 1, 0]))
    assert ends.widest.tolist() == [3, 2, 1, 0]
