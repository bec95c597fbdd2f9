"""Six measures of importance, on channels few enough to compute by hand, and Gram matrices against the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.coupling.links import Group
from lepton_cli.data.memory import Arrays
from lepton_cli.graph.edit import set_weight
from lepton_cli.probe import linear, moments
from lepton_cli.prune import importance, recover
from tests.coupling.networks import Network, analysed

Floats = NDArray[np.float64]
FIRST = np.array([[1, -2, 4], [1, 0, -1]], np.float32)
LAST = np.array([[3, 0], [-1, 1], [2, 2]], np.float32)


def mlp(first: Floats | None = None, last: Floats | None = None, bias: Floats | None = None) -> tuple[ir.Model, Group]:
    """Two inputs, three channels, two outputs; the group of the three channels."""
    n = Network()
    w = n.weight(values=np.asarray(FIRST if first is None else first, np.float32))
    hidden = n.node("Relu", n.node("Gemm", n.input("x", "batch", 2), w, n.weight(3)))
    v = n.weight(values=np.asarray(LAST if last is None else last, np.float32))
    b = n.weight(values=np.array([1, -1] if bias is None else bias, np.float32))
    model, found = analysed(n.model(n.node("Gemm", hidden, v, b)))
    (group,) = (group for group in found.groups if group.frozen is None)
    return model, group


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("l1", [2 / 9, 2 / 9, 5 / 9], [3 / 9, 2 / 9, 4 / 9]),
        ("l2", [2 / 23, 4 / 23, 17 / 23], [9 / 19, 2 / 19, 8 / 19]),
        # The means are 1/2 and 7/6; squares of the distances from them, per channel.
        ("zscore", [0.5 / 21.5, 6.5 / 21.5, 14.5 / 21.5], [170 / 390, 170 / 390, 50 / 390]),
        # No normalisation: by l2.
        ("bn_scale", [2 / 23, 4 / 23, 17 / 23], [9 / 19, 2 / 19, 8 / 19]),
    ],
)
def test_weights_before_and_behind_a_channel_count_the_same(kind: str, first: list[float], last: list[float]) -> None:
    model, group = mlp()
    found = importance.data_free(kind, model, group, {})
    assert found == pytest.approx((np.array(first) + last) / 2)


def test_the_scale_of_a_tensor_does_not_matter() -> None:
    plain, scaled = mlp(), mlp(first=1000 * FIRST)
    for kind in ("l1", "l2", "zscore"):
        one, two = (importance.data_free(kind, *pair, {}) for pair in (plain, scaled))
        assert one == pytest.approx(two)


def test_weights_that_do_not_vary_have_no_zscore() -> None:
    model, group = mlp(first=np.full((2, 3), 0.7))
    found = importance.data_free("zscore", model, group, {})
    assert found == pytest.approx(np.array([170, 170, 50]) / 390)


def test_channels_without_any_weight_have_no_importance() -> None:
    model, group = mlp(first=np.zeros((2, 3)), last=np.zeros((3, 2)))
    assert importance.data_free("l1", model, group, {}).tolist() == [0, 0, 0]


def residual() -> tuple[ir.Model, Group]:
    """Two convolutions into one sum, whose channels are one group; a product reads two positions of each."""
    n = Network()
    x = n.input("x", "batch", 2, 1, 2)
    total = n.node("Add", n.conv(x, 2, 3, kernel=1), n.conv(x, 2, 3, kernel=1))
    w = n.weight(values=np.arange(1, 13, dtype=np.float32).reshape(6, 2))
    model, found = analysed(n.model(n.node("Gemm", n.node("Flatten", total), w, n.weight(2))))
    (group,) = (group for group in found.groups if group.frozen is None)
    return model, group


def test_all_positions_of_a_channel_count() -> None:
    model, group = residual()
    for name in ("w0", "w2"):
        set_weight(model.graph.initializers[name], np.ones((3, 2, 1, 1), np.float32))
    found = importance.data_free("l1", model, group, {})
    assert found == pytest.approx((2 * np.array([1, 1, 1]) / 3 + np.array([10, 26, 42]) / 78) / 3)


def test_scales_of_normalisations_multiply() -> None:
    model, group = residual()
    first, second = (port.node for port in group.producers)
    one, two = np.array([1.0, 2.0, 1.0]), np.array([3.0, 1.0, 4.0])
    both = importance.data_free("bn_scale", model, group, {first: one, second: two})
    assert both == pytest.approx([3 / 9, 2 / 9, 4 / 9])
    assert importance.data_free("bn_scale", model, group, {second: two}) == pytest.approx(two / 8)
    others = {first: np.ones(4), "somewhere": two}
    assert importance.data_free("bn_scale", model, group, others).tolist() == (
        importance.data_free("l2", model, group, {}).tolist()
    )


def test_the_least_score_goes_first_and_its_share_is_the_loss() -> None:
    ranking = importance.by_scores(np.array([0.5, 0.125, 0.25, 0.125]))
    assert ranking.order.tolist() == [1, 3, 2, 0]
    assert ranking.loss.tolist() == [0.125, 0.25, 0.5]


def convolutions() -> tuple[ir.Model, list[Group]]:
    n = Network()
    x = n.node("Relu", n.conv(n.input("x", "batch", 2, 4, 4), 2, 3, kernel=3))
    deep = n.conv(n.conv(x, 3, 3, kernel=3, group=3), 3, 2, kernel=1)
    wide = n.node("Gemm", n.node("Flatten", x), n.weight(4, 48), n.weight(4), transB=1)
    model, found = analysed(n.model(deep, n.node("Gemm", wide, n.weight(4, 2), n.weight(2))))
    return model, [group for group in found.groups if group.frozen is None]


def test_consumers_are_linear_layers_with_the_features_of_each_channel() -> None:
    n = Network()
    x = n.node("Relu", n.conv(n.input("x", "batch", 2, 4, 4), 2, 3))
    y = n.conv(x, 3, 2)
    model, found = analysed(n.model(y, n.node("Gemm", n.node("Flatten", x), n.weight(4, 48), n.weight(4), transB=1)))
    (group,) = (group for group in found.groups if group.frozen is None)
    conv, product = importance.consumers(group, linear.find(model))
    assert [layer.op for layer, _ in (conv, product)] == ["Conv", "Gemm"]
    np.testing.assert_array_equal(conv[1], np.arange(27).reshape(3, 9))
    np.testing.assert_array_equal(product[1], np.arange(48).reshape(3, 16))
    assert importance.consumers(group, {}) == []


def test_depthwise_convolutions_are_no_consumers() -> None:
    model, groups = convolutions()
    layers = linear.find(model)
    assert [[layer.op for layer, _ in importance.consumers(group, layers)] for group in groups] == [
        ["Conv", "Gemm"],
        ["Gemm"],
    ]


def test_groups_whose_matrices_fit_into_memory_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    n = Network()
    x = n.input("x", "batch", 2)
    for before, after in ((2, 3), (3, 5), (5, 3), (3, 2)):
        x = n.node("Relu", n.node("Gemm", x, n.weight(before, after), n.weight(after)))
    model, found = analysed(n.model(n.node("Gemm", x, n.weight(2, 2), n.weight(2))))
    groups = [group for group in found.groups if group.frozen is None]
    sizes = [16 * (group.channels + 1) ** 2 for group in groups]
    assert sizes == [256, 576, 256, 144]
    for memory, wanted in ((2000, [4]), (1232, [4]), (1231, [3, 1]), (832, [2, 2]), (831, [1, 1, 2]), (1, [1] * 4)):
        monkeypatch.setattr(importance, "MEMORY", memory)
        chunks = importance.chunks(groups, linear.find(model), model)
        assert [len(chunk) for chunk in chunks] == wanted
        assert [group for chunk in chunks for group in chunk] == groups


def test_gram_matrices_are_those_of_the_rows_to_fit_with(tmp_path: Path) -> None:
    """Of eight samples in batches of one, every fourth is held out."""
    model, group = mlp()
    x = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    source = recover.Calibration(Arrays({"x": x}), tmp_path, 1, 0, 8)
    found = importance.grams(model, [group], linear.find(model), source)
    bias = model.graph.initializers["w1"].const_value.numpy()
    rows = np.concatenate([np.maximum(x @ FIRST + bias, 0), np.ones((8, 1))], axis=1)[[0, 1, 2, 4, 5, 6]]
    assert list(found) == [group.consumers[0].node]
    np.testing.assert_allclose(found[group.consumers[0].node], rows.T @ rows, rtol=1e-5)
    assert importance.grams(model, [], linear.find(model), source) == {}


def test_gram_matrices_take_their_share_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 rows in all each of 8 batches gives 2: 12, as two batches are held out."""
    monkeypatch.setattr(moments, "ROWS", 16)
    model, group = mlp()
    x = np.zeros((64, 2), np.float32)
    source = recover.Calibration(Arrays({"x": x}), tmp_path, 1, 0, 64)
    (found,) = importance.grams(model, [group], linear.find(model), source).values()
    assert found[-1, -1] == 12


