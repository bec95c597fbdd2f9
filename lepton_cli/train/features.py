"""What a network and its teacher have in common inside: values that all passes through which weights have made."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from lepton_cli.graph.edit import captured
from lepton_cli.runtime import Values
from lepton_cli.train import proof, weights
from lepton_cli.train.network import Network

#: At most so many are compared: three taught ResNet-20 as much as nine, a third faster, and four of 27 ResNet-56.
MOST = 4
#: Samples, of those given, by which channels are told apart.
SAMPLES = 8
#: Numbers of a channel for each channel that it could be mistaken for: fewer tell channels apart by chance.
_NUMBERS = 4
#: What these read passes on only how large it is.
_SIZES = ("Shape", "Size")


@dataclasses.dataclass(frozen=True)
class Feature:
    """A value of both networks, and which of the teacher's channels, on `axis`, are those of the student.

    `spread`: the mean square of the teacher's numbers there; `channels`: `None` where both have the same ones.
    """

    name: str
    axis: int
    channels: Tensor | None
    spread: float

    def of(self, teacher: Tensor) -> Tensor:
        """What the student's value should be."""
        return teacher if self.channels is None else teacher.index_select(self.axis, self.channels)

    def loss(self, student: Tensor, aim: Tensor) -> Tensor:
        """Mean squared error as a share of `spread`."""
        return (student - aim).square().mean() / self.spread


def features(student: Network, teacher: Network, first: Sequence[Values]) -> tuple[Feature, ...]:
    """One of each row of joints of the student, where the teacher has it under the same name; evenly along its depth.

    `first`: feeds that both can take. Channels that pruning took out are found by correlation, which pruned layers
    that were repaired keep; a joint whose channels are not told apart is left out.
    """
    learns = student.gradients.learns
    rows = [[name for name in row if name in teacher and learns(student.value(name))] for row in joints(student)]
    names = [name for row in rows for name in row]
    if not names:
        return ()
    count = max((len(array) for array in first[0].values() if array.ndim), default=1)
    with torch.no_grad():
        given = [proof.tensors(feeds, student.device) for feeds in first[: math.ceil(SAMPLES / count)]]
        mine, theirs = ([network.run(feeds, names) for feeds in given] for network in (student, teacher))
    known = []
    for row in filter(None, rows):
        # The last of the largest: behind the activation, before the pooling.
        name = max(reversed(row), key=lambda name: mine[0][name].numel())
        made = _feature(name, [one[name] for one in mine], [one[name] for one in theirs])
        known += [made] if made is not None else []
    places = {len(known) - 1 - round(number * len(known) / MOST) for number in range(MOST)} & set(range(len(known)))
    return tuple(known[place] for place in sorted(places))


def joints(network: Network) -> list[list[str]]:
    """Values inside the main graph through which all passes that weights have made before them: blocks end there.

    A row for those with no matrix of weights between them; rows in order, without that of an output.
    """
    rows = list[list[ir.Value]]()
    outside = {value for value in network.model.graph.inputs if weights.held(value) is None}
    learnt, alive, mixed = set(network.trained()), set[ir.Value](), True
    reads = {
        node: {value for value in node.inputs if value is not None} | set(captured(node))
        for node in network.model.graph
    }
    left = collections.Counter(value for several in reads.values() for value in several)
    for node, several in reads.items():
        left.subtract(several)
        mixed = mixed or any(_is_matrix(value) for value in several & learnt - outside)
        if node.op_type not in _SIZES:
            learnt.update(node.outputs if several & learnt else ())
            outside.update(node.outputs if several & outside else ())
        alive = {
            value
            for value in (*alive, *node.outputs)
            if value in learnt and value in outside and (left[value] or value.is_graph_output())
        }
        if len(alive) == 1 and alive.isdisjoint(rows[-1] if rows else ()):
            rows = [*rows, [*alive]] if mixed else [*rows[:-1], [*rows[-1], *alive]]
            mixed = False
    return [[value.name or "" for value in row] for row in rows if not any(value.is_graph_output() for value in row)]


def _is_matrix(value: ir.Value) -> bool:
    """Whether it mixes or moves what passes; a vector shifts or scales it. What is not known does."""
    tensor = weights.held(value)
    shape = value.shape if tensor is None else tensor.shape
    return shape is None or sum(size != 1 for size in shape) > 1


def _feature(name: str, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Feature | None:
    """`None` where the two cannot be compared."""
    first, second = mine[0], theirs[0]
    if not first.is_floating_point() or first.dim() < 3 or first.dim() != second.dim():
        return None
    others = [axis for axis in range(first.dim()) if first.shape[axis] != second.shape[axis]]
    if not others:
        return _spread(Feature(name, 0, None, 1.0), theirs)
    if len(others) > 1 or first.shape[others[0]] > second.shape[others[0]]:
        return None
    axis = others[0]
    rows, of = (torch.cat([_rows(one, axis) for one in several], 1) for several in (mine, theirs))
    if rows.shape[1] < _NUMBERS * len(of):
        return None
    channels = (_centred(rows) @ _centred(of).T).argmax(1)
    apart = len(channels.unique()) == len(channels)
    return _spread(Feature(name, axis, channels, 1.0), theirs) if apart else None


def _spread(feature: Feature, theirs: Sequence[Tensor]) -> Feature | None:
    numbers = torch.cat([feature.of(one).float().flatten() for one in theirs])
    spread = float(numbers.square().mean())
    return dataclasses.replace(feature, spread=spread) if spread else None


def _rows(value: Tensor, axis: int) -> Tensor:
    """A row for each channel."""
    return value.float().transpose(0, axis).flatten(1)


def _centred(rows: Tensor) -> Tensor:
    """Rows of mean 0 and length 1: their products are correlations."""
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
