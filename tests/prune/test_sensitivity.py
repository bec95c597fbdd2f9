"""Loss curves of linear models, where every output error can be computed beside."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.coupling.links import Group
from lepton_cli.data.memory import Arrays
from lepton_cli.probe import linear
from lepton_cli.prune import recover, sensitivity
from lepton_cli.prune.hessian import Ranking
from tests.coupling.networks import Network, analysed

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Problem:
    """y = (x A) B + c with ten inner channels."""

    trial: sensitivity.Unpruned
    group: Group
    x: Floats
    first: Floats
    last: Floats
    bias: Floats

    def layers(self) -> dict[str, linear.Linear]:
        return linear.find(self.trial.model)

    def gram(self) -> dict[str, Floats]:
        rows = np.concatenate([self.x @ self.first, np.ones((len(self.x), 1))], axis=1)
        return {self.group.consumers[0].node: rows.T @ rows}

    def refitted(self, gone: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Weights and bias of the rest by least squares; a thousandth of the mean square is the ridge on inputs."""
        rows = np.concatenate([self.x @ self.first, np.ones((len(self.x), 1))], axis=1)
        ridge = np.sqrt(0.001 * np.square(rows[:, :10]).sum() / 10) * np.eye(10, 11)
        tall, weight = np.concatenate([rows, ridge]), np.concatenate([self.last, self.bias[None]])
        keep = ~np.isin(np.arange(11), gone)
        found = np.linalg.lstsq(tall[:, keep], tall @ weight, rcond=None)[0]
        return found[:-1], found[-1]

    def error(self, gone: NDArray[np.int64], refit: bool) -> float:
        kept = np.setdiff1d(np.arange(10), gone)
        weight, bias = self.refitted(gone) if refit else (self.last[kept], self.bias)
        wanted = self.x @ self.first @ self.last + self.bias
        found = self.x @ self.first[:, kept] @ weight + bias
        return float(np.square(found - wanted).sum() / np.square(wanted - wanted.mean(axis=0)).sum())


