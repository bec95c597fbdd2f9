"""Training itself: steps over batches, judged now and then on samples kept apart, of which the best state stays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lepton_cli import interrupt
from lepton_cli.data.dataset import Batch
from lepton_cli.errors import StepError
from lepton_cli.progress import Stage
from lepton_cli.runtime import Values
from lepton_cli.train.checkpoint import Checkpoints
from lepton_cli.train.network import Network, out_of_memory
from lepton_cli.train.outside import is_float
from lepton_cli.train.proof import tensors

#: Share of the steps over which the rate rises from nothing.
WARM_UP = 0.05
#: Largest norm of a gradient: one strange batch shall not undo the others.
CLIP = 5.0
#: How often the state is judged.
MARKS = 8
#: Where the mean of the weights on the way to the first mark is so many times worse than no training, the rate is too
#: high. The weights of one step say less, as the noise of a high rate is gone at the end: ResNet-56 at half its work,
#: of which 0.01 makes the best and 0.03 does not: 1.4 and 3.5 times by those of one step, 1.0 and 1.5 by the mean.
HARM = 1.5
#: Least size of a channel's weights as a share of the tensor's, and that of a tensor that begins at zero.
_LEAST, _ZERO = 0.1, 1e-2
#: What Adam keeps of every parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


CPU = torch.device("cpu")


class Task(Protocol):
    """What is learnt."""

    #: Outputs, or inner values, of the network that count.
    outputs: tuple[str, ...]
    #: Inner values that count besides in a step, not where a state is judged.
    inside: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Of all that decides its losses, but for the samples."""

    def answers(self, batch: Batch, feeds: Mapping[str, Tensor], *, inside: bool = False) -> dict[str, Tensor]:
        """What the loss compares with for this batch, whose tensors are `feeds`; no gradient."""

    def loss(self, found: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        """How far all that there are answers for is from them, in float32: a mean over the samples."""


class Samples(Protocol):
    """Batches by number, the same for the same number."""

    def batch(self, step: int, size: int) -> Batch:
        """Batch number `step`."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """`batch`: samples a step. `rate`: the largest one, as a share of the size of a channel's weights."""

    steps: int
    batch: int
    rate: float


@dataclasses.dataclass(frozen=True)
class Mark:
    """The loss on the samples kept apart after so many steps."""

    step: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Trained:
    """`state`: the best parameters; `marks`: the way there, of which the first is the model as it was."""

    state: dict[str, NDArray[np.float32]]
    marks: tuple[Mark, ...]

    @property
    def best(self) -> Mark:
        """The mark whose state it is: the first of the best."""
        return min(self.marks, key=lambda mark: mark.loss)


class Lesson:
    """Samples with what should come out of them; that of the samples kept apart is found once.

    `device`: that of the network. `piece`: how many samples go in at once, where the network or the memory does not
    take them all; the gradients of a batch's pieces add up. `narrow`: computed in bfloat16, but for losses and weights.
    """

    def __init__(
        self,
        task: Task,
        samples: Samples,
        kept: Sequence[Batch],
        *,
        device: torch.device = CPU,
        piece: int | None = None,
        narrow: bool = False,
    ) -> None:
        self.task, self.narrow, self.piece = task, narrow, piece
        self._samples, self._device = samples, device
        self._kept = [(batch, feeds := self._feeds(batch.feeds), self._answers(batch, feeds)) for batch in kept]

    def learn(self, network: Network, step: int, size: int) -> float:
        """The loss of batch number `step`; its gradients are added to those of the parameters, where it is a number."""
        whole, total = self._samples.batch(step, size), 0.0
        at_once = min(self.piece or whole.count, whole.count)
        for start in range(0, whole.count, at_once):
            part = whole if at_once == whole.count else whole.part(np.arange(start, min(start + at_once, whole.count)))
            loss = self._of(network, part) * (part.count / whole.count)
            total += float(loss.detach())
            if not math.isfinite(total):
                break
            loss.backward()
        return total

    def _of(self, network: Network, batch: Batch) -> Tensor:
        feeds = self._feeds(batch.feeds)
        return self._loss(network, feeds, self._answers(batch, feeds, inside=True), self.task.inside)

    def judge(self, network: Network) -> float:
        """The mean loss on the samples kept apart."""
        total = 0.0
        with torch.no_grad():
            for batch, feeds, answers in self._kept:
                total += float(self._loss(network, feeds, answers)) * batch.count
        return total / sum(batch.count for batch, _, _ in self._kept)

    def _loss(
        self,
        network: Network,
        feeds: Mapping[str, Tensor],
        answers: Mapping[str, Tensor],
        inside: tuple[str, ...] = (),
    ) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.narrow):
            found = network.run(feeds, self.task.outputs + inside)
        return self.task.loss({name: one.float() for name, one in found.items()}, answers)

    def _answers(self, batch: Batch, feeds: Mapping[str, Tensor], *, inside: bool = False) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self.narrow):
            found = self.task.answers(batch, feeds, inside=inside)
        return {name: one.float() if one.is_floating_point() else one for name, one in found.items()}

    def _feeds(self, arrays: Values) -> dict[str, Tensor]:
        """Pictures with the channels last in memory, as torch's convolutions are fastest."""
        return {
            name: one.contiguous(memory_format=torch.channels_last) if is_float(one) and one.dim() == 4 else one
            for name, one in tensors(arrays, self._device).items()
        }