def test_activation_is_the_energy_a_channel_brings_to_the_outputs() -> None:
    """Inputs of mean square 2, 1 and 3; the outputs' weights 9, 2 and 8 squared; the variance by hand."""
    model, group = mlp()
    rows = np.array([[2, 1, 1, 1], [0, 1, -1, 1], [0, -1, 3, 1], [2, 1, 1, 1]], np.float64)
    node = group.consumers[0].node
    outputs = rows @ np.concatenate([LAST, [[1, -1]]])
    variance = np.square(outputs - outputs.mean(axis=0)).sum()
    found = importance.with_data("activation", model, group, linear.find(model), {node: rows.T @ rows})
    scores = np.array([8 * 9, 4 * 2, 12 * 8]) / variance
    assert found.order.tolist() == [1, 0, 2]
    assert found.loss == pytest.approx([scores[1], scores[1] + scores[0]])


def test_activation_sums_over_consumers_and_over_the_features_of_a_channel() -> None:
    n = Network()
    x = n.node("Relu", n.conv(n.input("x", "batch", 2, 1, 2), 2, 3, kernel=1))
    flat = n.node("Flatten", x)
    one = n.node("Gemm", flat, n.weight(6, 2), n.weight(2))
    two = n.node("MatMul", flat, n.weight(6, 3))
    model, found = analysed(n.model(one, two))
    (group,) = (group for group in found.groups if group.frozen is None)
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(1, 1, (20, 6)), np.ones((20, 1))], axis=1)
    layers = linear.find(model)
    grams = {layer.node: rows.T @ rows for layer, _ in importance.consumers(group, layers)}
    assert len(grams) == 2
    scores = np.zeros(3)
    for name, bias in (("w2", "w3"), ("w4", None)):
        w = model.graph.initializers[name].const_value.numpy().astype(np.float64)
        b = 0 if bias is None else model.graph.initializers[bias].const_value.numpy()
        outputs = rows[:, :6] @ w + b
        brought = [np.square(rows[:, k, None] * w[k]).sum() for k in range(6)]
        scores += np.reshape(brought, (3, 2)).sum(axis=1) / np.square(outputs - outputs.mean(axis=0)).sum()
    found_ranking = importance.with_data("activation", model, group, layers, grams)
    assert found_ranking.order.tolist() == np.argsort(scores).tolist()
    assert found_ranking.loss == pytest.approx(np.cumsum(np.sort(scores))[:2])


