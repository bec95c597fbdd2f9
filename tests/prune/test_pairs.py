"""Fits of two layers at once against float64 arithmetic, finite differences and numpy's least squares."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import StepError
from lepton_cli.probe import linear
from lepton_cli.probe.moments import Aim
from lepton_cli.prune import pairs
from lepton_cli.prune.pairs import PairFit
from lepton_cli.prune.recover import Calibration, Repairer
from lepton_cli.runtime import Values
from tests.coupling.networks import Network, analysed
from tests.prune.context import whole

Array = NDArray[Any]


@pytest.mark.parametrize(
    ("shape", "kernel", "attributes"),
    [
        ((2, 3, 7, 6), (3, 3), {"pads": [1, 1, 1, 1]}),
        ((2, 3, 8, 7), (3, 2), {"pads": [0, 2, 1, 0], "strides": [2, 3]}),
        ((1, 2, 9, 9), (3, 3), {"dilations": [2, 3], "pads": [2, 0, 1, 3]}),
        ((2, 4, 5, 5), (1, 1), {}),
        ((3, 2, 11), (4,), {"pads": [1, 2], "strides": [2]}),
    ],
)
def test_the_adjoint_has_the_same_products_as_the_features(
    shape: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    n = Network()
    x = n.input("x", *shape)
    out = n.node("Conv", x, n.weight(5, shape[1], *kernel), **attributes)
    (layer,) = linear.find(n.model(out)).values()
    random = np.random.default_rng(1)
    values = random.normal(size=shape).astype(np.float32)
    features = layer.features(values)
    rows = random.normal(size=features.shape).astype(np.float32)
    back = pairs.adjoint(layer, rows, shape)
    assert back.shape == shape
    assert np.vdot(features.astype(np.float64), rows) == pytest.approx(np.vdot(values.astype(np.float64), back), 1e-4)


def test_the_adjoint_of_rows_is_the_rows() -> None:
    n = Network()
    (layer,) = linear.find(n.model(n.linear(n.input("x", 4, 3), 3, 2))).values()
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(pairs.adjoint(layer, rows, (4, 3)), rows)


class Dense:
    """Gemm, ReLU, Gemm (or two), with targets from other weights; batches of eight, every fourth held out."""

    def __init__(self, hidden: int = 3, readers: int = 1, samples: int = 512, seed: int = 0) -> None:
        n = Network(seed)
        x = n.input("x", "batch", 4)
        h = n.node("Relu", n.linear(x, 4, hidden))
        outs = [n.linear(h, hidden, 2) for _ in range(readers)]
        self.model = n.model(*outs)
        self.first, *self.readers = linear.find(self.model).values()
        random = np.random.default_rng(seed + 1)
        self.x = random.normal(size=(samples, 4)).astype(np.float32)
        self.held = np.arange(samples) // 8 % 4 == 3
        self.offset = random.normal(size=(samples, 2)).astype(np.float32)
        first, *seconds = (part + random.normal(0, 0.2, part.shape) for part in self.start())
        h = np.maximum(self.x @ first[:-1] + first[-1], 0)
        self.y = [(h @ second[:-1] + second[-1] + self.offset).astype(np.float32) for second in seconds]

    def start(self) -> list[Array]:
        layers = (self.first, *self.readers)
        return [
            np.concatenate([linear.matrix_of(self.model, one), np.asarray(linear.bias_of(self.model, one))[None]])
            for one in layers
        ]

    def values(self) -> Iterator[tuple[Values, Values]]:
        solution = self.start()[0]
        hidden = np.maximum(self.x @ solution[:-1] + solution[-1], 0).astype(np.float32)
        for k in range(0, len(self.x), 8):
            now = {"x": self.x[k : k + 8], self.readers[0].input: hidden[k : k + 8], "shortcut": self.offset[k : k + 8]}
            yield now, {f"y{i}": y[k : k + 8] for i, y in enumerate(self.y)}

    def fit(self, rectified: bool = False, values: Iterator[tuple[Values, Values]] | None = None) -> PairFit | None:
        aimed = [(layer, Aim(f"y{i}", "shortcut", None, rectified)) for i, layer in enumerate(self.readers)]
        return pairs.fit(self.model, self.first, aimed, values or self.values(), 8 / len(self.x))

    def error(self, solutions: Sequence[Array], rectified: bool, held: bool = True) -> float:
        """Squared error of some rows over the variance of all, a mean over the readers."""
        rows = self.held if held else ~self.held
        found = []
        for y, solution in zip(self.y, solutions[1:], strict=True):
            hidden = np.maximum(self.x @ solutions[0][:-1] + solutions[0][-1], 0)
            guess, wanted = hidden @ solution[:-1] + solution[-1] + self.offset, y.astype(np.float64)
            if rectified:
                # To fit, what is below zero and should not be is drawn up; judged is what the ReLU gives.
                guess = np.maximum(guess, 0) if held else np.where(wanted > 0, guess, np.maximum(guess, 0))
                wanted = np.maximum(wanted, 0)
            found.append(np.square(guess - wanted)[rows].mean() / np.square(wanted - wanted.mean(axis=0)).mean())
        return float(np.mean(found))

    def solutions(self, found: PairFit) -> list[Array]:
        return [found.solutions[layer.node] for layer in (self.first, *self.readers)]


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("readers", [1, 2])
def test_errors_are_those_of_the_solutions_and_both_layers_do_better_than_the_second_alone(
    readers: int, rectified: bool
) -> None:
    case = Dense(readers=readers)
    found = case.fit(rectified)
    assert found is not None
    assert found.error_before == pytest.approx(case.error(case.start(), rectified), 1e-4)
    assert found.error_after == pytest.approx(case.error(case.solutions(found), rectified), 1e-4)
    first = case.start()[0]
    hidden = np.maximum(case.x @ first[:-1] + first[-1], 0)
    h = np.concatenate([hidden, np.ones((len(hidden), 1))], axis=1)[~case.held]
    alone = [np.linalg.lstsq(h, (y - case.offset)[~case.held], rcond=None)[0] for y in case.y]
    if not rectified:
        assert found.error_after < 0.8 * case.error([first, *alone], False)
    assert found.error_after < 0.5 * found.error_before


@pytest.mark.parametrize("rectified", [False, True])
def test_a_step_is_the_best_sum_of_multiplied_gradients(rectified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients and effects by finite differences, lengths by numpy's least squares."""
    monkeypatch.setattr(pairs, "STEPS", 1)
    case = Dense()
    found = case.fit(rectified)
    assert found is not None
    start = case.start()

    def gradient(index: int) -> Array:
        result = np.zeros_like(start[index])
        for place in np.ndindex(*result.shape):
            moved = [s.copy() for s in start]
            ends = []
            for sign in (1, -1):
                moved[index][place] = start[index][place] + sign * 1e-6
                ends.append(case.error(moved, rectified, held=False))
            result[place] = (ends[0] - ends[1]) / 2e-6
        return result

    def outputs(first: Array, second: Array) -> Array:
        return np.asarray(np.maximum(case.x @ first[:-1] + first[-1], 0)[~case.held] @ second[:-1] + second[-1])

    hidden = np.maximum(case.x @ start[0][:-1] + start[0][-1], 0)
    changes = []
    for index, x in enumerate((case.x, hidden)):
        rows = np.concatenate([x[~case.held], np.ones((int((~case.held).sum()), 1))], axis=1).astype(np.float64)
        gram = rows.T @ rows
        gram[:-1, :-1] += 1e-3 * np.diag(gram)[:-1].mean() * np.eye(len(gram) - 1)
        changes.append(np.linalg.solve(gram, gradient(index)))
    size = 1e-5 / np.abs(changes[0]).max()
    now = outputs(*start)
    effects = [
        (outputs(start[0] + size * changes[0], start[1]) - now) / size,
        outputs(start[0], start[1] + changes[1]) - now,
    ]
    guess, wanted = now + case.offset[~case.held], case.y[0][~case.held].astype(np.float64)
    matters = (guess > 0) | (wanted > 0) if rectified else np.ones_like(guess, np.bool_)
    lack = (np.maximum(wanted, 0) if rectified else wanted) - guess
    lengths = np.linalg.lstsq(np.stack([effect[matters] for effect in effects], 1), lack[matters], rcond=None)[0]
    for after, before, length, change in zip(case.solutions(found), start, lengths, changes, strict=True):
        np.testing.assert_allclose(after, before + length * change, rtol=5e-3, atol=2e-3)


