"""Several things to learn at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lepton_cli.data.dataset import Batch
from lepton_cli.train import proof
from lepton_cli.train.loop import Task
from lepton_cli.train.network import Network


class NamedTask(Task, Protocol):
    """A task that tells how it compares."""

    #: By output that does not learn, what does in its place.
    in_place: dict[str, tuple[str, ...]]

    @property
    def said(self) -> dict[str, str]:
        """The kind of loss by output."""


@dataclasses.dataclass(frozen=True)
class WeightedTask:
    """A task and the factor of its loss."""

    task: NamedTask
    weight: float = 1.0


class Together:
    """The weighted sum of the losses of some tasks."""

    def __init__(self, parts: Sequence[WeightedTask]) -> None:
        self.parts = tuple(parts)
        self.outputs = tuple(dict.fromkeys(name for part in parts for name in part.task.outputs))
        self.inside = tuple(dict.fromkeys(name for part in parts for name in part.task.inside))

    @property
    def fingerprint(self) -> str:
        """Those of the parts, with their weights."""
        return "; ".join(f"{part.weight} {part.task.fingerprint}" for part in self.parts)

    @property
    def said(self) -> dict[str, str]:
        """The kinds of losses by output."""
        kinds: dict[str, list[str]] = {name: [] for name in self.outputs}
        for part in self.parts:
            for name, kind in part.task.said.items():
                kinds[name].append(kind)
        return {name: " + ".join(several) for name, several in kinds.items()}

    @property
    def in_place(self) -> dict[str, tuple[str, ...]]:
        """By output that does not learn, what does in its place."""
        return {name: values for part in self.parts for name, values in part.task.in_place.items()}

    def answers(self, batch: Batch, feeds: Mapping[str, Tensor], *, inside: bool = False) -> dict[str, Tensor]:
        """Those of every task, behind its number."""
        return {
            f"{number} {name}": one
            for number, part in enumerate(self.parts)
            for name, one in part.task.answers(batch, feeds, inside=inside).items()
        }

    def loss(self, found: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        """The sum over the tasks."""
        by_task: list[dict[str, Tensor]] = [{} for _ in self.parts]
        for key, one in answers.items():
            number, _, name = key.partition(" ")
            by_task[int(number)][name] = one
        losses = [part.weight * part.task.loss(found, mine) for part, mine in zip(self.parts, by_task, strict=True)]
        return torch.stack(losses).sum()

    def apart(self, network: Network, kept: Sequence[Batch]) -> list[float]:
        """The mean loss of each task on samples kept apart, without its weight."""
        totals = [0.0 for _ in self.parts]
        for batch in kept:
            feeds = proof.tensors(batch.feeds, network.device)
            with torch.no_grad():
                found = {name: one.float() for name, one in network.run(feeds, self.outputs).items()}
                for number, part in enumerate(self.parts):
                    totals[number] += float(part.task.loss(found, part.task.answers(batch, feeds))) * batch.count
        return [total / sum(batch.count for batch in kept) for total in totals]