def test_hessian_removes_the_channel_that_the_others_stand_for() -> None:
    """The first two see nearly the same, so one of them can go although the third has the least weights."""
    model, group = mlp(last=np.array([[5, 0], [0, 4], [1, 1]]))
    rows = np.random.default_rng(0).normal(size=(50, 4))
    rows[:, 1] = rows[:, 0] + 0.05 * rows[:, 1]
    rows[:, 3] = 1
    found = importance.with_data("hessian", model, group, linear.find(model), {group.consumers[0].node: rows.T @ rows})
    # The ridge: a thousandth of the inputs' mean square.
    tall = np.concatenate([rows, np.sqrt(0.001 * np.square(rows[:, :3]).sum() / 3) * np.eye(3, 4)])
    weight = np.array([[5, 0], [0, 4], [1, 1], [1, -1]], np.float64)
    outputs, missed = rows @ weight, []
    for channel in range(3):
        keep = np.arange(4) != channel
        fitted = np.linalg.lstsq(tall[:, keep], tall @ weight, rcond=None)[0]
        missed.append(np.square(tall @ weight - tall[:, keep] @ fitted).sum())
    assert found.order[0] == np.argmin(missed) != 2
    assert found.loss[0] == pytest.approx(min(missed) / np.square(outputs - outputs.mean(axis=0)).sum(), rel=1e-4)
    assert len(found.loss) == 2


@pytest.mark.parametrize("kind", ["hessian", "activation"])
def test_pixels_beside_scores_count_no_more_than_scores(kind: str) -> None:
    """A hundred pixels and a score, of inputs that are 1 or -1 and know nothing of each other: by hand.

    The pixels have the spread 100² * (4 + 1 + 0), the score 1 + 1 + 9: channel 2 moves the score alone, which is
    nothing beside the pixels, and 9/11 of its own kind.
    """
    model, group = mlp(last=np.array([[200, 1], [100, 1], [0, 3]]), bias=np.zeros(2))
    signs = np.array([[a, b, c, 1] for a in (1, -1) for b in (1, -1) for c in (1, -1)], np.float64)
    grams = {group.consumers[0].node: signs.T @ signs}
    found = importance.with_data(kind, model, group, linear.find(model), grams)
    shares = np.array([4 / 5 + 1 / 11, 1 / 5 + 1 / 11, 9 / 11]) / 2
    assert found.order.tolist() == [1, 2, 0]
    # The ridge adds a thousandth to what a removal costs.
    factor = 1.001 if kind == "hessian" else 1
    assert found.loss == pytest.approx(factor * np.cumsum(shares[[1, 2]]), rel=1e-4)


def test_what_is_no_output_is_of_one_kind() -> None:
    """The same layer with another one behind it: channel 2 is all but nothing."""
    n = Network()
    hidden = n.node("Relu", n.node("Gemm", n.input("x", "batch", 2), n.weight(2, 3), n.weight(3)))
    last = n.weight(values=np.array([[200, 1], [100, 1], [0, 3]], np.float32))
    inner = n.node("Relu", n.node("Gemm", hidden, last, n.weight(2)))
    model, found = analysed(n.model(n.node("Gemm", inner, n.weight(2, 5), n.weight(5))))
    group = next(group for group in found.groups if group.channels == 3)
    signs = np.array([[a, b, c, 1] for a in (1, -1) for b in (1, -1) for c in (1, -1)], np.float64)
    grams = {group.consumers[0].node: signs.T @ signs}
    assert importance.with_data("hessian", model, group, linear.find(model), grams).order.tolist() == [2, 1, 0]