def test_more_steps_are_taken_only_while_held_out_samples_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Dense()
    errors = []
    for steps in (1, 2, 6):
        monkeypatch.setattr(pairs, "STEPS", steps)
        found = case.fit()
        assert found is not None
        errors.append(found.error_after)
    assert errors[0] > errors[1] > errors[2]
    monkeypatch.setattr(pairs, "GAIN", 0.99)
    stopped = case.fit()
    assert stopped is not None
    assert stopped.error_after == pytest.approx(errors[0])


def test_what_does_not_help_on_held_out_samples_is_left() -> None:
    case = Dense()
    start = case.start()
    hidden = np.maximum(case.x @ start[0][:-1] + start[0][-1], 0)
    right = (hidden @ start[1][:-1] + start[1][-1] + case.offset).astype(np.float32)
    case.y = [np.where(case.held[:, None], right, case.y[0])]
    found = case.fit()
    assert found is not None
    assert found.error_after == found.error_before == pytest.approx(0, abs=1e-9)
    for after, before in zip(case.solutions(found), start, strict=True):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("samples", [24, 64])
def test_too_few_samples_are_no_base(samples: int) -> None:
    """24: no batch is held out. 64: fewer than sixteen rows for each of five features."""
    assert Dense(samples=samples).fit() is None


