"""Batch-norm statistics are those of the data, worked out with numpy, and stay only where they bring outputs closer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.prune import norms
from lepton_cli.prune.recover import Calibration
from tests.coupling.networks import Network
from tests.prune.context import images, whole

Array = NDArray[Any]


def source(data: Arrays, folder: Path, samples: int) -> Calibration:
    return Calibration(data, folder, threads=1, seed=0, samples=samples)


def network(seed: int = 0) -> ir.Model:
    """Convolution, norm, convolution, norm, pooling, product, norm; the pooled values are an output too."""
    n = Network(seed)
    x = n.node("Relu", n.norm(n.conv(n.input("x", "batch", 3, 8, 8), 3, 4), 4))
    x = n.node("Relu", n.norm(n.conv(x, 4, 5, stride=2), 5))
    pooled = n.node("Flatten", n.node("GlobalAveragePool", x))
    return n.model(n.node("Tanh", n.norm(n.node("Gemm", pooled, n.weight(5, 3), n.weight(3)), 3)), pooled)


def norm_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "BatchNormalization"]


def name_of(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    assert value is not None
    assert value.name is not None
    return value.name


def statistics(model: ir.Model) -> list[tuple[Array, Array]]:
    held = model.graph.initializers
    tensors = [[held[name_of(node, index)].const_value for index in (3, 4)] for node in norm_nodes(model)]
    return [(mean.numpy(), variance.numpy()) for mean, variance in tensors if mean is not None and variance is not None]


def with_statistics_of(model: ir.Model, x: Array) -> ir.Model:
    """Every norm in order gets mean and variance (of the population) of what is in front of it on this data."""
    copy = io.clone(model)
    for node in norm_nodes(copy):
        values = whole(copy, {"x": x}, [name_of(node, 0)])[name_of(node, 0)].astype(np.float64)
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        set_weight(copy.graph.initializers[name_of(node, 3)], values.mean(axis=axes).astype(np.float32))
        set_weight(copy.graph.initializers[name_of(node, 4)], values.var(axis=axes, ddof=0).astype(np.float32))
    return copy


def scaled(model: ir.Model) -> ir.Model:
    """The same network with its first layer in other units: with statistics of its own it computes the same."""
    copy = io.clone(model)
    for name, factor, shift in (("w0", 1.7, 0.0), ("w1", 1.7, 0.6)):
        tensor = copy.graph.initializers[name].const_value
        assert tensor is not None
        set_weight(copy.graph.initializers[name], tensor.numpy() * np.float32(factor) + np.float32(shift))
    return copy


def distance(now: ir.Model, wanted: ir.Model, x: Array) -> float:
    """Mean over outputs of the squared error as a share of the spread."""
    names = [value.name or "" for value in wanted.graph.outputs]
    a, b = (whole(model, {"x": x}, names) for model in (now, wanted))
    return float(np.mean([np.square(a[k] - b[k]).sum() / np.square(b[k] - b[k].mean(axis=0)).sum() for k in names]))


@pytest.mark.parametrize("samples", [40, 24])
def test_statistics_are_mean_and_variance_of_what_is_in_front(samples: int, tmp_path: Path) -> None:
    data = images(40)
    x = data.feeds["x"][:samples]
    reference = with_statistics_of(network(), x)
    model = scaled(reference)
    before = statistics(model)
    result, repairs = norms.reestimate(model, reference, source(data, tmp_path, samples))
    for found, expected in zip(statistics(result), statistics(with_statistics_of(model, x)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert found[0].dtype == found[1].dtype == np.float32
    for found, expected in zip(statistics(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    held = np.concatenate(
        [x[k : k + samples // 8] for k in range(0, samples, samples // 8) if k // (samples // 8) % 4 == 3]
    )
    assert [repair.node for repair in repairs] == [node.name for node in norm_nodes(model)]
    assert {(repair.kind, repair.kept, repair.scarce) for repair in repairs} == {("batch_norm", True, False)}
    for repair in repairs:
        assert repair.error_before == pytest.approx(distance(model, reference, held), rel=1e-4)
        assert repair.error_after == pytest.approx(distance(result, reference, held), rel=1e-2, abs=1e-9)
        assert repair.error_after < 1e-6 < repair.error_before


def test_statistics_that_bring_outputs_no_closer_are_dropped(tmp_path: Path) -> None:
    """The reference itself has statistics of other data: with those of this data it would be another model."""
    data, model = images(32), network()
    held = np.concatenate([data.feeds["x"][12:16], data.feeds["x"][28:32]])
    changed = scaled(model)
    other = with_statistics_of(changed, data.feeds["x"])
    result, repairs = norms.reestimate(changed, model, source(data, tmp_path, 32))
    assert result is changed
    assert [repair.kept for repair in repairs] == [False] * 3
    assert distance(changed, model, held) < distance(other, model, held)
    assert repairs[0].error_before == pytest.approx(distance(changed, model, held), rel=1e-4)
    assert repairs[0].error_after == pytest.approx(distance(other, model, held), rel=1e-4)


def test_statistics_that_change_nothing_are_not_kept(tmp_path: Path) -> None:
    data = images(32)
    reference = with_statistics_of(network(), data.feeds["x"])
    first, _ = norms.reestimate(scaled(reference), reference, source(data, tmp_path, 32))
    second, repairs = norms.reestimate(first, reference, source(data, tmp_path, 32))
    assert second is first
    assert {repair.kept for repair in repairs} == {False}
    assert repairs[0].error_before == repairs[0].error_after


def dense(rows: Array, weight: Array, bias: Array, *, mean: Array, variance: Array) -> tuple[ir.Model, Arrays]:
    n = Network()
    y = n.node("Gemm", n.input("x", "batch", weight.shape[0]), n.weight(values=weight), n.weight(values=bias))
    width = len(bias)
    scale, shift = np.full(width, 0.01, np.float32), np.zeros(width, np.float32)
    norm = n.node("BatchNormalization", y, *(n.weight(values=array) for array in (scale, shift, mean, variance)))
    return n.model(norm), Arrays({"x": rows})


def test_a_single_row_gives_itself_as_mean_and_no_variance(tmp_path: Path) -> None:
    row, weight = np.array([[1.0, 2.0]], np.float32), np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    expected = np.array([9, 12, 15], np.float32)
    reference, data = dense(row, weight, zeros, mean=expected, variance=zeros)
    model, _ = dense(row, weight, zeros, mean=zeros, variance=ones)
    result, (repair,) = norms.reestimate(model, reference, source(data, tmp_path, 1))
    ((mean, variance),) = statistics(result)
    np.testing.assert_array_equal(mean, expected)
    np.testing.assert_array_equal(variance, zeros)
    assert repair.kept
    assert repair.error_after == 0
    # The reference's output has no spread at all: the error is taken as a share of 1e-12.
    outputs = 0.01 * expected / np.sqrt(1 + 1e-5)
    assert repair.error_before == pytest.approx(np.square(outputs).sum() / 1e-12, rel=1e-4)


def test_rounding_makes_no_variance_below_zero(tmp_path: Path) -> None:
    """Two of forty values are the next float32: mean of squares minus squared mean comes out as -4.5e-13 here."""
    value = np.float32(63.02)
    rows = np.full((40, 1), value)
    rows[5:7] = np.nextafter(value, np.float32(100))
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    reference, data = dense(rows, one[None], zero, mean=np.array([value]), variance=one)
    model, _ = dense(rows, one[None], zero, mean=zero, variance=one)
    result, (repair,) = norms.reestimate(model, reference, source(data, tmp_path, 40))
    assert repair.kept
    ((mean, variance),) = statistics(result)
    assert mean[0] == value
    assert variance[0] == 0


def test_256_held_out_samples_are_enough_to_judge(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(1200, 2)).astype(np.float32)
    weight, zero, one = np.eye(2, dtype=np.float32), np.zeros(2, np.float32), np.ones(2, np.float32)
    reference, data = dense(x, weight, zero, mean=zero, variance=one)
    model, _ = dense(x, weight, zero, mean=one, variance=2 * one)
    _, (repair,) = norms.reestimate(model, reference, source(data, tmp_path, 1200))
    held = np.concatenate([x[32 * k : 32 * k + 32] for k in range(3, 32, 4)])
    assert len(held) == 256
    assert repair.error_before == pytest.approx(distance(model, reference, held), rel=1e-6)


@pytest.mark.parametrize("index", [3, 4])
def test_statistics_that_others_read_or_nodes_compute_stay(index: int, tmp_path: Path) -> None:
    data = images(16)
    for computed in (False, True):
        reference = with_statistics_of(network(), data.feeds["x"])
        model = scaled(reference)
        first, second = norm_nodes(model)[:2]
        name = name_of(first, index)
        node = ir.Node("", "Identity", [first.inputs[index]], name="reads", num_outputs=1)
        node.outputs[0].name = "read"
        model.graph.insert_before(first, node)
        if computed:
            first.replace_input_with(index, node.outputs[0])
        result, repairs = norms.reestimate(model, reference, source(data, tmp_path, 16))
        assert first.name not in [repair.node for repair in repairs]
        assert len(repairs) == 2
        assert second.name == repairs[0].node
        tensors = [m.graph.initializers[name].const_value for m in (result, model)]
        assert tensors[0] is not None
        assert tensors[1] is not None
        np.testing.assert_array_equal(tensors[0].numpy(), tensors[1].numpy())


def test_without_norms_there_is_nothing_to_do(tmp_path: Path) -> None:
    n = Network()
    model = n.model(n.node("Relu", n.conv(n.input("x", "batch", 3, 8, 8), 3, 4)))
    result, repairs = norms.reestimate(model, model, source(images(8), tmp_path, 8))
    assert result is model
    assert repairs == []
