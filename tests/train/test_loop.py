"""Training finds what is known to be best, keeps it, and never makes a model worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lepton_cli.cache import Cache
from lepton_cli.data.dataset import Batch
from lepton_cli.errors import StepError
from lepton_cli.progress import Silent
from lepton_cli.train import loop
from lepton_cli.train.checkpoint import Checkpoints
from lepton_cli.train.loop import Lesson, Mark, Settings, Trained, Trainer
from lepton_cli.train.network import Network
from tests.quantize.builders import Graph

TRUE = np.random.default_rng(7).normal(size=(6, 3)).astype(np.float32)


class Rows:
    """Rows drawn from their number."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def batch(self, step: int, size: int) -> Batch:
        x = np.random.default_rng((3, step)).normal(size=(size, 6)).astype(np.float32)
        return Batch({"x": x * np.float32(np.nan) if step == self.broken else x}, {}, step * size)


class Product:
    """The answers are `x TRUE`."""

    outputs: tuple[str, ...] = ("t0",)
    inside: tuple[str, ...] = ()
    fingerprint = "product"

    def answers(self, batch: Batch, feeds: Mapping[str, Tensor], *, inside: bool = False) -> dict[str, Tensor]:
        return {"t0": feeds["x"] @ torch.from_numpy(TRUE)}

    def loss(self, found: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        return (found["t0"] - answers["t0"]).square().mean()


def network(weight: np.ndarray | None = None) -> Network:
    graph = Graph()
    start = np.zeros((6, 3), np.float32) if weight is None else weight
    return Network(graph.model(graph.op("MatMul", graph.take("x", ["b", 6]), graph.constant(start))))


def lesson(broken: int | None = None) -> Lesson:
    return Lesson(Product(), Rows(broken), [Rows().batch(1000, 40), Rows().batch(1001, 8)])


def settings(steps: int = 300, speed: float = 0.05) -> Settings:
    return Settings(steps, 32, speed)


def done(given: Network, how: Settings, broken: int | None = None) -> Trained:
    made = Trainer(given, lesson(broken), how).run(Silent().stage("train"))
    assert made is not None
    return made


def test_least_squares_are_found() -> None:
    start = np.random.default_rng(9).normal(size=(6, 3)).astype(np.float32)
    made = done(network(start), settings(400))
    np.testing.assert_allclose(made.state["w0"], TRUE, atol=5e-3)
    assert made.marks[0].loss == pytest.approx(judged(start), rel=1e-5)
    assert [mark.step for mark in made.marks] == [0, *(math.ceil(400 * n / 8) for n in range(1, 9))]
    assert made.best.loss < 1e-4


def judged(weight: np.ndarray) -> float:
    """The mean over all samples kept apart, however they are batched."""
    rows = np.concatenate([Rows().batch(number, size).feeds["x"] for number, size in ((1000, 40), (1001, 8))])
    return float(np.square(rows @ (weight - TRUE)).mean())


def test_a_perfect_model_stays_as_it_was_bit_by_bit() -> None:
    made = done(network(TRUE), settings(20, speed=0.5))
    assert made.best.step == 0
    assert np.array_equal(made.state["w0"], TRUE)


def test_the_same_steps_give_the_same_bytes() -> None:
    states = [done(network(), settings(40)).state for _ in range(2)]
    assert states[0]["w0"].tobytes() == states[1]["w0"].tobytes()


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    trainer = Trainer(network(), lesson(), settings(200, speed=0.1))
    rates = [trainer._rate(number) for number in range(200)]
    assert rates[:10] == pytest.approx([0.01 * (n + 1) for n in range(10)])
    assert rates[10] == pytest.approx(0.1)
    assert rates[105] == pytest.approx(0.05)
    assert 0 < rates[199] < 1e-4
    assert max(rates) == pytest.approx(0.1)


def test_a_loss_that_is_no_number_ends_training() -> None:
    with pytest.raises(StepError, match="at step 3"):
        done(network(), settings(), broken=2)
    made = done(network(), settings(), broken=250)
    assert made.best.step < 250
    assert np.isfinite(made.state["w0"]).all()
    assert made.best.loss < judged(np.zeros((6, 3)))


def test_pruned_zeros_stay_while_the_rest_learns() -> None:
    start = TRUE + 1
    start[::2] = 0
    made = done(network(start), settings())
    assert np.array_equal(made.state["w0"] == 0, start == 0)
    assert made.best.loss < made.marks[0].loss


def test_a_step_is_a_share_of_each_channel() -> None:
    """Adam's first step is as long as the rate in every weight, here times the size of the row."""
    start = TRUE * np.array([[1e-2], [1], [10], [1], [1], [1]], np.float32)
    trainer = Trainer(network(start), lesson(), settings())
    trainer.step(0, 1e-3)
    moved = np.abs(trainer.network.state()["w0"] - start)
    rows = np.sqrt(np.square(start).mean(axis=1, keepdims=True))
    least = 0.1 * np.sqrt(np.square(start).mean())
    np.testing.assert_allclose(moved, np.broadcast_to(1e-3 * np.maximum(rows, least), moved.shape), rtol=2e-2)


def test_steps_go_downhill() -> None:
    """Against the gradient of the closed form."""
    start = TRUE + np.float32(1)
    trainer = Trainer(network(start), lesson(), settings())
    x = Rows().batch(0, 32).feeds["x"]
    slope = x.T @ (x @ (start - TRUE))
    trainer.step(0, 1e-3)
    assert (np.sign(start - trainer.network.state()["w0"]) == np.sign(slope)).all()


def test_a_rate_that_harms_is_given_up_after_the_first_mark() -> None:
    near = TRUE + np.float32(1e-3)
    assert Trainer(network(near), lesson(), settings(80, speed=0.3)).run(Silent().stage("train"), harm=2.0) is None
    kept = Trainer(network(near), lesson(), settings(80, speed=1e-4)).run(Silent().stage("train"), harm=2.0)
    assert kept is not None
    assert Trainer(network(near), lesson(), settings(80, speed=0.3)).run(Silent().stage("train")) is not None


@pytest.mark.parametrize("stop", [None, 2, 7, 9])
def test_harm_is_judged_by_the_mean_of_the_weights_on_the_way(stop: int | None) -> None:
    """Of 80 steps that is the mean behind steps 6 to 10, also where the run was cut before them or in between."""
    start = TRUE + np.random.default_rng(5).normal(size=TRUE.shape).astype(np.float32) * 1e-2
    how, way = settings(80, speed=0.1), []
    trainer = Trainer(network(start), lesson(), how)
    for number in range(10):
        trainer.step(number, trainer._rate(number))
        way.append(trainer.network.state()["w0"])
    limit = judged(np.mean(way[5:], 0)) / judged(start)
    assert judged(way[-1]) / judged(start) > 1.2 * limit, "the weights of one step would not do"
    for factor in (0.999, 1.001):
        trainer = Trainer(network(start), lesson(), how)
        if stop is not None:
            held = Held()
            with pytest.raises(KeyboardInterrupt):
                Trainer(
                    network(start),
                    Lesson(Product(), Stopped(stop), [Rows().batch(1000, 40), Rows().batch(1001, 8)]),
                    how,
                ).run(Silent().stage("train"), None, held)
            assert held.last is not None
            trainer.go_on(held.last)
        assert (trainer.run(Silent().stage("train"), harm=factor * limit) is None) == (factor < 1)


def test_looking_for_harm_changes_nothing() -> None:
    start = np.random.default_rng(9).normal(size=(6, 3)).astype(np.float32)
    ways = [Trainer(network(start), lesson(), settings(80)).run(Silent().stage("train"), harm) for harm in (None, 1e9)]
    assert ways[0] is not None
    assert ways[1] is not None
    assert ways[0].marks == ways[1].marks
    np.testing.assert_array_equal(ways[0].state["w0"], ways[1].state["w0"])


def test_pieces_add_up_to_their_batch() -> None:
    """Also where the last is smaller: loss and gradient are the closed forms of all samples' mean."""
    weights = TRUE + np.random.default_rng(8).normal(size=TRUE.shape).astype(np.float32)
    x = Rows().batch(3, 32).feeds["x"].astype(np.float64)
    off = x @ (weights - TRUE)
    for piece in (None, 4, 32, 24, 5, 100):
        given = network(weights)
        loss = Lesson(Product(), Rows(), [], piece=piece).learn(given, 3, 32)
        assert loss == pytest.approx(np.square(off).mean(), rel=1e-5)
        slope = given.parameters["w0"].grad
        assert slope is not None
        np.testing.assert_allclose(slope.numpy(), 2 * x.T @ off / off.size, rtol=1e-4, atol=1e-5)


def test_marks_are_ordered_by_loss() -> None:
    marks = (Mark(0, 2.0), Mark(5, 1.0), Mark(10, 1.0))
    assert loop.Trained({}, marks).best == Mark(5, 1.0)


class Stopped(Rows):
    """Ctrl-C while a batch is read."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def batch(self, step: int, size: int) -> Batch:
        if step == self.at:
            raise KeyboardInterrupt
        return super().batch(step, size)


class Held(Checkpoints):
    """In memory."""

    def __init__(self) -> None:
        super().__init__(Cache(None), "")
        self.last: Mapping[str, Any] | None = None

    def keep(self, state: Callable[[], Mapping[str, Any]], *, now: bool = False) -> None:
        if now:
            self.last = state()


@pytest.mark.parametrize("stops", [[1], [3, 4], [5, 20, 39], [0]])
def test_a_run_cut_into_pieces_gives_the_same_bytes(stops: list[int]) -> None:
    """Each piece is a trainer of its own on the untrained network, as of a process started anew."""
    start = np.random.default_rng(9).normal(size=(6, 3)).astype(np.float32)
    kept = [Rows().batch(1000, 40)]
    whole = Trainer(network(start), Lesson(Product(), Rows(), kept), settings(40)).run(Silent().stage("train"))
    held, made = Held(), None
    for stop in [*stops, -1]:
        trainer = Trainer(network(start), Lesson(Product(), Stopped(stop), kept), settings(40))
        if held.last is not None:
            trainer.go_on(held.last)
        try:
            made = trainer.run(Silent().stage("train"), None, held)
        except KeyboardInterrupt:
            assert held.last is not None
            assert held.last["done"] == stop
    assert whole is not None
    assert made is not None
    assert made.marks == whole.marks
    assert made.state["w0"].tobytes() == whole.state["w0"].tobytes()


def test_what_is_over_keeps_no_moments() -> None:
    trainer = Trainer(network(), lesson(), settings(8))
    trainer.run(Silent().stage("train"))
    assert set(trainer.standing()) == {"done", "marks", "now w0", "best w0"}


class Huge(Product):
    """A loss that needs more than any machine has."""

    def loss(self, found: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        return super().loss(found, answers) + torch.empty(1 << 50).sum()


def test_a_step_that_memory_does_not_hold_is_said() -> None:
    for piece, at_once, less in (
        (None, 32, "give `batch: 16`"),
        (6, 6, "give `batch: 3`"),
        (1, 1, "train fewer layers"),
    ):
        trainer = Trainer(network(), Lesson(Huge(), Rows(), [], piece=piece), settings())
        with pytest.raises(StepError, match=f"with {at_once} of its 32 samples at once") as caught:
            trainer.step(0, 0.1)
        assert caught.value.code == "train.memory"
        assert str(caught.value.hint).startswith(less)