class Trainer:
    """One training of one network, by Adam (Kingma and Ba, 2015) with steps in proportion to the weights.

    BatchNormalization folded into convolutions leaves every channel with a size of its own, and steps of one length for
    all destroy the small ones. A step is therefore a share of the root mean square of a channel's weights, of a whole
    bias; one rate then fits networks that differ (You et al., 2020, scale by layer).
    """

    def __init__(self, network: Network, lesson: Lesson, settings: Settings) -> None:
        self.network, self.lesson, self.settings = network, lesson, settings
        self._parameters = network.channels_last()
        self._sizes = [
            torch.ones(()) if name in network.exponents else _size(one) for name, one in network.parameters.items()
        ]
        self._optimiser = torch.optim.Adam(self._parameters, lr=settings.rate)
        #: Steps done, the way there, and the best parameters on it.
        self.done = 0
        self.marks: list[Mark] = []
        self.best: dict[str, NDArray[np.float32]] = {}
        #: Sum of the parameters over the second half of the steps to the first mark.
        self._sum: dict[str, Tensor] = {}

    def run(self, stage: Stage, harm: float | None = None, kept: Checkpoints | None = None) -> Trained | None:
        """All steps that are left; `None` where those to the first mark did harm, more than `harm` times.

        Where the loss stops being a number, the best until then stays; StepError where there is none.
        """
        steps = self.settings.steps
        places = {math.ceil(steps * number / MARKS) for number in range(MARKS + 1)}
        try:
            while True:
                if self.done in places and (not self.marks or self.marks[-1].step != self.done):
                    self._judge()
                    if harm is not None and len(self.marks) == 2 and self._of_mean() > harm * self.marks[0].loss:
                        return None
                    self._sum = {} if self.done else self._sum
                if self.done == steps:
                    break
                loss = self.step(self.done, self._rate(self.done))
                stage.advance()
                if not math.isfinite(loss):
                    if len(self.marks) > 1:
                        break
                    where = f"the loss is {loss} at step {self.done + 1}"
                    raise StepError("train.diverged", where, hint="give a smaller `learning_rate`")
                if kept is not None:
                    kept.keep(self.standing)
        except KeyboardInterrupt:
            if kept is not None:
                kept.keep(self.standing, now=True)
            raise
        return Trained(self.best, tuple(self.marks))

    def _judge(self) -> None:
        loss = self.lesson.judge(self.network)
        with interrupt.later():
            if not self.marks or loss < min(mark.loss for mark in self.marks):
                self.best = self.network.state()
            self.marks.append(Mark(self.done, loss))

    def _of_mean(self) -> float:
        """The loss of the mean of the weights on the way to the first mark (Polyak and Juditsky, 1992)."""
        now, count = self.network.state(), self._first() - self._first() // 2
        self.network.load({name: (one / count).cpu().numpy() for name, one in self._sum.items()})
        loss = self.lesson.judge(self.network)
        self.network.load(now)
        return loss

    def _first(self) -> int:
        return math.ceil(self.settings.steps / MARKS)

    def standing(self) -> dict[str, Any]:
        """All that the next steps, if there are any, depend on: arrays and JSON values."""
        over = self.done == self.settings.steps
        found: dict[str, Any] = {"done": self.done, "marks": [[mark.step, mark.loss] for mark in self.marks]}
        for name, array in self.network.state().items():
            held = {} if over else self._optimiser.state.get(self.network.parameters[name], {})
            found |= {f"now {name}": array, f"best {name}": self.best.get(name, array)}
            found |= {f"{key} {name}": one.detach().cpu().numpy() for key, one in held.items()}
        found |= {f"sum {name}": one.cpu().numpy() for name, one in self._sum.items()}
        return found

    def go_on(self, standing: Mapping[str, Any]) -> None:
        """Stand where another run of the same training stood."""
        self.done = int(standing["done"])
        self.marks = [Mark(step, loss) for step, loss in standing["marks"]]
        self.best = {name: standing[f"best {name}"] for name in self.network.parameters}
        self.network.load({name: standing[f"now {name}"] for name in self.network.parameters})
        self._sum = {
            name: torch.from_numpy(np.array(standing[f"sum {name}"])).to(one.device)
            for name, one in self.network.parameters.items()
            if f"sum {name}" in standing
        }
        for name, one in self.network.parameters.items():
            held = {key: standing[f"{key} {name}"] for key in _MOMENTS if f"{key} {name}" in standing}
            for key, array in held.items():
                like = torch.zeros((), dtype=torch.float32) if key == "step" else torch.zeros_like(one)
                self._optimiser.state[one][key] = like.copy_(torch.from_numpy(np.asarray(array)))

    def step(self, number: int, rate: float) -> float:
        """One step on batch `number`; the loss before it. Nothing is changed by a loss that is no number."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        try:
            seen = self._gradients(number)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            at_once = self.lesson.piece or self.settings.batch
            less = f"give `batch: {at_once // 2}`" if at_once > 1 else "train fewer layers (`include`)"
            raise StepError(
                "train.memory",
                f"a step does not fit into memory, with {at_once} of its {self.settings.batch} samples at once",
                cause=str(error).strip().splitlines()[0],
                hint=f"{less}, or use a machine with more of it",
            ) from error
        if math.isfinite(seen):
            with interrupt.later():  # weights and moments are of one step
                self._update()
                self.done = number + 1
                if self._first() // 2 < self.done <= self._first():
                    self._add()
        return seen

    def _gradients(self, number: int) -> float:
        self._optimiser.zero_grad(set_to_none=True)
        return self.lesson.learn(self.network, number, self.settings.batch)

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        before = [one.detach().clone() for one in self._parameters]
        self._optimiser.step()
        with torch.no_grad():
            for one, old, size in zip(self._parameters, before, self._sizes, strict=True):
                one.sub_(old).mul_(size).add_(old)
        self.network.mask()

    def _add(self) -> None:
        for name, one in self.network.parameters.items():
            self._sum[name] = self._sum[name] + one.detach() if name in self._sum else one.detach().clone()

    def _rate(self, number: int) -> float:
        """Up in a straight line, down along a cosine (Loshchilov and Hutter, 2017)."""
        done = number / self.settings.steps
        if done < WARM_UP:
            return self.settings.rate * (number + 1) / max(1.0, WARM_UP * self.settings.steps)
        return self.settings.rate * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _size(one: Tensor) -> Tensor:
    """Root mean square along axis 0 of a matrix or convolution (its channels), of the whole of anything smaller."""
    squares = one.detach().square()
    whole = squares.mean().sqrt()
    if not whole:
        return torch.full_like(whole, _ZERO)
    return (
        whole
        if one.dim() < 2
        else squares.mean(tuple(range(1, one.dim())), keepdim=True).sqrt().clamp_min(float(_LEAST * whole))
    )