def _named(model: ir.Model, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays by the names of the model's outputs."""
    return {value.name or "": array for value, array in zip(model.graph.outputs, arrays, strict=True)}


def problem(folder: Path, count: int = 64) -> Problem:
    random = np.random.default_rng(1)
    n = Network(2)
    hidden = n.node("MatMul", n.input("x", "batch", 12), n.weight(12, 10))
    model, found = analysed(n.model(n.node("Gemm", hidden, n.weight(10, 4), n.weight(4))))
    (group,) = (group for group in found.groups if group.frozen is None)
    x = random.normal(0.2, 1, size=(count, 12)).astype(np.float32)
    source = recover.Calibration(Arrays({"x": x}), folder, 1, 0, count)
    arrays = [np.asarray(n.weights[name], np.float64) for name in ("w0", "w1", "w2")]
    wanted = x.astype(np.float64) @ arrays[0] @ arrays[1] + arrays[2]
    trial = sensitivity.Unpruned(model, found, [{"x": x[:40]}, {"x": x[40:]}], _named(model, wanted), {}, source)
    return Problem(trial, group, x.astype(np.float64), *arrays)


RANKING = Ranking(
    np.array([3, 0, 9, 1, 4, 2, 8, 5, 7, 6]), np.array([0.1, 0.15, 0.14, 0.3, 0.45, 0.5, 0.65, 0.8, 0.95])
)


def scaled(measured: dict[int, float]) -> Floats:
    """The ranking's own curve (made to rise) times a factor that runs straight between the logs of those measured."""
    own = np.array([0.0, 0.1, 0.15, 0.15, 0.3, 0.45, 0.5, 0.65, 0.8, 0.95])
    logs = [np.log(value / own[count]) for count, value in measured.items()]
    return own * np.exp(np.interp(np.arange(10), list(measured), logs))


@pytest.mark.parametrize("refit", [False, True])
def test_the_curve_goes_through_what_a_few_trials_measure(refit: bool, tmp_path: Path) -> None:
    """A quarter, a half and four fifths of the channels go on trial: two, five and eight of ten."""
    one = problem(tmp_path)
    measured = {count: one.error(RANKING.order[:count], refit) for count in (2, 5, 8)}
    found = sensitivity.curve(one.trial, one.group, RANKING, one.layers(), one.gram() if refit else {})
    assert len(found) == 10
    assert found[0] == 0
    assert [found[count] for count in measured] == pytest.approx(list(measured.values()), rel=1e-3)
    np.testing.assert_allclose(found, np.maximum.accumulate(scaled(measured)), rtol=1e-3)


def test_the_curve_never_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = problem(tmp_path)
    measured = iter([0.4, 0.05, 0.9])
    monkeypatch.setattr(sensitivity.Unpruned, "error", lambda self, model: next(measured))
    found = sensitivity.curve(one.trial, one.group, RANKING, one.layers(), {})
    wanted = scaled({2: 0.4, 5: 0.05, 8: 0.9})
    assert wanted[5] < wanted[2]
    np.testing.assert_allclose(found, np.maximum.accumulate(wanted))


def test_only_channels_that_may_go_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three losses: a quarter is two, and a half and four fifths would both be three."""
    one, tried = problem(tmp_path), []

    def error(self: sensitivity.Unpruned, model: ir.Model) -> float:
        tried.append(10 - model.graph.initializers["w1"].const_value.shape[0])
        return 0.5

    monkeypatch.setattr(sensitivity.Unpruned, "error", error)
    short = Ranking(RANKING.order, np.array([0.1, 0.2, 0.4]))
    found = sensitivity.curve(one.trial, one.group, short, one.layers(), {})
    assert tried == [2, 3]
    np.testing.assert_allclose(found, [0, 0.25, 0.5, 0.5])
    none = sensitivity.curve(one.trial, one.group, Ranking(RANKING.order, np.zeros(0)), one.layers(), {})
    assert none.tolist() == [0]
    assert tried == [2, 3]


def test_of_narrow_groups_at_least_one_channel_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, tried = problem(tmp_path), []
    narrow = dataclasses.replace(one.group, atoms=one.group.atoms[:2])
    monkeypatch.setattr(sensitivity, "removed", lambda trial, group, gone, *rest: tried.append(len(gone)))
    monkeypatch.setattr(sensitivity.Unpruned, "error", lambda self, model: 0.125)
    found = sensitivity.curve(one.trial, narrow, Ranking(np.array([1, 0]), np.array([0.5])), one.layers(), {})
    assert tried == [1]
    assert found.tolist() == pytest.approx([0, 0.125])


def test_nothing_lost_is_next_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logarithms need a floor: of 1e-9 for what is measured, of 1e-12 for the ranking's own loss."""
    one = problem(tmp_path)
    errors = iter([0.0, 1e-3, 1.0])
    monkeypatch.setattr(sensitivity.Unpruned, "error", lambda self, model: next(errors))
    own = Ranking(RANKING.order, np.array([0.2, 0.2, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4, 0.4]))
    found = sensitivity.curve(one.trial, one.group, own, one.layers(), {})
    assert found[2] == pytest.approx(1e-9)
    assert found[5] == pytest.approx(1e-3)
    errors = iter([0.5, 0.5, 0.5])
    tiny = Ranking(RANKING.order, np.full(9, 1e-15))
    found = sensitivity.curve(one.trial, one.group, tiny, one.layers(), {})
    assert found[2] == pytest.approx(0.5 * 1e-15 / 1e-12)


def test_consumers_without_the_channels_are_refitted(tmp_path: Path) -> None:
    one = problem(tmp_path)
    gone = np.array([2, 7, 1])
    model = sensitivity.removed(one.trial, one.group, gone, one.layers(), one.gram())
    weight, bias = one.refitted(gone)
    kept = np.setdiff1d(np.arange(10), gone)
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    np.testing.assert_allclose(arrays["w0"], one.first[:, kept])
    np.testing.assert_allclose(arrays["w1"], weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(arrays["w2"], bias, rtol=1e-4, atol=1e-6)
    before = one.trial.model.graph.initializers["w1"].const_value.numpy()
    np.testing.assert_allclose(before, one.last)


def test_consumers_without_a_bias_keep_none_and_lose_outputs_of_the_same_group(tmp_path: Path) -> None:
    """x + (x B): the product reads channels of the group and produces them."""
    random, n = np.random.default_rng(0), Network(4)
    x = n.node("MatMul", n.input("x", "batch", 3), n.weight(3, 5))
    total = n.node("Add", x, n.node("MatMul", x, n.weight(5, 5)))
    model, found = analysed(n.model(n.node("Gemm", total, n.weight(5, 2), n.weight(2))))
    (group,) = (group for group in found.groups if group.frozen is None)
    source = recover.Calibration(Arrays({"x": np.zeros((1, 3), np.float32)}), tmp_path, 1, 0, 1)
    rows = np.concatenate([random.normal(size=(30, 5)) @ random.normal(size=(5, 5)), np.ones((30, 1))], axis=1)
    layers = linear.find(model)
    inner = next(port.node for port in group.consumers if port.weight == "w1")
    gone = np.array([4, 1])
    cut = sensitivity.removed(
        sensitivity.Unpruned(model, found, [], {}, {}, source), group, gone, layers, {inner: rows.T @ rows}
    )
    tall = np.concatenate([rows, np.sqrt(0.001 * np.square(rows[:, :5]).sum() / 5) * np.eye(5, 6)])
    keep = np.array([0, 2, 3])
    weight = np.concatenate([n.weights["w1"], np.zeros((1, 5))]).astype(np.float64)
    fitted = np.linalg.lstsq(tall[:, [*keep, 5]], tall @ weight, rcond=None)[0]
    arrays = {name: value.const_value.numpy() for name, value in cut.graph.initializers.items()}
    np.testing.assert_allclose(arrays["w1"], fitted[:-1, keep], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(arrays["w2"], n.weights["w2"][keep])
    assert len(cut.graph.initializers) == 4


def test_errors_are_shares_of_the_variance_averaged_over_the_outputs(tmp_path: Path) -> None:
    n = Network()
    x = n.input("x", "batch", 2)
    outputs = n.node("MatMul", x, n.weight(2, 3)), n.node("MatMul", x, n.weight(2, 1))
    model, found = analysed(n.model(*outputs))
    rows = np.random.default_rng(0).normal(1, 1, (6, 2)).astype(np.float32)
    source = recover.Calibration(Arrays({"x": rows}), tmp_path, 1, 0, 6)
    now = [rows.astype(np.float64) @ n.weights[name] for name in ("w0", "w1")]
    before = [now[0] + 0.1, now[1] * 1.25]
    trial = sensitivity.Unpruned(model, found, [{"x": rows}], _named(model, *before), {}, source)
    shares = [np.square(a - b).sum() / np.square(b - b.mean(axis=0)).sum() for a, b in zip(now, before, strict=True)]
    assert trial.error(model) == pytest.approx(np.mean(shares), rel=1e-5)
    one = dataclasses.replace(trial, feeds=[{"x": rows[:1]}], outputs=_named(model, *(value[:1] for value in before)))
    shares = [np.square(a[0] - b[0]).sum() / np.square(b[0]).sum() for a, b in zip(now, before, strict=True)]
    assert one.error(model) == pytest.approx(np.mean(shares), rel=1e-5)
    two = dataclasses.replace(trial, feeds=[{"x": rows[:2]}], outputs=_named(model, *(value[:2] for value in before)))
    shares = [
        np.square(a[:2] - b[:2]).sum() / np.square(b[:2] - b[:2].mean(axis=0)).sum()
        for a, b in zip(now, before, strict=True)
    ]
    assert two.error(model) == pytest.approx(np.mean(shares), rel=1e-5)


def test_outputs_that_never_change_are_no_division_by_zero(tmp_path: Path) -> None:
    n = Network()
    w = n.weight(values=np.zeros((2, 1), np.float32))
    model, found = analysed(n.model(n.node("MatMul", n.input("x", "batch", 2), w)))
    rows = np.ones((3, 2), np.float32)
    source = recover.Calibration(Arrays({"x": rows}), tmp_path, 1, 0, 3)
    trial = sensitivity.Unpruned(model, found, [{"x": rows}], _named(model, np.full((3, 1), 1e-6)), {}, source)
    assert trial.error(model) == pytest.approx(3e-12 / 1e-12)
    assert dataclasses.replace(trial, outputs=_named(model, np.zeros((3, 1)))).error(model) == 0


def test_models_without_float_outputs_have_no_error(tmp_path: Path) -> None:
    n = Network()
    model, found = analysed(n.model(n.node("MatMul", n.input("x", "batch", 2), n.weight(2, 1))))
    trial = sensitivity.Unpruned(
        model, found, [], {}, {}, recover.Calibration(Arrays({"x": np.zeros(1)}), tmp_path, 1, 0, 1)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity.activations, "outputs", lambda *_: {})
        assert trial.error(model) == 0.0


@pytest.mark.parametrize(
    ("samples", "trials", "macs", "batches"),
    [
        (2048, 10, 100.0, 2),  # 40 samples of the effort of 40,000, in batches of 32
        (2048, 1, 100.0, 8),  # 400: at most 256
        (2048, 5, 31.0, 8),  # 258
        (2048, 5, 40.0, 7),  # 200
        (2048, 50, 1000.0, 1),  # less than one: at least 16
        (2048, 3, 0.0, 8),
        (160, 1, 1.0, 2),  # all of two batches held out, of 20 samples each
    ],
)
def test_the_effort_decides_how_many_samples_are_tried(
    samples: int, trials: int, macs: float, batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "EFFORT", 40_000.0)
    n = Network()
    model, found = analysed(n.model(n.node("MatMul", n.input("x", "batch", 2), n.weight(2, 3))))
    rows = np.random.default_rng(0).normal(size=(samples, 2)).astype(np.float32)
    source = recover.Calibration(Arrays({"x": rows}), tmp_path, 1, 0, samples)
    trial = sensitivity.prepare(model, found, source, trials, macs)
    size = min(32, samples // 8)
    held = [rows[size * k : size * (k + 1)] for k in range(3, 4 * batches, 4)]
    assert len(trial.feeds) == batches
    for feeds, part in zip(trial.feeds, held, strict=True):
        np.testing.assert_array_equal(feeds["x"], part)
    (output,) = trial.outputs.values()
    np.testing.assert_allclose(output, np.concatenate(held) @ n.weights["w0"], rtol=1e-5, atol=1e-6)
    assert trial.error(model) == 0


@pytest.mark.parametrize(("large", "batches", "fitted"), [(4, 2, 32), (3, 1, 32)])
def test_of_large_outputs_few_samples_are_enough(
    large: int, batches: int, fitted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three numbers a sample; of 64 samples in batches of 8, every fourth is held out."""
    monkeypatch.setattr(sensitivity, "EFFORT", 1.0)
    monkeypatch.setattr(sensitivity, "LARGE", large)
    n = Network()
    model, found = analysed(n.model(n.node("MatMul", n.input("x", "batch", 2), n.weight(2, 3))))
    source = recover.Calibration(Arrays({"x": np.zeros((64, 2), np.float32)}), tmp_path, 1, 0, 64)
    trial = sensitivity.prepare(model, found, source, 5, 100.0)
    assert len(trial.feeds) == batches
    assert trial.source.samples == fitted


@pytest.mark.parametrize(("effort", "fitted"), [(1.0, 32), (100_000.0, 100), (1e9, 500)])
def test_as_many_samples_are_refitted_with_as_two_models_may_take(
    effort: float, fitted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "EFFORT", effort)
    n = Network()
    model, found = analysed(n.model(n.node("MatMul", n.input("x", "batch", 2), n.weight(2, 3))))
    source = recover.Calibration(Arrays({"x": np.zeros((500, 2), np.float32)}), tmp_path, 1, 0, 500)
    assert sensitivity.prepare(model, found, source, 5, 100.0).source.samples == fitted
