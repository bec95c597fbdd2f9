"""Branches as part of an allocation, and the repair around a dropped one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_cli.coupling import branches, cut
from lepton_cli.data.memory import Arrays
from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.probe import linear
from lepton_cli.prune import analysis, depth, recover, sensitivity
from lepton_cli.prune.spec import PruneChannels
from tests.coupling.networks import Network
from tests.prune.context import context, images, redundant

Floats = NDArray[np.float64]


def analysed() -> analysis.Analysis:
    return analysis.analysed(redundant(), PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})


def test_a_branch_is_width_zero_of_the_group_inside_it() -> None:
    found = analysed()
    columns = depth.columns(found, branches.find(found.model, found.coupling.facts))
    assert columns.count == len(found.groups)
    column, branch = next(iter(columns.branches.items()))
    assert found.groups[column].name in branch.nodes
    widths = columns.full
    widths[column] = 0
    assert columns.dropped(widths) == [branch]
    assert columns.kept(widths).tolist() == columns.full.tolist()
    orders = [np.arange(group.channels) for group in found.groups]
    left = columns.cut(widths, orders)
    assert {node.name for node in left.graph}.isdisjoint(branch.nodes)


def test_branches_without_a_group_have_a_column_of_their_own() -> None:
    found = analysed()
    none = analysis.Analysis(found.model, found.coupling, (), (), {})
    columns = depth.columns(none, branches.find(found.model, found.coupling.facts))
    assert columns.full.tolist() == [1, 1]
    assert len(columns.dropped(np.array([0, 1]))) == 1


def test_refitting_near_a_dropped_branch_helps(tmp_path: Path) -> None:
    found, data = analysed(), images(96)
    given = context(found.model, tmp_path, data)
    source = recover.Calibration(data, given.workdir, 1, 0, 96)
    trial = sensitivity.prepare(found.model, found.coupling, source, 2, 1e5)
    dropped = branches.find(found.model, found.coupling.facts)
    raw = [trial.error(branches.drop(found.model, [branch])[0]) for branch in dropped]
    refitted = depth.losses(found, dropped, trial)
    assert all(after < before for before, after in zip(raw, refitted, strict=True))
    assert refitted == depth.losses(found, dropped, trial)
    assert not list(tmp_path.iterdir())


def test_layers_around_a_dropped_branch_are_repaired() -> None:
    found = analysed()
    first, last = branches.find(found.model, found.coupling.facts)
    none = np.zeros(0, np.int64)
    for branch, operators in ((first, ["Conv", "Conv", "Conv", "Gemm"]), (last, ["Conv", "Gemm"])):
        model, stand_ins = branches.drop(found.model, [branch])
        layers = recover.after_the_cut(model, found.coupling, none, found.model, stand_ins)
        assert [layer.op for layer in layers] == operators


def straight(seed: int = 0) -> tuple[analysis.Analysis, Network]:
    """x A = h; h + (h B) C; then D: no layer but products, so that every fit is one of least squares."""
    n = Network(seed)
    h = n.node("MatMul", n.input("x", "batch", 6), n.weight(6, 5))
    total = n.node("Add", h, n.node("MatMul", n.node("Relu", n.node("MatMul", h, n.weight(5, 7))), n.weight(7, 5)))
    model = n.model(n.node("Gemm", total, n.weight(5, 3), n.weight(3)))
    return analysis.analysed(model, PruneChannels(step="prune.channels"), {"x": (2, 6)}), n


def fitted(rows: Floats, wanted: Floats, start: Floats, bias: bool) -> Floats:
    """Least squares with a ridge of 0.003 of the mean square on the step away from the weights as they are."""
    size = rows.shape[1]
    ridge = np.sqrt(0.003 * np.square(rows).sum() / size) * np.eye(size, size + bias)
    tall = np.concatenate([np.concatenate([rows, np.ones((len(rows), 1))], axis=1) if bias else rows, ridge])
    residual = np.concatenate(
        [wanted - (rows @ start[:size] + (start[size] if bias else 0)), np.zeros((size, wanted.shape[1]))]
    )
    return start + np.linalg.lstsq(tall, residual, rcond=None)[0]


@pytest.mark.parametrize("count", [32, 256])
def test_layers_around_a_dropped_branch_are_fitted_one_after_another(count: int, tmp_path: Path) -> None:
    """Towards the sum with the branch, then towards the next layer's outputs; batches held out are left out."""
    found, n = straight()
    (branch,) = branches.find(found.model, found.coupling.facts)
    x = np.random.default_rng(1).normal(0.5, 1, (count, 6)).astype(np.float32)
    source = recover.Calibration(Arrays({"x": x}), tmp_path, 1, 0, count)
    model, stand_ins = branches.drop(found.model, [branch])
    none = np.zeros(0, np.int64)
    near = recover.after_the_cut(model, found.coupling, none, found.model, stand_ins)
    assert [layer.op for layer in near] == ["MatMul", "Gemm"]
    depth.refit(found, model, near, none, source)
    a, b, c, d, e = (np.asarray(n.weights[f"w{k}"], np.float64) for k in range(5))
    few = min(count, 128)
    size = min(32, few // 8)
    rows = np.concatenate([x[size * k : size * (k + 1)] for k in range(few // size) if k % 4 != 3]).astype(np.float64)
    hidden = rows @ a
    total = hidden + np.maximum(hidden @ b, 0) @ c
    first = fitted(rows, total, a, False)
    last = fitted(rows @ first, total @ d + e, np.concatenate([d, e[None]]), True)
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    np.testing.assert_allclose(arrays["w0"], first, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(arrays["w3"], last[:-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(arrays["w4"], last[-1], rtol=1e-3, atol=1e-4)
    assert np.abs(arrays["w0"] - a).max() > 0.05


def test_the_last_layer_of_a_block_is_fitted_to_the_sum_less_the_shortcut(tmp_path: Path) -> None:
    found, n = straight()
    model = io.clone(found.model)
    set_weight(model.graph.initializers["w0"], n.weights["w0"] * np.float32(0.7))
    x = np.random.default_rng(1).normal(0.5, 1, (40, 6)).astype(np.float32)
    source = recover.Calibration(Arrays({"x": x}), tmp_path, 1, 0, 40)
    last = [layer for layer in linear.find(model).values() if layer.weight == "w2"]
    depth.refit(found, model, last, np.zeros(0, np.int64), source)
    rows = np.concatenate([x[5 * k : 5 * k + 5] for k in range(8) if k % 4 != 3]).astype(np.float64)
    a, b, c = (np.asarray(n.weights[f"w{k}"], np.float64) for k in range(3))
    total = rows @ a + np.maximum(rows @ a @ b, 0) @ c
    now = rows @ (0.7 * a)
    wanted = fitted(np.maximum(now @ b, 0), total - now, c, False)
    np.testing.assert_allclose(model.graph.initializers["w2"].const_value.numpy(), wanted, rtol=1e-3, atol=1e-4)


def test_of_many_rows_as_many_are_drawn_by_the_batchs_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "ROWS", 3)
    found, n = straight()
    model = io.clone(found.model)
    x = np.random.default_rng(1).normal(0.5, 1, (40, 6)).astype(np.float32)
    source = recover.Calibration(Arrays({"x": x}), tmp_path, 1, 0, 40)
    set_weight(model.graph.initializers["w3"], n.weights["w3"] * np.float32(0.7))
    last = [layer for layer in linear.find(model).values() if layer.weight == "w3"]
    depth.refit(found, model, last, np.zeros(0, np.int64), source)
    batches = [x[5 * k : 5 * k + 5] for k in range(8) if k % 4 != 3]
    rows = np.concatenate(
        [part[np.random.default_rng(k).choice(5, 3, replace=False)] for k, part in enumerate(batches)]
    ).astype(np.float64)
    a, b, c, d, e = (np.asarray(n.weights[f"w{k}"], np.float64) for k in range(5))
    total = rows @ a + np.maximum(rows @ a @ b, 0) @ c
    wanted = fitted(total, total @ d + e, np.concatenate([0.7 * d, e[None]]), True)
    np.testing.assert_allclose(model.graph.initializers["w3"].const_value.numpy(), wanted[:-1], rtol=1e-3, atol=1e-4)


def test_a_layer_that_sees_nothing_stays_as_it_is(tmp_path: Path) -> None:
    found, n = straight()
    x = np.zeros((16, 6), np.float32)
    model = io.clone(found.model)
    first = [layer for layer in linear.find(model).values() if layer.weight == "w0"]
    depth.refit(found, model, first, np.zeros(0, np.int64), recover.Calibration(Arrays({"x": x}), tmp_path, 1, 0, 16))
    np.testing.assert_array_equal(model.graph.initializers["w0"].const_value.numpy(), n.weights["w0"])


def test_losses_are_the_errors_after_at_most_four_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, done = analysed(), []
    source = recover.Calibration(images(32), tmp_path, 1, 0, 32)
    trial = sensitivity.prepare(found.model, found.coupling, source, 2, 1e5)
    refits: list[int] = []
    monkeypatch.setattr(depth, "refit", lambda plan, model, near, *rest: refits.append(len(near)))
    monkeypatch.setattr(depth, "NEAR", 3)
    dropped = branches.find(found.model, found.coupling.facts)
    losses = depth.losses(found, dropped, trial, lambda: done.append(1))
    assert losses == [trial.error(branches.drop(found.model, [branch])[0]) for branch in dropped]
    assert refits == [3, 2]
    assert done == [1, 1]


class Price:
    """Numbers whose places tell the columns apart."""

    def __call__(self, widths: NDArray[np.int64]) -> float:
        return float(sum(width * 100**place for place, width in enumerate(widths)))

    def table(self, widths: NDArray[np.int64], group: int, levels: NDArray[np.int64]) -> Floats:
        return np.array([self(np.where(np.arange(len(widths)) == group, level, widths)) for level in levels])


def test_prices_of_groups_do_not_see_columns_of_branches_alone() -> None:
    found = analysed()
    first = dataclasses.replace(found, groups=found.groups[:1])
    columns = depth.columns(first, branches.find(found.model, found.coupling.facts))
    assert columns.count == 3
    assert columns.full.tolist() == [8, 1, 1]
    price, widths = columns.priced(Price()), np.array([5, 1, 0])
    assert price(widths) == 5
    assert price.table(widths, 0, np.array([8, 4])).tolist() == [8, 4]
    assert price.table(widths, 1, np.array([1, 0])).tolist() == [5, 5]
    assert columns.dropped(widths) == [columns.branches[2]]
    assert columns.kept(widths).tolist() == [5]
    left = columns.cut(np.array([8, 0, 1]), [np.arange(8)])
    assert {node.name for node in left.graph}.isdisjoint(columns.branches[1].nodes)


def test_the_smallest_branch_takes_the_first_group_inside_it() -> None:
    """A branch inside another: the inner one gets the inner group, the outer one the next."""
    n = Network(1)
    x = n.conv(n.input("x", "batch", 3, 8, 8), 3, 4)
    inner = n.node("Relu", n.conv(n.node("Relu", x), 4, 5))
    deeper = n.node("Add", inner, n.conv(n.node("Relu", n.conv(inner, 5, 6)), 6, 5))
    total = n.node("Add", x, n.conv(deeper, 5, 4))
    model = n.model(n.node("Gemm", n.node("Flatten", n.node("GlobalAveragePool", total)), n.weight(4, 2), n.weight(2)))
    found = analysis.analysed(model, PruneChannels(step="prune.channels"), {"x": (2, 3, 8, 8)})
    assert [group.channels for group in found.groups] == [4, 5, 6]
    both = branches.find(found.model, found.coupling.facts)
    sizes = {column: len(branch.nodes) for column, branch in depth.columns(found, both).branches.items()}
    assert sizes == {2: 3, 1: max(len(branch.nodes) for branch in both)}
    columns = depth.columns(found, both)
    assert columns.kept(np.array([3, 0, 2])).tolist() == [3, 5, 6]
    assert columns.kept(np.array([3, 4, 0])).tolist() == [3, 4, 6]
    assert columns.kept(np.array([3, 4, 2])).tolist() == [3, 4, 2]


def test_channels_go_in_the_order_given_down_to_the_widths() -> None:
    found = analysed()
    columns = depth.columns(found, ())
    orders = [np.random.default_rng(0).permutation(group.channels) for group in found.groups]
    widths = np.array([5, 12, 7])
    left = columns.cut(widths, orders)
    gone = [
        group.atoms[order[: group.channels - w]] for group, order, w in zip(found.groups, orders, widths, strict=True)
    ]
    wanted = cut.cut(found.model, found.coupling, np.concatenate(gone))
    assert io.to_bytes(left) == io.to_bytes(wanted)
    assert io.to_bytes(columns.cut(columns.full, orders)) == io.to_bytes(found.model)


def test_a_feature_that_is_always_zero_keeps_its_weights_and_the_others_are_fitted(tmp_path: Path) -> None:
    found, n = straight()
    model = io.clone(found.model)
    set_weight(model.graph.initializers["w0"], n.weights["w0"] * np.float32(0.7))
    x = np.random.default_rng(1).normal(0.5, 1, (40, 6)).astype(np.float32)
    x[:, 2] = 0
    source = recover.Calibration(Arrays({"x": x}), tmp_path, 1, 0, 40)
    first = [layer for layer in linear.find(model).values() if layer.weight == "w0"]
    depth.refit(found, model, first, np.zeros(0, np.int64), source)
    rows = np.concatenate([x[5 * k : 5 * k + 5] for k in range(8) if k % 4 != 3]).astype(np.float64)
    a = np.asarray(n.weights["w0"], np.float64)
    wanted = fitted(rows, rows @ a, 0.7 * a, False)
    np.testing.assert_allclose(model.graph.initializers["w0"].const_value.numpy(), wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(wanted[2], 0.7 * a[2], rtol=1e-9)


def test_the_loss_of_whole_widths_is_measured_behind_a_repair(tmp_path: Path) -> None:
    """Inner channels 6 to 11 are halves of 0 to 5: without them nothing is lost, and without 0 to 2 and them, much."""
    found, data = analysed(), images(96)
    source = recover.Calibration(data, context(found.model, tmp_path, data).workdir, 1, 0, 96)
    trial = sensitivity.prepare(found.model, found.coupling, source, 2, 1e5)
    columns = depth.columns(found, branches.find(found.model, found.coupling.facts))
    inner = [place for place, group in enumerate(found.groups) if group.channels == 12]
    assert len(inner) == 2
    last_first = [np.arange(group.channels)[::-1] for group in found.groups]

    def loss(*widths: int) -> tuple[float, float]:
        wanted = columns.full
        wanted[inner] = widths
        raw = trial.error(columns.cut(wanted, last_first))
        assert columns.loss(wanted, last_first, trial, False) == raw
        return columns.loss(wanted, last_first, trial, True), raw

    before = io.to_bytes(found.model)
    repaired, raw = loss(6, 6)
    assert repaired < 1e-3 < 0.05 < raw
    worse, worse_raw = loss(3, 6)
    assert 10 * repaired < worse < worse_raw
    dropped, dropped_raw = loss(6, 0)
    assert 10 * repaired < dropped < dropped_raw
    assert loss(12, 12)[0] == pytest.approx(0, abs=1e-9)
    assert io.to_bytes(found.model) == before
