"""Answers to learn: those of another model, on any samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from lepton_cli.data.dataset import Batch
from lepton_cli.data.source import nearest
from lepton_cli.errors import ModelError
from lepton_cli.model import io
from lepton_cli.runtime import Values
from lepton_cli.train import losses, proof
from lepton_cli.train.network import Network


class Teacher:
    """What the original answers, in torch; the kind of every loss follows from its first answers."""

    def __init__(
        self, model: ir.Model, student: Network, first: Sequence[Values], outputs: Sequence[str] | None = None
    ) -> None:
        """`first`: feeds that both can take. `outputs`: those that count (default: all of floats), or inner values."""
        self._network = Network(model, (), student.device)
        self.fingerprint = f"{io.fingerprint(model)} {outputs}"
        for name in outputs or ():
            if name not in self._network:
                raise ModelError(
                    "train.teacher",
                    f"the teacher has no `{name}`",
                    hint=nearest(name, self._network.outputs, what="its outputs"),
                )
        with torch.no_grad():
            given = [self._network.run(proof.tensors(feeds, student.device), outputs) for feeds in first]
            mine = student.run(proof.tensors(first[0], student.device), outputs)
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

    def answers(self, batch: Batch, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its outputs."""
        return self._network.run(feeds, self.outputs)

    def loss(self, found: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        """The sum over the outputs."""
        return torch.stack([loss(found[name], answers[name]) for name, (_, loss) in self._kinds.items()]).sum()
