"""One training from the first look at the data to the state that stays: what every step that trains has in common.

Found by measuring, unless the recipe says it: how many samples go in at once, how many a step takes, in which precision
and at which rate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import onnx_ir as ir
import torch

from lepton_cli import cache, units
from lepton_cli.data.dataset import Batch, Dataset
from lepton_cli.errors import DataError, ProviderError, StepError
from lepton_cli.machine import machine
from lepton_cli.model import io
from lepton_cli.probe import activations
from lepton_cli.step import Context, Decision, Outcome
from lepton_cli.train import amounts, proof
from lepton_cli.train.checkpoint import Checkpoints
from lepton_cli.train.details import TrainingDetails, TrainingMark
from lepton_cli.train.loop import HARM, Lesson, Settings, Task, Trainer
from lepton_cli.train.network import Network, no_gradient
from lepton_cli.train.spec import TrainingOptions

#: Shares of a channel's weights that a step changes at most; the next one where the one before does harm.
RATES = (3e-2, 1e-2, 3e-3, 1e-3)
#: The same where codes learn, which are near already (ResNet-20 in 4 bits: loss 0.159 at 1e-2, 0.137 at 3e-3).
QUANTIZED_RATES = (3e-3, 1e-3, 3e-4)
#: Steps that are timed in each precision, after one to warm up; bfloat16 must be so much faster.
TIMED, FASTER = 3, 1.1


@dataclasses.dataclass(frozen=True)
class Learnt:
    """`model`: with the weights that stay; `kept_as_it_was`: these are those it had."""

    model: ir.Model
    nodes: tuple[ir.Node, ...]
    details: TrainingDetails
    kept_as_it_was: bool


class Took(NamedTuple):
    """Seconds on the clock, and of the processor, which others that are busy do not change."""

    seconds: float
    work: float


class Course:
    """Samples, settings and the network that learns.

    `trial`: some samples, as many at once as the network takes; `first`: their feeds; `kept`: batches that judge.
    """

    def __init__(
        self,
        network: Network,
        options: TrainingOptions,
        context: Context,
        samples: amounts.TrainingSamples,
        holdout: Dataset,
        precision: Literal["auto", "float32", "bfloat16"] = "float32",
    ) -> None:
        """Raises DataError where no samples can be kept apart."""
        self._network, self._options, self._context, self._samples = network, options, context, samples
        self._precision = precision
        whole = amounts.piece(network, samples)
        tried = samples.batch(0, max(amounts.TRIED, whole or 1))
        self.trial = amounts.pieces(tried, whole or min(amounts.FIRST, tried.count))
        self.first = [part.feeds for part in self.trial]
        load = amounts.load(network, self.trial[0])
        self._size = amounts.batch(network, options, samples.count, whole or 1)
        self._piece = whole or amounts.piece_that_fits(load, self._size)
        size = whole or min(self._piece or self._size, 250)
        most = max(size, amounts.judged(load))
        self.kept: Sequence[Batch] = list(activations.batches(network.model, holdout, size=size, limit=most))
        if not self.kept:
            raise DataError(
                "data.too-few", "no samples can be kept apart to judge by", hint="give more training samples"
            )

    def learn(self, task: Task, name: str) -> Learnt:
        """Train for as long as the budget says; `name` is what the progress shows."""
        self._reaches(task)
        network, options, size = self._network, self._options, self._size
        kept = Checkpoints(self._context.cache, self._key(task, name))
        found = kept.found()
        if found is None:
            narrow, seconds = self._measured(task)
            kept.facts = {"narrow": narrow, "steps": self._steps(seconds), "seconds": seconds}
        else:
            kept.facts = dict(found["facts"])
        self._in_time(kept.facts, 0 if found is None else int(found["done"]))
        lesson = self._lesson(task, self.kept, narrow=kept.facts["narrow"])
        steps, start = kept.facts["steps"], network.state()
        auto = QUANTIZED_RATES if network.exponents else RATES
        rates = auto if isinstance(options.learning_rate, str) else (options.learning_rate,)
        with self._context.progress.stage(name, steps) as stage:
            for rate in rates:
                if found is not None and rate != found["facts"]["rate"]:
                    continue
                network.load(start)
                trainer = Trainer(network, lesson, Settings(steps, size, rate))
                kept.facts["rate"] = rate
                if found is not None:
                    trainer.go_on(found)
                    stage.advance(trainer.done)
                    self._context.progress.say(f"{name}: goes on after step {trainer.done:,} of {steps:,}")
                    found = None
                begun, first = time.perf_counter(), trainer.done
                try:
                    trained = trainer.run(stage, HARM if rate != rates[-1] else None, kept)
                except KeyboardInterrupt:
                    if self._context.cache.folder is not None:
                        self._context.progress.say(f"{name}: the same command goes on after step {trainer.done:,}")
                    raise
                if trained is not None:
                    break
            assert trained is not None
            if trainer.done > first:
                took = time.perf_counter() - begun
                kept.facts["samples_per_second"] = round((trainer.done - first) * size / max(took, 1e-9), 1)
                kept.keep(trainer.standing, now=True)
            stage.note(f"loss {trained.marks[0].loss:.4g} to {trained.best.loss:.4g}")
        if options.keep == "best":
            network.load(trained.state)
        made = network.written()
        details = TrainingDetails(
            parameters=sum(one.numel() for one in network.parameters.values()),
            samples=self._samples.count,
            kept_apart=sum(batch.count for batch in self.kept),
            steps=steps,
            batch=size,
            piece=self._piece or 0,
            device=str(network.device),
            learning_rate=rate,
            rates_too_high=rates[: rates.index(rate)],
            precision="bfloat16" if lesson.narrow else "float32",
            marks=tuple(TrainingMark(step=mark.step, loss=mark.loss) for mark in trained.marks),
            kept_step=trained.best.step if options.keep == "best" else steps,
            samples_per_second=kept.facts.get("samples_per_second", 0.0),
        )
        return Learnt(made, _readers(network, made), details, options.keep == "best" and trained.best.step == 0)

    def foresee(self, task: Task) -> tuple[int, int, float]:
        """How many steps, of how many samples, and the seconds of all, by three steps that are measured."""
        self._reaches(task)
        _, seconds = self._measured(task)
        steps = self._steps(seconds)
        return steps, self._size, steps * seconds

    def _in_time(self, facts: Mapping[str, Any], done: int) -> None:
        """Raises StepError where the steps that are left take longer than there is time."""
        seconds, left = (facts["steps"] - done) * facts["seconds"], self._context.until - time.monotonic()
        if seconds > left:
            takes, there = (units.format_duration(max(0.0, part)) for part in (seconds, left))
            raise StepError("train.no-time", f"training takes about {takes}, and {there} are left")

    def _reaches(self, task: Task) -> None:
        """Raises StepError where no gradient comes to the weights."""
        network, batch = self._network, self.trial[0]
        feeds = proof.tensors(batch.feeds, network.device)
        with torch.no_grad():
            answers = task.answers(batch, feeds)
        loss = task.loss(network.run(feeds, task.outputs), answers)
        if loss.requires_grad:
            loss.backward()
        if all(one.grad is None for one in network.parameters.values()):
            ends = [network.gradients.end(network.value(name)) for name in task.outputs]
            raise no_gradient(next(filter(None, ends), None))
        network.forget()

    def _measured(self, task: Task) -> tuple[bool, float]:
        """Whether bfloat16 is faster, unless a precision is asked for; and a step's seconds. Nothing is learnt."""
        network, start = self._network, self._network.state()
        trainers = {
            narrow: Trainer(network, self._lesson(task, (), narrow=narrow), Settings(TIMED + 1, self._size, 0.0))
            for narrow in {"auto": (False, True), "float32": (False,), "bfloat16": (True,)}[self._precision]
        }
        took: dict[bool, list[Took]] = {narrow: [] for narrow in trainers}
        for number in range(TIMED + 1):
            for narrow, trainer in trainers.items():
                took[narrow].append(_took(partial(trainer.step, number, 0.0), network.device))
        network.load(start)
        found = {narrow: Took(*map(min, zip(*some[1:], strict=True))) for narrow, some in took.items()}
        narrow = found[True].work * FASTER < found[False].work if len(found) > 1 else True in found
        return narrow, found[narrow].seconds

    def _lesson(self, task: Task, kept: Sequence[Batch], *, narrow: bool) -> Lesson:
        return Lesson(task, self._samples, kept, device=self._network.device, piece=self._piece, narrow=narrow)

    def _key(self, task: Task, name: str) -> str:
        """All that decides what comes out."""
        return cache.key(
            step=name,
            model=io.fingerprint(self._network.model),
            options=self._options,
            task=task.fingerprint,
            samples=self._samples.fingerprint,
            seed=self._context.seed,
            threads=self._context.threads,
            device=str(self._network.device),
            torch=torch.__version__,
            machine=machine(),
            batch=self._size,
            piece=self._piece,
        )

    def _steps(self, seconds: float) -> int:
        budget = self._options.budget
        seen = amounts.seen(budget, self._samples.count)
        return max(1, math.ceil(seen / self._size) if seen is not None else int((budget.time or 0.0) / seconds))


