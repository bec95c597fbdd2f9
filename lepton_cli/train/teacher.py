"""Answers to learn: those of another model, on any samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import onnx_ir as ir
import torch
from torch import Tensor

from lepton_cli.data.batching import layout, sample_axes
from lepton_cli.data.dataset import Batch
from lepton_cli.data.source import nearest
from lepton_cli.errors import LeptonError, ModelError
from lepton_cli.model import io
from lepton_cli.runtime import Values
from lepton_cli.train import losses, proof
from lepton_cli.train.features import Feature, features
from lepton_cli.train.gradients import Origin
from lepton_cli.train.network import Network, no_gradient
from lepton_cli.train.outside import WholeGraph, is_float

#: How many times the loss of the outputs that of what is inside is before training. Answers are few numbers, which few
#: samples leave undecided: divergence from the original on pictures not seen, ResNet-20 at half its work, 6,000
#: pictures five times: 1.33 without, 1.27 at 0.5, 1.24 at 1.5, 1.19 at 5.
INSIDE = 10.0


class Answering(Network):
    """A model that is only asked: by onnxruntime, which has no gradients to think of, where that is the faster way.

    It answers in pieces where its batch is fixed and more samples come: a student may be the same graph with an open
    one.
    """

    def __init__(self, model: ir.Model, student: Network) -> None:
        """`student`: tells along which axis answers are joined."""
        super().__init__(model, (), str(student.device))
        inputs = io.inputs(model)
        self._in_runtime = None if self.device.type != "cpu" or _is_narrow(model) else WholeGraph(model)
        self._student, self._fixed, self._axes = student, layout(inputs).fixed, sample_axes(inputs)
        #: By value the axis that samples make longer; `None`: no sample does.
        self._joined: dict[str, int | None] = {}

    def run(self, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See `Network.run`."""
        axes = {name: axis for name, axis in self._axes.items() if name in feeds}
        counts = {feeds[name].shape[axis] for name, axis in axes.items()}
        count = max(counts, default=1)
        if self._fixed is None or count <= self._fixed or count % self._fixed or len(counts) > 1:
            return self._piece(feeds, outputs)
        parts = []
        for start in range(0, count, self._fixed):
            part = {
                name: feeds[name][(slice(None),) * axis + (slice(start, start + self._fixed),)]  # strings are arrays
                for name, axis in axes.items()
            }
            parts.append(self._piece({**feeds, **part}, outputs))
        self._learn(feeds, parts[0])
        return {
            name: one if (axis := self._joined[name]) is None else torch.cat([part[name] for part in parts], axis)
            for name, one in parts[0].items()
        }

    def _piece(self, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None) -> dict[str, Tensor]:
        """Of samples that the graph takes at once. In float32 onnxruntime is 1.4 to 2 times as fast as torch (two
        ResNets, MobileNet, SqueezeNet, MiniLM; AVX512), torch in bfloat16 1.1 to 1.4 times as fast as onnxruntime."""
        if self._in_runtime is None or torch.is_autocast_enabled("cpu"):
            return super().run(feeds, outputs)
        return self._in_runtime.run(feeds, self.outputs if outputs is None else outputs)

    def _learn(self, feeds: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> None:
        new = [name for name in part if name not in self._joined]
        if not new:
            return
        with torch.no_grad():
            whole = self._student.run(feeds, [name for name in new if name in self._student])
        for name in new:
            shape = whole[name].shape if name in whole else ()
            self._joined[name] = None if shape == part[name].shape else proof.sample_axis(part[name].shape, shape)


def _is_narrow(model: ir.Model) -> bool:
    """Whether it computes in half precision, of which training makes float32."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    return any(value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for value in values)


class Teacher:
    """What the original answers, in torch; the kind of every loss follows from its first answers."""

    def __init__(
        self,
        model: ir.Model,
        student: Network,
        first: Sequence[Values],
        outputs: Sequence[str] | None = None,
        *,
        inside: bool = False,
    ) -> None:
        """`first`: feeds that both can take. `outputs`: those that count (default: all), or inner values.

        What does not learn, or has no rows of its own, is taught by what it is made of (`Gradients.made_of`) where the
        teacher has that in the same shape. `inside`: what both have in common inside counts in a step too.
        """
        self._network = Answering(model, student)
        for name in outputs or ():
            if name not in self._network:
                raise ModelError(
                    "train.teacher",
                    f"the teacher has no `{name}`",
                    hint=nearest(name, self._network.outputs, what="its outputs"),
                )
        asked = tuple(self._network.outputs if outputs is None else outputs)
        #: What is learnt in the place of an output, by its name.
        self.in_place: dict[str, tuple[str, ...]] = {}
        own = self._own(student, asked, first[0])
        names = tuple(dict.fromkeys((*own, *chain(*self.in_place.values()))))
        self.fingerprint = f"{io.fingerprint(model)} {outputs} {self.in_place}"
        with torch.no_grad():
            given = [self._network.run(proof.tensors(feeds, student.device), names) for feeds in first]
            mine = student.run(proof.tensors(first[0], student.device), [name for name in names if name in student])
        self._kinds = {}
        for name, one in given[0].items():
            if not is_float(one):
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
            raise self._nothing(student, asked)
        self.outputs = tuple(self._kinds)
        self.features: tuple[Feature, ...] = features(student, self._network, first) if inside else ()
        self.inside = tuple(one.name for one in self.features)
        self.fingerprint += f" {self.inside}" if inside else ""
        self._factor = self._balance(student, first) if self.features else 0.0

    def _own(self, student: Network, asked: Sequence[str], feeds: Values) -> list[str]:
        """Those that are learnt as they are; what of the others is not learnt by these already goes to `in_place`."""
        given, gradients = proof.tensors(feeds, student.device), student.gradients

        def fit(names: Sequence[str]) -> list[str]:
            common = [name for name in names if name in self._network]
            with torch.no_grad():
                mine, theirs = (network.run(given, common) for network in (student, self._network))
            return [name for name in common if is_float(theirs[name]) and mine[name].shape == theirs[name].shape]

        origins = {name: gradients.origin(student.value(name)) for name in asked if name in student}
        others = [
            name
            for name, origin in origins.items()
            if origin != Origin.GIVEN and not gradients.learns(student.value(name))
        ]
        own = [name for name in asked if name not in others]
        taught = gradients.before([student.value(name) for name in own if name in student])
        for name in others:
            found = gradients.made_of(student.value(name), fit)
            if new := tuple(one for one in found if one not in taught):
                self.in_place[name] = new
            elif not found and origins[name] == Origin.LEARNT:
                own.append(name)
        return own

    def _nothing(self, student: Network, asked: Sequence[str]) -> LeptonError:
        nodes = [student.gradients.end(student.value(name)) for name in asked if name in student]
        node = next(filter(None, nodes), None)
        if node is not None:
            return no_gradient(node, "the teacher has nothing before it under the same name and in the same shape")
        return ModelError("train.teacher", "no output of the model is a float: there is nothing to learn from")

    @property
    def said(self) -> dict[str, str]:
        """The kind of loss by output."""
        return {name: said for name, (said, _) in self._kinds.items()}

    def _balance(self, student: Network, first: Sequence[Values]) -> float:
        """The factor of what is inside."""
        outputs = inside = 0.0
        for feeds in first:
            given = proof.tensors(feeds, student.device)
            with torch.no_grad():
                found, answers = student.run(given, self.outputs + self.inside), self._answers(given, inside=True)
                outputs += float(self._of_outputs(found, answers))
                inside += float(self._of_inside(found, answers))
        return INSIDE * outputs / inside if outputs and inside else 1.0

    def answers(self, batch: Batch, feeds: Mapping[str, Tensor], *, inside: bool = False) -> dict[str, Tensor]:
        """Its outputs, and what the student should have inside."""
        return self._answers(feeds, inside=inside)

    def _answers(self, feeds: Mapping[str, Tensor], *, inside: bool) -> dict[str, Tensor]:
        found = self._network.run(feeds, self.outputs + (self.inside if inside else ()))
        return found | {one.name: one.of(found[one.name]) for one in self.features if inside}

    def loss(self, found: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        """The sum over the outputs, and the mean over what is inside."""
        outputs = self._of_outputs(found, answers)
        learning = any(name in answers for name in self.inside)
        return outputs + self._factor * self._of_inside(found, answers) if learning else outputs

    def _of_outputs(self, found: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([loss(found[name], answers[name]) for name, (_, loss) in self._kinds.items()]).sum()

    def _of_inside(self, found: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([one.loss(found[one.name], answers[one.name]) for one in self.features]).mean()