def test_samples_of_another_size_are_left_out() -> None:
    case = Dense()

    def ragged(times: int) -> Iterator[tuple[Values, Values]]:
        for number, (now, then) in enumerate(case.values()):
            if number == 5:
                now = {name: np.repeat(array, times, axis=0).reshape(8, times, -1) for name, array in now.items()}
            yield now, then

    one, other, all_of_them = case.fit(values=ragged(2)), case.fit(values=ragged(3)), case.fit()
    assert one is not None
    assert other is not None
    assert all_of_them is not None
    np.testing.assert_array_equal(one.solutions[case.first.node], other.solutions[case.first.node])
    assert not np.array_equal(one.solutions[case.first.node], all_of_them.solutions[case.first.node])


def test_infinities_are_told() -> None:
    case = Dense()
    case.y[0][3] = np.inf
    with pytest.raises(StepError, match="not finite"):
        case.fit()


def _plain(n: Network, h: str) -> list[str]:
    return [n.conv(n.node("Relu", h), 4, 3)]


def _two(n: Network, h: str) -> list[str]:
    relu = n.node("Relu", h)
    return [n.conv(relu, 4, 3), n.conv(relu, 4, 2, kernel=1)]


def _also_pooled(n: Network, h: str) -> list[str]:
    relu = n.node("Relu", h)
    return [n.conv(relu, 4, 3), n.node("GlobalAveragePool", relu)]


def _before_too(n: Network, h: str) -> list[str]:
    return [n.conv(n.node("Relu", h), 4, 3), n.node("Sigmoid", h)]


def _given_out(n: Network, h: str) -> list[str]:
    relu = n.node("Relu", h)
    return [n.conv(relu, 4, 3), relu]


def _no_relu(n: Network, h: str) -> list[str]:
    return [n.conv(n.node("Sigmoid", h), 4, 3)]


def _none(n: Network, h: str) -> list[str]:
    return [n.conv(h, 4, 3)]


def _padded_by_name(n: Network, h: str) -> list[str]:
    return [n.node("Conv", n.node("Relu", h), n.weight(3, 4, 3, 3), auto_pad="SAME_UPPER")]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (_plain, True),
        (_two, True),
        (_also_pooled, False),
        (_before_too, False),
        (_given_out, False),
        (_no_relu, False),
        (_none, False),
        (_padded_by_name, False),
    ],
)
def test_the_first_layer_is_one_that_only_these_read(
    build: Callable[[Network, str], list[str]], expected: bool
) -> None:
    n = Network()
    h = n.conv(n.input("x", "batch", 3, 6, 6), 3, 4)
    model = n.model(*build(n, h))
    first, *readers = linear.find(model).values()
    assert pairs.first_of(model, readers) == (first if expected else None)