def device(options: TrainingOptions) -> str:
    """Where it is computed. Raises ProviderError where it was asked for and is not there."""
    found = torch.cuda.is_available()
    if options.device == "cuda" and not found:
        raise ProviderError(
            "provider.unavailable",
            "torch finds no GPU",
            cause=f"torch {torch.__version__}",
            hint="leave `device` out, or install a CUDA build of torch",
        )
    return "cuda" if found and options.device != "cpu" else "cpu"


@contextlib.contextmanager
def settings(threads: int, device: str) -> Iterator[None]:
    """torch's switches are of the process, which may not be ours."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    narrow = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts: the same sums every time
        # TensorFloat-32 keeps 10 bits: a model would not answer as onnxruntime computes it.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = narrow


def outcome(model: ir.Model, learnt: Learnt, details: TrainingDetails) -> Outcome:
    """What a step that trained says of it."""
    before, last = details.marks[0].loss, details.marks[-1].loss
    after = next((mark.loss for mark in details.marks if mark.step == details.kept_step), last)
    if learnt.kept_as_it_was:
        said = f"kept as it was: no state on the way was better (loss {before:.4g})"
        return Outcome(model, 0, (), said, details, left_because=said)
    reason = f"trained for {details.steps} steps of {details.batch} samples at a rate of {details.learning_rate:g}"
    decisions = tuple(
        Decision(node=node.name or "", op=node.op_type, action="trained", reason=reason) for node in learnt.nodes
    )
    summary = f"loss {before:.4g} to {after:.4g} on {details.kept_apart} samples kept apart"
    for name in ("agreement", "accuracy"):
        first, last = getattr(details, f"{name}_before"), getattr(details, f"{name}_after")
        if first is not None and last is not None:
            summary += f", {name} {first:.1%} to {last:.1%}"
    for name, learnt_values in details.in_place.items():
        summary += f"; learnt in the place of `{name}`: {', '.join(f'`{one}`' for one in learnt_values)}"
    return Outcome(learnt.model, len(decisions), decisions, summary, details)


def _readers(network: Network, made: ir.Model) -> tuple[ir.Node, ...]:
    names = {value.name for value in network.trained()}
    return tuple(
        node
        for node in made.graph.all_nodes()
        if any(value is not None and value.name in names for value in node.inputs)
    )


def _took(work: partial[float], device: torch.device) -> Took:
    begun = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun[0]
    return Took(seconds, seconds if device.type == "cuda" else time.process_time() - begun[1])
