"""Moments of a layer's input rows, against numpy on rows cut out by plain loops."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.probe.moments import Moments
from lepton_cli.quantize import choose, moments
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph, Scalars, Told, WithConstants, context

Floats = NDArray[np.float64]


def everything(model: ir.Model) -> choose.Choice:
    names = {node.name or "" for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")}
    return choose.Choice(frozenset(names), frozenset(), ())


def patches(
    x: np.ndarray, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int], groups: int
) -> Floats:
    """im2col [groups, positions, channels * kh * kw] of x [b, c, h, w] in plain loops."""
    padded = np.zeros((*x.shape[:2], x.shape[2] + pads[0] + pads[2], x.shape[3] + pads[1] + pads[3]))
    padded[:, :, pads[0] : pads[0] + x.shape[2], pads[1] : pads[1] + x.shape[3]] = x
    high, wide = ((kernel[i] - 1) * dilations[i] + 1 for i in range(2))
    each = x.shape[1] // groups
    found: list[list[list[float]]] = [[] for _ in range(groups)]
    for sample in padded:
        for top in range(0, sample.shape[1] - high + 1, strides[0]):
            for left in range(0, sample.shape[2] - wide + 1, strides[1]):
                for g in range(groups):
                    found[g].append([
                        float(sample[c, top + i * dilations[0], left + j * dilations[1]])
                        for c in range(g * each, (g + 1) * each) for i in range(kernel[0]) for j in range(kernel[1])
                    ])  # fmt: skip
    return np.array(found)


def convolution(shape: list[int], weight: tuple[int, ...], **attributes: Any) -> ir.Model:
    graph = Graph()
    matrix = graph.constant(graph.random.normal(size=weight).astype(np.float32))
    return graph.model(graph.op("Conv", graph.take("x", ["b", *shape]), matrix, **attributes))


def weight_of(model: ir.Model) -> np.ndarray:
    value = model.graph.initializers["w0"].const_value
    assert value is not None
    return value.numpy()


def data(*shape: int, seed: int = 0) -> Arrays:
    return Arrays({"x": np.random.default_rng(seed).normal(0.7, 1, shape).astype(np.float32)})


CASES: list[tuple[dict[str, Any], list[int]]] = [
    # attributes, and the pads that they mean for an input of 5 x 4: top, left, bottom, right
    ({}, [0, 0, 0, 0]),
    ({"pads": [1, 0, 2, 1]}, [1, 0, 2, 1]),
    ({"pads": [2, 1, 0, 0], "strides": [2, 1]}, [2, 1, 0, 0]),
    ({"dilations": [2, 1]}, [0, 0, 0, 0]),
    ({"dilations": [1, 2], "pads": [1, 2, 1, 2], "strides": [1, 2]}, [1, 2, 1, 2]),
    ({"auto_pad": "VALID", "strides": [2, 2]}, [0, 0, 0, 0]),
    ({"auto_pad": "VALID"}, [0, 0, 0, 0]),
    ({"auto_pad": "SAME_UPPER"}, [1, 0, 1, 1]),
    ({"auto_pad": "SAME_LOWER"}, [1, 1, 1, 0]),
    ({"auto_pad": "SAME_UPPER", "strides": [2, 3]}, [1, 0, 1, 1]),
    ({"auto_pad": "SAME_UPPER", "strides": [3, 2]}, [0, 0, 1, 0]),
    ({"auto_pad": "SAME_LOWER", "strides": [3, 3]}, [1, 1, 0, 0]),
]


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(("attributes", "pads"), CASES)
def test_rows_of_a_convolution_are_its_patches(attributes: dict[str, Any], pads: list[int], group: int) -> None:
    model = convolution([4, 5, 4], (6, 4 // group, 3, 2), group=group, **attributes)
    node, x = next(iter(model.graph)), data(3, 4, 5, 4).feeds["x"]
    rows = moments.rows_of(node, x, np.random.default_rng(0))
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    result = next(iter(Session(io.to_bytes(model), threads=1).run({"x": x}).values()))
    # What the rows give with the weights is what onnxruntime computes, position by position.
    kernels = weight_of(model).reshape(group, 6 // group, -1)
    mine = np.concatenate([rows[g] @ kernels[g].T for g in range(group)], axis=1)
    assert np.allclose(mine, result.transpose(0, 2, 3, 1).reshape(-1, 6), atol=1e-5)
    assert np.array_equal(rows, patches(x, [3, 2], strides, dilations, pads, group).astype(np.float32))


def test_strides_beyond_the_kernel_need_no_padding() -> None:
    model = convolution([2, 5, 4], (3, 2, 1, 1), auto_pad="SAME_UPPER", strides=[3, 2])
    x = data(2, 2, 5, 4).feeds["x"]
    rows = moments.rows_of(next(iter(model.graph)), x, np.random.default_rng(0))
    assert np.array_equal(rows[0], x[:, :, ::3, ::2].transpose(0, 2, 3, 1).reshape(-1, 2))


@pytest.mark.parametrize("dimensions", [1, 3])
def test_rows_of_convolutions_of_other_dimensions(dimensions: int) -> None:
    model = convolution([2, 6, 5, 4][: dimensions + 1], (3, 2, *[3, 2, 2][:dimensions]), strides=[2, 1, 3][:dimensions])
    node, x = next(iter(model.graph)), data(2, *[2, 6, 5, 4][: dimensions + 1]).feeds["x"]
    rows = moments.rows_of(node, x, np.random.default_rng(0))
    result = next(iter(Session(io.to_bytes(model), threads=1).run({"x": x}).values()))
    mine = rows[0] @ weight_of(model).reshape(3, -1).T
    assert np.allclose(mine, np.moveaxis(result, 1, -1).reshape(-1, 3), atol=1e-5)


def test_rows_of_a_product_are_its_last_axis() -> None:
    graph = Graph()
    model = graph.model(
        graph.op("MatMul", graph.take("x", ["b", 3, 2, 5]), graph.constant(np.eye(5, dtype=np.float32)))
    )
    x = data(4, 3, 2, 5).feeds["x"]
    assert np.array_equal(moments.rows_of(next(iter(model.graph)), x, np.random.default_rng(0)), x.reshape(1, 24, 5))


def test_how_many_rows_of_a_product_are_used_depends_on_their_length() -> None:
    graph = Graph()
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 100, 5]), graph.constant(np.eye(5, dtype=np.float32))))
    x = data(4, 100, 5).feeds["x"]
    rows = moments.rows_of(next(iter(model.graph)), x, np.random.default_rng(0))
    assert rows.shape == (1, 128, 5)
    assert {tuple(row) for row in rows[0].tolist()} <= {tuple(row) for row in x.reshape(-1, 5).tolist()}


def test_moments_are_numpys_over_several_parts() -> None:
    random = np.random.default_rng(1)
    parts = [random.normal(2, 3, (2, count, 4)).astype(np.float32) for count in (7, 1, 12)]
    known = Moments(np.zeros((2, 4, 4)), np.zeros((2, 4)))
    for part in parts:
        known.add(part)
    whole = np.concatenate(parts, axis=1).astype(np.float64)
    assert known.count == 20
    assert np.allclose(known.mean, whole.mean(axis=1), rtol=1e-6)
    for g in range(2):
        assert np.allclose(known.second[g], whole[g].T @ whole[g], rtol=1e-5)
        assert np.allclose(known.covariance[g], np.cov(whole[g].T, bias=True), rtol=1e-4, atol=1e-5)


def test_moments_of_one_row_are_the_row() -> None:
    known = Moments(np.zeros((1, 2, 2)), np.zeros((1, 2)))
    known.add(np.float32([[[3, -2]]]))
    assert known.mean.tolist() == [[3, -2]]
    assert known.covariance.tolist() == [[[0, 0], [0, 0]]]


def test_moments_of_nothing_are_zero() -> None:
    known = Moments(np.zeros((1, 2, 2)), np.zeros((1, 2)))
    assert known.count == 0
    assert not known.mean.any()
    assert not known.covariance.any()


@pytest.mark.parametrize("group", [1, 2, 4])
def test_moments_of_a_convolution_over_several_batches(group: int, tmp_path: Path) -> None:
    model = convolution([4, 5, 4], (4, 4 // group, 3, 2), group=group, pads=[1, 0, 1, 1], strides=[2, 1])
    samples, told = data(10, 4, 5, 4), Told()
    known = moments.collect(model, everything(model), samples, context(samples, tmp_path, progress=told))["Conv_0"]
    rows = patches(samples.feeds["x"], [3, 2], [2, 1], [1, 1], [1, 0, 1, 1], group)
    assert known.count == rows.shape[1] == 120
    assert np.allclose(known.mean, rows.mean(axis=1), rtol=1e-5)
    for g in range(group):
        assert np.allclose(known.covariance[g], np.cov(rows[g].T, bias=True), atol=1e-5)
    assert told.stages == [("weight statistics", 10)]
    assert told.counts == [4, 4, 2]


def layers() -> tuple[ir.Model, list[str]]:
    """Products that read the input, an inner tensor (two of them) and a patch; all of width 16."""
    graph = Graph()
    x = graph.take("x", ["b", 16])
    first = graph.op("Gemm", x, graph.constant(graph.random.normal(size=(16, 16)).astype(np.float32)), transB=1)
    inner = graph.op("Tanh", first)
    second = graph.op("Gemm", inner, graph.constant(graph.random.normal(size=(16, 3)).astype(np.float32)))
    third = graph.op("MatMul", inner, graph.constant(graph.random.normal(size=(16, 3)).astype(np.float32)))
    model = graph.model(graph.op("Add", second, third))
    return model, [node.name or "" for node in model.graph if node.op_type in ("Gemm", "MatMul")]


def test_products_of_inputs_and_inner_tensors(tmp_path: Path) -> None:
    model, names = layers()
    samples = data(11, 16)
    known = moments.collect(model, everything(model), samples, context(samples, tmp_path))
    first = model.graph.initializers["w0"].const_value
    assert first is not None
    inner = np.tanh(samples.feeds["x"].astype(np.float64) @ first.numpy().T)
    assert set(known) == set(names)
    for name, rows in zip(names, (samples.feeds["x"].astype(np.float64), inner, inner), strict=True):
        assert known[name].count == 11
        assert np.allclose(known[name].mean[0], rows.mean(axis=0), atol=1e-5)
        assert np.allclose(known[name].covariance[0], np.cov(rows.T, bias=True), atol=1e-5)


def test_products_that_read_the_same_tensor_share_their_moments(tmp_path: Path) -> None:
    model, names = layers()
    samples = data(11, 16)
    known = moments.collect(model, everything(model), samples, context(samples, tmp_path))
    assert known[names[1]] is known[names[2]]
    assert known[names[0]] is not known[names[1]]
    alone = everything(model).without([names[1]], "", model)
    again = moments.collect(model, alone, samples, context(samples, tmp_path))
    assert set(again) == {names[0], names[2]}
    assert np.array_equal(again[names[2]].second, known[names[2]].second)


def test_convolutions_that_read_the_same_tensor_have_moments_of_their_own(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.op("Relu", graph.take("x", ["b", 2, 5, 5]))
    results = [graph.conv(x, 2, 2, k, relu=False) for k in (1, 3)]
    model = graph.model(graph.op("Add", *results))
    samples = data(5, 2, 5, 5)
    known = moments.collect(model, everything(model), samples, context(samples, tmp_path))
    assert [known[name].mean.shape for name in ("Conv_1", "Conv_2")] == [(1, 2), (1, 18)]
    x_ = np.maximum(samples.feeds["x"], 0)
    for name, k in (("Conv_1", 1), ("Conv_2", 3)):
        rows = patches(x_, [k, k], [1, 1], [1, 1], [k // 2] * 4, 1)
        assert np.allclose(known[name].mean[0], rows[0].mean(axis=0), atol=1e-5)


def test_96_samples_are_enough(tmp_path: Path) -> None:
    model, names = layers()
    for count, used in ((95, 95), (96, 96), (97, 96), (130, 96)):
        samples, told = data(count, 16), Told()
        known = moments.collect(model, everything(model), samples, context(samples, tmp_path, progress=told))
        assert known[names[0]].count == used
        assert np.allclose(known[names[0]].first[0], samples.feeds["x"][:used].sum(axis=0, dtype=np.float64))
        assert told.stages == [("weight statistics", used)]
        assert sum(told.counts) == used


def test_samples_are_counted_by_the_longest_input(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.op("Mul", graph.take("x", ["b", 16]), graph.op("Mul", graph.take("one", [1]), graph.take("two", [])))
    model = graph.model(graph.op("MatMul", x, graph.constant(np.eye(16, dtype=np.float32))))
    constants = {"one": np.ones(1, dtype=np.float32), "two": np.array(2, dtype=np.float32)}
    samples, told = WithConstants(constants, x=data(110, 16).feeds["x"]), Told()
    known = moments.collect(model, everything(model), samples, context(samples, tmp_path, progress=told))
    assert known["MatMul_2"].count == 96
    assert told.counts == [4] * 24


def test_a_batch_without_any_axis_is_one_sample(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.op("Mul", graph.take("x", []), graph.constant(np.ones((1, 16), dtype=np.float32)))
    model = graph.model(graph.op("MatMul", x, graph.constant(np.eye(16, dtype=np.float32))))
    samples = Scalars({"x": np.ones(100, dtype=np.float32)})
    known = moments.collect(model, everything(model), samples, context(samples, tmp_path))
    assert known["MatMul_1"].count == 96


def test_long_rows_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 3, 4, 4])
    y = graph.op("GlobalAveragePool", graph.conv(x, 3, 20, relu=False))  # rows of 27
    y = graph.op("Flatten", y)
    y = graph.op("MatMul", y, graph.constant(graph.random.normal(size=(20, 24)).astype(np.float32)))  # 20
    y = graph.op("Gemm", y, graph.constant(graph.random.normal(size=(24, 5)).astype(np.float32)))  # 24
    y = graph.op("Gemm", y, graph.constant(graph.random.normal(size=(30, 5)).astype(np.float32)), transB=1)  # 5
    model = graph.model(y)
    samples = data(4, 3, 4, 4)
    lengths = {"Conv_0": 27, "MatMul_3": 20, "Gemm_4": 24, "Gemm_5": 5}
    for longest in (27, 26, 24, 23, 20, 19, 5, 4):
        monkeypatch.setattr(moments, "LONGEST_ROW", longest)
        known = moments.collect(model, everything(model), samples, context(samples, tmp_path))
        assert set(known) == {name for name, length in lengths.items() if length <= longest}


def test_products_with_a_computed_weight_are_left_out(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 4, 4])
    model = graph.model(graph.op("MatMul", x, x))
    samples = data(4, 4, 4)
    assert moments.collect(model, everything(model), samples, context(samples, tmp_path)) == {}


@pytest.mark.parametrize(
    ("total", "length", "wanted"),
    [(100, 8, 100), (128, 8, 128), (129, 8, 128), (5000, 256, 128), (5000, 258, 129), (5000, 2400, 1200), (9, 2400, 9)],
)
def test_a_random_part_of_the_rows_is_used(total: int, length: int, wanted: int) -> None:
    # 12 rows for each weight of a row over 24 batches of 4: half as many in each as a row is long, but at least 128.
    found = moments._some(total, length, np.random.default_rng(0), 4).tolist()
    assert len(set(found)) == len(found) == wanted
    assert found == sorted(found)
    assert set(found) <= set(range(total))
    if total == 5000:
        assert found[0] < 500
        assert found[-1] > 4500
        assert found != moments._some(total, length, np.random.default_rng(1), 4).tolist()


def test_chosen_rows_are_rows_of_the_whole(tmp_path: Path) -> None:
    model = convolution([40, 12, 12], (40, 40, 3, 3), pads=[1, 1, 1, 1], group=1)
    x = data(4, 40, 12, 12).feeds["x"]
    rows = moments.rows_of(next(iter(model.graph)), x, np.random.default_rng(0))
    every = patches(x, [3, 3], [1, 1], [1, 1], [1, 1, 1, 1], 1).astype(np.float32)
    assert rows.shape == (1, 180, 360)
    places = [int(np.flatnonzero((every[0] == row).all(axis=1))[0]) for row in rows[0]]
    assert places == moments._some(4 * 144, 360, np.random.default_rng(0), 4).tolist()


def test_the_seed_decides_which_rows(tmp_path: Path) -> None:
    model = convolution([2, 12, 12], (3, 2, 1, 1))
    samples = data(4, 2, 12, 12)
    found = [
        moments.collect(model, everything(model), samples, context(samples, tmp_path, seed=seed))["Conv_0"].first
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_the_constants_documented() -> None:
    assert (moments.LONGEST_ROW, moments.ROWS_PER_WEIGHT, moments.SAMPLES, moments.BATCH) == (2400, 12, 96, 4)


@pytest.mark.parametrize(("samples", "length", "count"), [(1, 8, 32), (1, 256, 32), (1, 264, 33), (2, 2400, 600)])
def test_a_sample_gives_as_many_rows_alone_as_among_others(samples: int, length: int, count: int) -> None:
    assert len(moments._some(5000, length, np.random.default_rng(0), samples)) == count
