"""`distill`: the weights learn to answer as another model does, on samples without labels."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from lepton_cli.data.dataset import Batch, Dataset
from lepton_cli.errors import DataError, ModelError, StepError
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.graph.select import select
from lepton_cli.graph.settle import settle
from lepton_cli.model import io
from lepton_cli.probe import activations
from lepton_cli.runtime import Session, Values
from lepton_cli.step import Context, Decision, Outcome
from lepton_cli.train import losses, proof
from lepton_cli.train.details import TrainingDetails, TrainingMark
from lepton_cli.train.loop import HARM, Lesson, Settings, Trained, Trainer
from lepton_cli.train.network import Network
from lepton_cli.train.spec import Distill

#: Samples a step, where memory and data allow it; and bytes of the values of one step.
BATCH, MOST_BYTES = 128, 2 << 30
#: Shares of a channel's weights that a step changes at most; the next one where the one before does harm.
RATES = (1e-2, 3e-3, 1e-3)
#: Samples that the kinds of losses are read from; a fixed batch of more is taken whole.
FIRST = 8
#: Samples kept apart that are judged; more tell little more, and cost at every mark.
JUDGED = 1000
#: Steps that are timed in each precision, after one to warm up; bfloat16 must be so much faster.
TIMED, FASTER = 3, 1.1


class TrainingSamples(Protocol):
    """What a training step needs of its data."""

    count: int

    def batch(self, step: int, size: int) -> Batch:
        """Batch number `step`: the same samples, changed the same way, for the same number."""


class Teacher:
    """What the original answers, in torch; the kind of every loss follows from its first answers."""

    def __init__(self, model: ir.Model, student: Network, first: Sequence[Values]) -> None:
        """`first`: feeds that both can take."""
        self._network = Network(model, ())
        with torch.no_grad():
            given = [self._network.run(proof.tensors(feeds)) for feeds in first]
            mine = student.run(proof.tensors(first[0]))
        self._kinds = {}
        for name, one in given[0].items():
            if not one.is_floating_point():
                continue
            if name not in mine or mine[name].shape != one.shape:
                shape = list(mine[name].shape) if name in mine else "not there"
                raise ModelError(
                    "train.teacher",
                    f"the teacher's output `{name}` is {list(one.shape)}, the model's {shape}",
                    hint="give a `teacher` with the same outputs",
                )
            same = all(found[name].shape[1:] == one.shape[1:] for found in given) and one.dim() > 0
            self._kinds[name] = losses.kind(torch.cat([found[name] for found in given]) if same else one)
        if not self._kinds:
            raise ModelError("train.teacher", "no output of the model is a float: there is nothing to learn from")
        self.outputs = tuple(self._kinds)

    @property
    def said(self) -> dict[str, str]:
        """The kind of loss by output."""
        return {name: said for name, (said, _) in self._kinds.items()}

    def answers(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its outputs."""
        return self._network.run(feeds, self.outputs)

    def loss(self, found: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        """The sum over the outputs."""
        return torch.stack([loss(found[name], answers[name]) for name, (_, loss) in self._kinds.items()]).sum()


def distill(model: ir.Model, options: Distill, context: Context, samples: TrainingSamples, holdout: Dataset) -> Outcome:
    """The model with trained weights, or as it was where nothing better was found on `holdout`."""
    with _settings(context.threads):
        return _distilled(model, options, context, samples, holdout)


def _distilled(
    model: ir.Model, options: Distill, context: Context, samples: TrainingSamples, holdout: Dataset
) -> Outcome:
    allowed = select((node.name or "" for node in model.graph.all_nodes()), options.include, options.exclude)
    network = Network(model, allowed)
    if not network.parameters:
        raise ModelError("train.nothing", "no weight of the model trains", hint="look at `include` and `exclude`")
    difference = proof.prove(network, context.check, context.workdir, context.threads)
    piece = _piece(network, holdout, samples)
    first = _pieces(samples.batch(0, max(FIRST, piece or 1)), piece)
    original = context.original if options.teacher is None else io.load(context.base / options.teacher).model
    teacher = Teacher(original, network, first)
    _reaches(network, teacher, first[0])
    size = _batch(model, options, samples, piece or 1)
    kept = list(activations.batches(model, holdout, size=piece or min(size, 250), limit=JUDGED))
    if not kept:
        raise DataError("data.too-few", "no samples can be kept apart to judge by", hint="give more training samples")
    lesson, seconds = _lesson(network, teacher, samples, kept, options, size, piece)
    steps = _steps(options, samples.count, size, seconds)
    start = network.state()
    rates = RATES if isinstance(options.learning_rate, str) else (options.learning_rate,)
    with context.progress.stage("distill", steps) as stage:
        for speed in rates:
            begun = time.perf_counter()
            network.load(start)
            trainer = Trainer(network, lesson, Settings(steps, size, speed))
            trained = trainer.run(stage, HARM if speed != rates[-1] else None)
            if trained is not None:
                break
        assert trained is not None
        took = time.perf_counter() - begun
        stage.note(f"loss {trained.marks[0].loss:.4g} to {trained.best.loss:.4g}")
    if options.keep == "best":
        network.load(trained.state)
    made = network.written()
    proof.prove(network, context.check, context.workdir, context.threads)
    details = TrainingDetails(
        teacher=options.teacher or "the original",
        parameters=sum(one.numel() for one in network.parameters.values()),
        samples=samples.count,
        kept_apart=sum(batch.count for batch in kept),
        steps=steps,
        batch=size,
        piece=piece or 0,
        learning_rate=speed,
        rates_too_high=rates[: rates.index(speed)],
        precision="bfloat16" if lesson.narrow else "float32",
        losses=teacher.said,
        marks=tuple(TrainingMark(step=mark.step, loss=mark.loss) for mark in trained.marks),
        kept_step=trained.best.step if options.keep == "best" else steps,
        samples_per_second=round(steps * size / max(took, 1e-9), 1),
        proof=difference,
        agreement_before=_agreement(original, model, kept, context),
        agreement_after=_agreement(original, made, kept, context),
    )
    return _outcome(model, made, network, trained, options, details)


def _outcome(
    model: ir.Model, made: ir.Model, network: Network, trained: Trained, options: Distill, details: TrainingDetails
) -> Outcome:
    before, after = trained.marks[0].loss, trained.best.loss
    if options.keep == "best" and trained.best.step == 0:
        said = f"kept as it was: no state on the way was nearer to the teacher (loss {before:.4g})"
        return Outcome(model, 0, (), said, details, left_because=said)
    reason = f"trained for {details.steps} steps of {details.batch} samples at a rate of {details.learning_rate:g}"
    readers = {value.name for value in network.trained()}
    decisions = tuple(
        Decision(node=node.name or "", op=node.op_type, action="trained", reason=reason)
        for node in made.graph.all_nodes()
        if any(value is not None and value.name in readers for value in node.inputs)
    )
    summary = f"loss {before:.4g} to {after:.4g} on {details.kept_apart} samples kept apart"
    if details.agreement_before is not None and details.agreement_after is not None:
        summary += f", agreement {details.agreement_before:.1%} to {details.agreement_after:.1%}"
    return Outcome(made, len(decisions), decisions, summary, details)


def _reaches(network: Network, teacher: Teacher, first: Values) -> None:
    """Raises StepError where no gradient comes to the weights."""
    feeds = proof.tensors(first)
    loss = teacher.loss(network.run(feeds, teacher.outputs), teacher.answers(feeds))
    if loss.requires_grad:
        loss.backward()
    if all(one.grad is None for one in network.parameters.values()):
        raise StepError(
            "train.no-gradient",
            "no gradient of the outputs reaches a weight: whole numbers or decisions (ArgMax, Cast) are in between",
            hint="train a model that ends before them",
        )
    network.forget()


def _piece(network: Network, holdout: Dataset, samples: TrainingSamples) -> int | None:
    """How many samples go in at once; `None`: any number.

    A graph whose batch was frozen to 1 may fail with more, or lay one sample over another without failing: what comes
    out of several has to be what comes out of each alone.
    """
    batch = samples.batch(0, 2)
    if holdout.fixed_batch is not None or batch.count < 2:
        return holdout.fixed_batch
    with torch.no_grad():
        single = [network.run(proof.tensors(feeds)) for feeds in _pieces(batch, 1)]
        try:
            both = network.run(proof.tensors(batch.feeds))
        except StepError:
            return 1
    for name, found in both.items():
        if not found.is_floating_point() or not single[0][name].dim():
            continue
        expected = torch.cat([one[name] for one in single]).cpu().numpy()
        if not proof.distance(expected, found.cpu().numpy()) <= proof.SAME_INSIDE:
            return 1
    return None


def _pieces(batch: Batch, piece: int | None) -> list[Values]:
    """The feeds of as many samples at once as the network takes."""
    if piece is None:
        return [batch.feeds]
    return [batch.rows(np.arange(start, start + piece)) for start in range(0, batch.count - piece + 1, piece)]


@contextlib.contextmanager
def _settings(threads: int) -> Iterator[None]:
    """torch's switches are of the process, which may not be ours."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def _batch(model: ir.Model, options: Distill, samples: TrainingSamples, piece: int) -> int:
    """As asked, else as many as the memory for one step allows; in whole pieces."""
    if isinstance(options.batch, int):
        most = options.batch
    else:
        shapes = settle(model, default_feeds(model))[0]
        values = {value.name for node in model.graph for value in node.outputs}
        one = 4 * sum(math.prod(shape) for name, shape in shapes.items() if name in values) // piece
        most = min(BATCH, MOST_BYTES // max(one, 1))
    return max(piece, min(most, samples.count) // piece * piece)


def _lesson(
    network: Network,
    teacher: Teacher,
    samples: TrainingSamples,
    kept: Sequence[Batch],
    options: Distill,
    size: int,
    piece: int | None,
) -> tuple[Lesson, float]:
    """In the faster precision, unless one is asked for; and the seconds of one step in it."""
    start, found = network.state(), {}
    kinds = {"auto": (False, True), "float32": (False,), "bfloat16": (True,)}[options.precision]
    for narrow in kinds:
        lesson = Lesson(teacher, samples, kept if len(kinds) == 1 else (), piece=piece, narrow=narrow)
        trainer = Trainer(network, lesson, Settings(TIMED + 1, size, 0.0))
        took = [_seconds(partial(trainer.step, number, 0.0)) for number in range(TIMED + 1)]
        found[narrow] = (min(took[1:]), lesson)
    network.load(start)
    narrow = len(found) > 1 and found[True][0] * FASTER < found[False][0]
    seconds, lesson = found[narrow] if len(found) > 1 else found[kinds[0]]
    return (lesson if len(kinds) == 1 else Lesson(teacher, samples, kept, piece=piece, narrow=narrow)), seconds


def _seconds(work: partial[float]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _steps(options: Distill, count: int, size: int, seconds: float) -> int:
    budget = options.budget
    if budget.time is not None:
        return max(1, int(budget.time / seconds))
    seen = budget.samples if budget.samples is not None else (budget.epochs or 0) * count
    return max(1, math.ceil(seen / size))


def _agreement(original: ir.Model, made: ir.Model, kept: Sequence[Batch], context: Context) -> float | None:
    """Share of the samples with the same answer, as onnxruntime computes both; `None` where there are no classes."""
    first, second = (
        Session(io.payload(model, context.workdir), threads=context.threads, spin=False) for model in (original, made)
    )
    name = first.outputs[0].name
    same = []
    for batch in kept:
        one, other = first.run(batch.feeds, [name])[name], second.run(batch.feeds, [name])[name]
        if one.ndim != 2 or one.shape[1] < 2:
            return None
        same.append(one.argmax(1) == other.argmax(1))
    return float(np.concatenate(same).mean())
