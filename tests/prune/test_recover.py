"""Repairs against fits worked out with numpy: what they aim at, when they stay, and the errors they tell."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import StepError
from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.probe import linear, moments
from lepton_cli.probe.linear import Linear
from lepton_cli.probe.moments import LayerSample
from lepton_cli.prune import recover
from lepton_cli.prune.recover import Calibration, Repair
from tests.coupling.networks import Network
from tests.prune.context import rectified_ridge, ridge_solution
from tests.prune.recovered import Array, Case, perceptron, rows

RIDGES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)


def relative_error(value: Array, wanted: Array) -> float:
    return float(np.square(value - wanted).sum() / np.square(wanted - wanted.mean(axis=0)).sum())


def held_out(samples: int, each: int) -> NDArray[np.bool_]:
    """Every fourth batch of `each` samples."""
    return np.array([(sample // each) % 4 == 3 for sample in range(samples)])


class Fit:
    """What a repair of one layer should find, on rows `x` of features and `y` of targets."""

    def __init__(
        self, x: Array, y: Array, offset: Array, held: NDArray[np.bool_], start: Array, *, relu: bool, bias: bool = True
    ) -> None:
        self.x, self.y, self.offset, self.held, self.start = (x.astype(np.float64), y, offset, held, start)
        self.relu, self.bias = relu, bias
        self.before = self.error(start)
        rest = ~held
        tries = [(self.error(self.solve(rest, ridge, 0)), ridge, 0) for ridge in RIDGES]
        if relu:
            ridge = min(tries)[1]
            tries.append((self.error(self.solve(rest, ridge, 3)), ridge, 3))
        self.after, self.ridge, self.rounds = min(tries)
        self.final = self.solve(np.ones_like(held), self.ridge, self.rounds)
        self.shift_error, self.shifted = self.error(self.shift(rest)), self.shift(np.ones_like(held))

    def solve(self, rows: NDArray[np.bool_], ridge: float, rounds: int) -> Array:
        x, y, offset = self.x[rows], self.y[rows], self.offset[rows]
        return rectified_ridge(x, y, offset, self.start, ridge, self.bias, rounds)

    def shift(self, rows: NDArray[np.bool_]) -> Array:
        moved = self.start.copy()
        moved[-1] += (self.y - self.offset - self.x @ self.start[:-1] - self.start[-1])[rows].mean(axis=0)
        return moved

    def error(self, solution: Array) -> float:
        value, wanted = (self.x @ solution[:-1] + solution[-1] + self.offset)[self.held], self.y[self.held]
        return (
            relative_error(np.maximum(value, 0), np.maximum(wanted, 0)) if self.relu else relative_error(value, wanted)
        )


def parameters(model: ir.Model, node: str, bias: bool = True) -> Array:
    """[weight, bias] of a Gemm that does not transpose."""
    layer = next(one for one in model.graph if one.name == node)
    arrays = [value.const_value.numpy() for value in layer.inputs[1:] if value is not None and value.const_value]
    return np.concatenate([arrays[0], arrays[1][None] if bias else np.zeros((1, arrays[0].shape[1]))]).astype(
        np.float64
    )


def one_layer(case: Case, relu: bool) -> Fit:
    """Fit of the perceptron's Gemm_2 to its own output in the reference."""
    (x,), (y,) = case.now("Tanh_1_out"), case.then("Gemm_2_out")
    held = held_out(len(case.x), max(1, min(32, len(case.x) // 8)))
    return Fit(x, y, np.zeros_like(y), held, parameters(case.model, "Gemm_2"), relu=relu)


@pytest.mark.parametrize("samples", [48, 90])
def test_a_layer_is_fitted_to_what_the_reference_computed(samples: int, tmp_path: Path) -> None:
    case = Case(perceptron(), [("Gemm_0_out", [1, 4])], rows(samples), tmp_path)
    expected = one_layer(case, relu=False)
    (repair,) = case.repair(["Gemm_2"])
    assert (repair.node, repair.kind, repair.kept, repair.scarce) == ("Gemm_2", "least_squares", True, False)
    assert repair.error_before == pytest.approx(expected.before, rel=1e-3)
    assert repair.error_after == pytest.approx(expected.after, rel=1e-3)
    assert repair.error_after < 0.8 * repair.error_before
    np.testing.assert_allclose(parameters(case.model, "Gemm_2"), expected.final, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("seed", "rounds"), [(0, 0), (1, 3), (7, 3)])
def test_with_a_relu_behind_only_what_it_lets_through_counts(seed: int, rounds: int, tmp_path: Path) -> None:
    case = Case(perceptron("Relu", seed), [("Gemm_0_out", [0, 3, 5])], rows(64, seed=seed), tmp_path)
    expected = one_layer(case, relu=True)
    assert expected.rounds == rounds
    (repair,) = case.repair(["Gemm_2"])
    assert repair.kept
    assert repair.error_before == pytest.approx(expected.before, rel=1e-3)
    assert repair.error_after == pytest.approx(expected.after, rel=2e-3)
    np.testing.assert_allclose(parameters(case.model, "Gemm_2"), expected.final, rtol=5e-3, atol=5e-3)


def test_bias_correction_alone_moves_the_bias_alone(tmp_path: Path) -> None:
    case = Case(perceptron(seed=1), [("Gemm_0_out", [2, 7])], rows(48, seed=1), tmp_path)
    expected = one_layer(case, relu=False)
    (repair,) = case.repair(["Gemm_2"], kinds=["bias"])
    assert (repair.kind, repair.kept) == ("bias", True)
    assert repair.error_before == pytest.approx(expected.before, rel=1e-3)
    assert repair.error_after == pytest.approx(expected.shift_error, rel=1e-3)
    np.testing.assert_allclose(parameters(case.model, "Gemm_2"), expected.shifted, rtol=1e-4, atol=1e-5)


def test_other_kinds_and_layers_without_a_bias_are_not_tried(tmp_path: Path) -> None:
    case = Case(perceptron(), [("Gemm_0_out", [2, 7])], rows(48), tmp_path)
    expected, start = one_layer(case, relu=False), parameters(case.model, "Gemm_2")
    (repair,) = case.repair(["Gemm_2"], kinds=["batch_norm"])
    assert repair == Repair("Gemm_2", "none", False, repair.error_before, repair.error_before, False)
    assert repair.error_before == pytest.approx(expected.before, rel=1e-3)
    np.testing.assert_array_equal(parameters(case.model, "Gemm_2"), start)


def matmul(bias: bool = False) -> ir.Model:
    n = Network()
    hidden = n.node("Tanh", n.node("Gemm", n.input("x", "batch", 6), n.weight(6, 8), n.weight(8)))
    product = n.node("MatMul", hidden, n.weight(8, 4))
    return n.model(n.node("Neg", n.node("Add", product, n.weight(4)) if bias else product))


def test_without_a_place_for_a_bias_the_fit_goes_through_the_origin(tmp_path: Path) -> None:
    case = Case(matmul(), [("Gemm_0_out", [1, 4])], rows(48), tmp_path)
    (x,), (y,) = case.now("Tanh_1_out"), case.then("MatMul_2_out")
    start = parameters(case.model, "MatMul_2", bias=False)
    expected = Fit(x, y, np.zeros_like(y), held_out(48, 6), start, relu=False, bias=False)
    (none,) = case.repair(["MatMul_2"], kinds=["bias"])
    assert (none.kind, none.kept) == ("none", False)
    (repair,) = case.repair(["MatMul_2"])
    assert (repair.kind, repair.kept) == ("least_squares", True)
    assert repair.error_before == pytest.approx(expected.before, rel=1e-3)
    assert repair.error_after == pytest.approx(expected.after, rel=1e-3)
    np.testing.assert_allclose(parameters(case.model, "MatMul_2", bias=False), expected.final, rtol=2e-3, atol=2e-3)


def test_the_bias_of_a_products_add_is_fitted_with_it(tmp_path: Path) -> None:
    case = Case(matmul(bias=True), [("Gemm_0_out", [1, 4])], rows(48), tmp_path)
    (x,), (y,) = case.now("Tanh_1_out"), case.then("Add_3_out")
    layer = linear.find(case.model)["MatMul_2"]
    start = np.concatenate([linear.matrix_of(case.model, layer), [linear.bias_of(case.model, layer)]])
    expected = Fit(x, y, np.zeros_like(y), held_out(48, 6), start, relu=False)
    (repair,) = case.repair(["MatMul_2"])
    assert repair.error_after == pytest.approx(expected.after, rel=1e-3)
    found = np.concatenate([linear.matrix_of(case.model, layer), [linear.bias_of(case.model, layer)]])
    np.testing.assert_allclose(found, expected.final, rtol=2e-3, atol=2e-3)


def contradicted(held_like_the_rest: bool, folder: Path) -> Case:
    """One hidden channel is the negative of the other on the rows to fit, and its equal on the held-out ones."""
    n = Network()
    hidden = n.node("Tanh", n.node("Gemm", n.input("x", "batch", 2), n.weight(values=np.eye(2, dtype=np.float32))))
    weight = np.array([[1.0], [1.0]], np.float32)
    model = n.model(
        n.node("Neg", n.node("Gemm", hidden, n.weight(values=weight), n.weight(values=np.ones(1, np.float32))))
    )
    one = np.random.default_rng(0).uniform(0.5, 1, 48)
    sign = np.where(held_out(48, 6) & (not held_like_the_rest), 1, -0.5)
    return Case(model, [("Gemm_0_out", [1])], np.stack([one, sign * one], axis=1).astype(np.float32), folder)


def test_a_repair_that_held_out_rows_confirm_is_kept(tmp_path: Path) -> None:
    case = contradicted(True, tmp_path)
    (repair,) = case.repair(["Gemm_2"])
    assert repair.kept
    assert repair.error_after < 0.001 * repair.error_before


@pytest.mark.parametrize("kinds", [["least_squares"], ["bias"], ["least_squares", "bias"]])
def test_a_repair_that_held_out_rows_contradict_is_refused(kinds: list[str], tmp_path: Path) -> None:
    case = contradicted(False, tmp_path)
    before, expected = io.to_bytes(case.model), one_layer(case, relu=False)
    (repair,) = case.repair(["Gemm_2"], kinds=kinds)
    assert not repair.kept
    after = {"least_squares": expected.after, "bias": expected.shift_error}
    assert repair.error_before == pytest.approx(expected.before, rel=1e-3)
    assert repair.error_after == pytest.approx(min(after[kind] for kind in kinds), rel=1e-3)
    assert repair.kind == min(kinds, key=lambda kind: after[kind])
    assert repair.error_after > repair.error_before
    assert io.to_bytes(case.model) == before


@pytest.mark.parametrize(("share", "kept"), [(0.0008, False), (0.0012, True)])
def test_a_repair_must_take_a_thousandth_of_the_error(share: float, kept: bool, tmp_path: Path) -> None:
    """The missing feature is +-1 and a mean: a shifted bias takes only the mean's square from the error."""
    n = Network()
    weights = [n.weight(values=np.array([[1.0], [1.0]], np.float32)), n.weight(values=np.zeros(1, np.float32))]
    model = n.model(n.node("Neg", n.node("Gemm", n.input("x", "batch", 2), *weights)))
    noise = np.tile([1.0, -1.0], 24) + np.sqrt(share)
    case = Case(model, [], np.stack([np.linspace(-9, 9, 48), noise], axis=1).astype(np.float32), tmp_path)
    set_weight(case.model.graph.initializers["w0"], np.array([[1.0], [0.0]], np.float32))
    (repair,) = case.repair(["Gemm_0"], kinds=["bias"])
    assert repair.error_after / repair.error_before == pytest.approx(1 / (1 + share), rel=1e-5)
    assert repair.kept is kept


@pytest.mark.parametrize(("samples", "scarce"), [(13, True), (14, False)])
def test_fewer_rows_than_two_a_feature_and_the_constant_are_scarce(samples: int, scarce: bool, tmp_path: Path) -> None:
    case = Case(perceptron(), [("Gemm_0_out", [1, 4])], rows(samples), tmp_path)
    assert [repair.scarce for repair in case.repair(["Gemm_2"])] == [scarce]


def test_with_too_few_batches_to_hold_one_out_the_rows_judge_themselves(tmp_path: Path) -> None:
    case = Case(perceptron(), [("Gemm_0_out", [1, 4])], rows(3), tmp_path)
    (x,), (y,) = case.now("Tanh_1_out"), case.then("Gemm_2_out")
    start = parameters(case.model, "Gemm_2")
    before = relative_error(x @ start[:-1] + start[-1], y)
    solutions = [ridge_solution(x, y.astype(np.float64), start, ridge, True) for ridge in RIDGES]
    errors = [relative_error(x @ solution[:-1] + solution[-1], y) for solution in solutions]
    moved = start[-1] + (y - x @ start[:-1] - start[-1]).mean(axis=0)
    shifted = case.repair(["Gemm_2"], kinds=["bias"])[0]
    assert shifted.error_before == pytest.approx(before, rel=1e-3)
    assert shifted.error_after == pytest.approx(relative_error(x @ start[:-1] + moved, y), rel=1e-3)
    case = Case(perceptron(), [("Gemm_0_out", [1, 4])], rows(3), tmp_path)
    (repair,) = case.repair(["Gemm_2"])
    assert repair.error_before == pytest.approx(before, rel=1e-3)
    assert repair.error_after == pytest.approx(min(errors), abs=1e-6)
    found = parameters(case.model, "Gemm_2")  # three rows leave directions free, in which rounding decides
    np.testing.assert_allclose(x @ found[:-1] + found[-1], y, atol=1e-4)


def block(last: str = "Neg") -> ir.Model:
    """A stem, a shortcut of its own (Gemm_2 with Tanh) and a branch (Gemm_4, Tanh, Gemm_6), added up."""
    n = Network(2)
    stem = n.node("Tanh", n.node("Gemm", n.input("x", "batch", 6), n.weight(6, 8), n.weight(8)))
    short = n.node("Tanh", n.node("Gemm", stem, n.weight(8, 5), n.weight(5)))
    inner = n.node("Tanh", n.node("Gemm", stem, n.weight(8, 7), n.weight(7)))
    branch = n.node("Gemm", inner, n.weight(7, 5), n.weight(5))
    return n.model(n.node(last, n.node("Add", short, branch)))


@pytest.mark.parametrize("last", ["Neg", "Relu"])
def test_at_a_residual_add_a_layer_is_fitted_to_the_sum_without_the_pruned_shortcut(last: str, tmp_path: Path) -> None:
    case = Case(block(last), [("Gemm_0_out", [0, 5]), ("Gemm_4_out", [1, 3])], rows(96, seed=1), tmp_path)
    x, short = case.now("Tanh_5_out", "Tanh_3_out")
    total, own = case.then("Add_7_out", "Gemm_6_out")
    start, held = parameters(case.model, "Gemm_6"), held_out(96, 12)
    expected = Fit(x, total, short.astype(np.float64), held, start, relu=last == "Relu")
    (repair,) = case.repair(["Gemm_6"])
    assert repair.kept
    assert repair.error_before == pytest.approx(expected.before, rel=1e-3)
    assert repair.error_after == pytest.approx(expected.after, rel=2e-3)
    found = parameters(case.model, "Gemm_6")
    np.testing.assert_allclose(found, expected.final, rtol=5e-3, atol=5e-3)
    other = Fit(x, own, np.zeros_like(own), held, start, relu=False)
    assert np.abs(other.final - found).max() > 0.05
    errors = [relative_error((x @ w[:-1] + w[-1] + short)[held], total[held]) for w in (found, other.final)]
    assert errors[0] < 0.8 * errors[1]


def test_layers_of_one_stage_are_fitted_each_to_its_own_target(tmp_path: Path) -> None:
    case = Case(block(), [("Gemm_0_out", [0, 5]), ("Gemm_4_out", [1, 3])], rows(96), tmp_path)
    (x,) = case.now("Tanh_1_out")
    keep = [0, 2, 4, 5, 6]
    fits = {
        node: Fit(x, y, np.zeros_like(y), held_out(96, 12), parameters(case.model, node), relu=False)
        for node, y in (("Gemm_2", case.then("Gemm_2_out")[0]), ("Gemm_4", case.then("Gemm_4_out")[0][:, keep]))
    }
    for repair in case.repair(["Gemm_2", "Gemm_4"]):
        expected = fits[repair.node]
        assert repair.error_before == pytest.approx(expected.before, rel=1e-3)
        assert repair.error_after == pytest.approx(expected.after, rel=1e-3)
        np.testing.assert_allclose(parameters(case.model, repair.node), expected.final, rtol=2e-3, atol=2e-3)


def test_later_layers_see_what_earlier_repairs_made_of_their_input(tmp_path: Path) -> None:
    """One walk over all stages is the same as a new one for each."""
    cases = [Case(block(), [("Gemm_0_out", [0, 5]), ("Gemm_4_out", [1, 3])], rows(96), tmp_path) for _ in range(2)]
    together = cases[0].repair(["Gemm_2", "Gemm_4"], ["Gemm_6"])
    apart = [*cases[1].repair(["Gemm_2", "Gemm_4"]), *cases[1].repair(["Gemm_6"])]
    for one, two in zip(together, apart, strict=True):
        assert one.error_before == pytest.approx(two.error_before, rel=1e-5)
        assert one.error_after == pytest.approx(two.error_after, rel=1e-5)


def convolutions() -> ir.Model:
    n = Network(4)
    stem = n.node("Tanh", n.conv(n.input("x", "batch", 2, 5, 5), 2, 6))
    return n.model(n.node("Neg", n.node("Conv", stem, n.weight(3, 6, 2, 2), strides=[2, 1], pads=[0, 1, 1, 0])))


def test_a_convolution_is_fitted_over_its_windows_and_gets_a_bias(tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(0.5, 1, (24, 2, 5, 5)).astype(np.float32)
    case = Case(convolutions(), [("Conv_0_out", [1, 2])], x, tmp_path)
    (inner,), (target,) = case.now("Tanh_1_out"), case.then("Conv_2_out")
    padded = np.pad(inner, [(0, 0), (0, 0), (0, 1), (1, 0)])
    places = list(itertools.product(range(target.shape[2]), range(target.shape[3])))
    windows = np.array([s[:, 2 * i : 2 * i + 2, j : j + 2].ravel() for s in padded for i, j in places])
    wanted = np.array([s[:, i, j] for s in target for i, j in places])
    weight = case.model.graph.initializers["w2"].const_value
    assert weight is not None
    start = np.concatenate([weight.numpy().reshape(3, -1).T, np.zeros((1, 3))]).astype(np.float64)
    held = np.repeat(held_out(24, 3), len(places))
    expected = Fit(windows, wanted, np.zeros_like(wanted), held, start, relu=False)
    (repair,) = case.repair(["Conv_2"])
    assert repair.kept
    assert repair.error_before == pytest.approx(expected.before, rel=1e-3)
    assert repair.error_after == pytest.approx(expected.after, rel=1e-3)
    layer = linear.find(case.model)["Conv_2"]
    found = np.concatenate([linear.matrix_of(case.model, layer), [linear.bias_of(case.model, layer)]])
    np.testing.assert_allclose(found, expected.final, rtol=2e-3, atol=2e-3)


def test_every_batch_gives_its_share_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LayerSample] = []

    def spy(
        *arguments: Any, original: Callable[..., dict[str, LayerSample]] = moments.sample
    ) -> dict[str, LayerSample]:
        found = original(*arguments)
        seen.extend(found.values())
        return found

    monkeypatch.setattr(moments, "sample", spy)
    monkeypatch.setattr(moments, "ROWS", 160)
    x = np.random.default_rng(3).normal(size=(24, 2, 5, 5)).astype(np.float32)
    case = Case(convolutions(), [("Conv_0_out", [1, 2])], x, tmp_path)
    case.repair(["Conv_2"])
    (rows,) = seen
    assert len(rows.x) == 160
    assert rows.held.sum() == 40


@pytest.mark.parametrize("value", ["w0", "w2"])
def test_activations_that_are_not_finite_stop_the_repair(value: str, tmp_path: Path) -> None:
    """In the pruned model's features or in the reference's targets."""
    case = Case(perceptron(), [("Gemm_0_out", [1])], rows(16), tmp_path)
    model = case.model if value == "w0" else case.reference
    tensor = model.graph.initializers[value].const_value
    assert tensor is not None
    set_weight(model.graph.initializers[value], tensor.numpy() * np.float32(np.nan))
    with pytest.raises(StepError) as caught:
        case.repair(["Gemm_2"])
    assert caught.value.code == "prune.non-finite"


def test_what_the_walks_keep_is_gone_when_they_are_closed(tmp_path: Path) -> None:
    case = Case(perceptron(), [("Gemm_0_out", [1])], rows(16), tmp_path)
    repairer = case.repairer(["bias"])
    repairer.repair(case.model, [linear.find(case.model)["Gemm_2"]])
    assert len(list(tmp_path.iterdir())) == 2
    repairer.close()
    assert list(tmp_path.iterdir()) == []


def test_error_is_the_squared_error_as_a_share_of_the_spread_after_the_relu() -> None:
    random = np.random.default_rng(0)
    x, y, offset = (random.normal(0.3, 1, (9, width)).astype(np.float32) for width in (3, 2, 2))
    which = np.arange(9) != 4
    solution = random.normal(size=(4, 2))
    for relu in (False, True):
        total = spread = 0.0
        wanted = np.maximum(y, 0) if relu else y
        for i in range(9):
            for k in range(2):
                value = sum(float(x[i, j]) * solution[j, k] for j in range(3)) + solution[3, k] + float(offset[i, k])
                value = max(value, 0.0) if relu else value
                total += which[i] * (value - float(wanted[i, k])) ** 2
                spread += which[i] * float(wanted[i, k] - wanted[which, k].astype(np.float64).mean()) ** 2
        found = recover.error(LayerSample(x, y, offset, which), which, solution, relu)
        assert found == pytest.approx(total / spread, rel=1e-5)


def test_error_against_targets_that_never_change_is_finite() -> None:
    x, y = np.ones((4, 1), np.float32), np.full((4, 1), 2, np.float32)
    everything = np.ones(4, np.bool_)
    rows = LayerSample(x, y, np.zeros_like(y), everything)
    assert recover.error(rows, everything, np.array([[1.0], [0.5]]), False) == pytest.approx(4 * 0.25 / 1e-30)
    assert recover.error(rows, everything, np.array([[1.0], [1.0]]), False) == 0


def test_ridges_rise_from_a_hundred_thousandth_to_one_in_steps_of_ten_at_most() -> None:
    assert recover.RIDGES[0] == 1e-5
    assert recover.RIDGES[-1] == 1
    assert all(1 < after / before < 10.1 for before, after in itertools.pairwise(recover.RIDGES))


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [
        (1, [1]),
        (3, [1, 1, 1]),
        (15, [1] * 15),
        (16, [2] * 8),
        (19, [2] * 9 + [1]),
        (100, [12] * 8 + [4]),
        (255, [31] * 8 + [7]),
        (300, [32] * 9 + [12]),
    ],
)
def test_batches_are_so_small_that_every_fourth_can_be_held_out(samples: int, sizes: list[int], tmp_path: Path) -> None:
    x = np.arange(400.0).reshape(400, 1).astype(np.float32)
    n = Network()
    model = n.model(n.node("Neg", n.input("x", "batch", 1)))
    source = Calibration(Arrays({"x": x}), tmp_path, 1, 0, samples)
    starts = [int(start) for start in np.cumsum([0, *sizes])[:-1]]

    def where(batches: Any) -> list[int]:
        return [int(batch["x"][0, 0]) for batch in batches]

    assert [len(batch["x"]) for batch in recover.batches(model, source)] == sizes
    assert recover.count(model, source) == len(sizes)
    held = starts[3::4]
    assert where(recover.batches(model, source)) == starts
    assert where(recover.fitting(model, source)) == [start for start in starts if start not in held]
    assert where(recover.judging(model, source, 10_000)) == (held or [0])
    assert where(recover.judging(model, source, 1)) == (held[:1] or [0])
    assert where(recover.judging(model, source, sizes[0] + 1)) == (held[:2] or [0])
    assert where(recover.judging(model, source, 2 * sizes[0])) == (held[:2] or [0])


def test_no_samples_are_one_batch(tmp_path: Path) -> None:
    n = Network()
    model = n.model(n.node("Neg", n.input("x", "batch", 2)))
    assert recover.count(model, Calibration(Arrays({"x": rows(2)}), tmp_path, 1, 0, 0)) == 1


def test_batches_are_counted_as_the_model_takes_them(tmp_path: Path) -> None:
    """A model with a batch of one, and a graph without any axis for samples: forty feeds, ten of them held out."""
    fixed, free = Network(), Network()
    models = [
        fixed.model(fixed.node("Neg", fixed.input("x", 1, 3))),
        free.model(free.node("Neg", free.input("x", "nodes", 3))),
    ]
    random = np.random.default_rng(0)
    stored = [random.normal(size=shape).astype(np.float32) for shape in ((40, 3), (40, 5, 3))]
    for model, array in zip(models, stored, strict=True):
        data = Arrays({"x": array}, inputs=io.inputs(model))
        source = Calibration(data, tmp_path, 1, 0, 40)
        assert len(list(recover.batches(model, source))) == recover.count(model, source) == 40
        assert len(list(recover.fitting(model, source))) == 30
        assert len(recover.judging(model, source, 3)) == 3


def layer(node: str, read: str) -> Linear:
    return Linear(node, "Gemm", "w", read, "y", "y", None, False, 0, 1)


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ("", []),
        ("a", ["0"]),
        ("ab", ["0", "1"]),
        ("aabb", ["01", "23"]),
        ("aba", ["0", "1", "2"]),
        ("aaaa", ["0123"]),
        ("aaaaaab", ["0123", "45", "6"]),
    ],
)
def test_stages_are_runs_of_layers_that_read_the_same_four_at_most(reads: str, expected: list[str]) -> None:
    layers = [layer(str(number), read) for number, read in enumerate(reads)]
    assert ["".join(one.node for one in stage) for stage in recover.stages(layers)] == expected


def test_facts_are_the_fields_of_the_repairs_in_order() -> None:
    repairs = [Repair("a", "bias", True, 0.5, 0.25), Repair("b", "none", False, 1.0, 1.0, scarce=True)]
    fields = ("node", "kind", "kept", "error_before", "error_after", "scarce")
    assert [one.model_dump() for one in recover.facts(repairs)] == [
        dict(zip(fields, ("a", "bias", True, 0.5, 0.25, False), strict=True)),
        dict(zip(fields, ("b", "none", False, 1.0, 1.0, True), strict=True)),
    ]