class Block:
    """A residual block of a model of convolutions, with a pruned model that has other inner weights."""

    def __init__(self, folder: Path, bias: bool = True) -> None:
        def build(seed: int, inner: int) -> ir.Model:
            n = Network(7)
            x = n.node("Relu", n.conv(n.input("x", "batch", 3, 6, 6), 3, 4))
            n.random = np.random.default_rng(seed)
            parts = [n.weight(inner, 4, 3, 3), *([n.weight(inner)] if bias else [])]
            h = n.node("Relu", n.node("Conv", x, *parts, pads=[1] * 4))
            return n.model(n.node("Relu", n.node("Add", x, n.conv(h, inner, 4))))

        self.reference, self.coupling = analysed(build(1, 4))
        self.model, _ = analysed(build(2, 4))
        self.x = np.random.default_rng(3).normal(size=(96, 3, 6, 6)).astype(np.float32)
        self.source = Calibration(Arrays({"x": self.x}), folder, threads=1, seed=0, samples=96)
        self.stem, self.first, self.second = linear.find(self.model).values()

    def repairer(self, *kinds: str) -> contextlib.closing[Repairer]:
        return contextlib.closing(Repairer(self.reference, self.coupling, np.zeros(0, np.int64), self.source, kinds))

    def error(self) -> float:
        """Of the block's sum behind its ReLU on held-out batches (of twelve), as a share of the variance."""
        (name,) = (output.name or "" for output in self.model.graph.outputs)
        now, then = (whole(model, {"x": self.x}, [name])[name] for model in (self.model, self.reference))
        held = np.arange(96) // 12 % 4 == 3
        spread = np.square(then - then.mean(axis=(0, 2, 3), keepdims=True)).mean()
        return float(np.square(now - then)[held].mean() / spread)


@pytest.mark.parametrize("bias", [True, False])
def test_a_block_comes_nearer_to_the_reference_s_sum(bias: bool, tmp_path: Path) -> None:
    case = Block(tmp_path, bias)
    before = case.error()
    with case.repairer("least_squares") as repairer:
        (repair,) = repairer.together(case.model, [case.second])
    assert (repair.node, repair.kind, repair.kept) == (case.first.node, "pair", True)
    assert repair.error_before == pytest.approx(before, 1e-3)
    assert repair.error_after == pytest.approx(case.error(), 1e-3)
    assert repair.error_after < 0.6 * before
    # A convolution without a bias gets one.
    found = linear.bias_of(case.model, linear.find(case.model)[case.first.node])
    assert found is not None
    assert found.any()


def test_pairs_are_fitted_by_least_squares_and_before_the_walk_has_passed_them(tmp_path: Path) -> None:
    case = Block(tmp_path)
    with case.repairer("bias") as repairer:
        assert repairer.together(case.model, [case.second]) == []
    with case.repairer("least_squares") as repairer:
        assert repairer.together(case.model, [case.stem]) == []
        repairer.repair(case.model, [case.second])
        assert repairer.together(case.model, [case.second]) == []


def test_only_layers_that_lead_to_a_sum_are_fitted_with_the_one_before(tmp_path: Path) -> None:
    n = Network(7)
    h = n.node("Relu", n.conv(n.input("x", "batch", 3, 6, 6), 3, 4))
    reference, coupling = analysed(n.model(n.conv(h, 4, 4)))
    model, _ = analysed(n.model(n.conv(h, 4, 4)))
    x = np.random.default_rng(3).normal(size=(96, 3, 6, 6)).astype(np.float32)
    source = Calibration(Arrays({"x": x}), tmp_path, threads=1, seed=0, samples=96)
    second = list(linear.find(model).values())[1]
    repairer = Repairer(reference, coupling, np.zeros(0, np.int64), source, ["least_squares"])
    with contextlib.closing(repairer):
        assert repairer.together(model, [second]) == []
