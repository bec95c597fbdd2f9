"""Which positions of which tensors must be pruned together: connected components over (tensor, axis, index).

Every operator's rule (`operators.py`) joins positions of its inputs and outputs that stand for the same channel.
An axis that no rule speaks for is frozen, with the node as the reason. What remains connected and unfrozen is a
channel ("atom"); atoms of the same layout form a group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling.known_shapes import KnownShapes
from lepton_cli.graph.edit import is_constant

Ids = NDArray[np.int64]
TensorAxis = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Port:
    """A weight axis of a computing node: channels it produces (`output`) or contracts (`input`)."""

    node: str
    weight: str
    axis: int
    side: str
    #: The activation on this side and its channel axis.
    value: str
    value_axis: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels that can be removed one by one, each across all the tensors it lives in."""

    name: str
    #: Component label of every channel, in order.
    atoms: Ids
    #: (initializer, axis) -> positions, shape [channels, positions per channel].
    slices: Mapping[TensorAxis, Ids]
    producers: tuple[Port, ...]
    consumers: tuple[Port, ...]
    #: Why no channel may go, and at which node; `None` for a prunable group.
    frozen: str | None = None
    node: str = ""

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.atoms)


@dataclasses.dataclass(frozen=True)
class Coupling:
    """The analysed model: component labels of all known positions, and the groups they form."""

    labels: Mapping[TensorAxis, Ids]
    groups: tuple[Group, ...]
    facts: KnownShapes

    def keep(self, axis: TensorAxis, removed: Collection[int] | Ids) -> NDArray[np.bool_] | None:
        """Mask of the positions that stay; `None` when nothing goes."""
        labels = self.labels.get(axis)
        if labels is None:
            return None
        gone = np.isin(labels, np.asarray(removed, np.int64))
        return ~gone if gone.any() else None


class Links:
    """Collects what the rules say about one model."""

    def __init__(self, model: ir.Model, facts: KnownShapes) -> None:
        self.facts = facts
        self.model = model
        self.ports: list[Port] = []
        self.live: set[TensorAxis] = set()
        self._start: dict[TensorAxis, int] = {}
        self._count = 0
        self._edges: list[tuple[Ids, Ids]] = []
        self._frozen: list[tuple[Ids, str, str]] = []
        self._touched: set[TensorAxis] = set()
        self._merged: dict[TensorAxis, tuple[tuple[int, ...], int]] = {}

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Concrete shape, or `None` when unknown."""
        if value is None:
            return None
        if value.const_value is not None and value.producer() is None:
            return tuple(int(d) for d in value.const_value.shape.numpy())
        return self.facts.shapes.get(value.name or "")

    def constant(self, value: ir.Value | None) -> NDArray[Any] | None:
        """Array of an initializer that no caller can override."""
        if value is None or value.const_value is None or not is_constant(value):
            return None
        return value.const_value.numpy()

    def ids(self, value: ir.Value, axis: int) -> Ids:
        """Identifiers of the positions along one axis; the current node now speaks for that axis."""
        shape = self.shape(value)
        if not shape:
            return np.zeros(0, np.int64)  # a scalar or an unknown shape: no positions to speak of
        axis %= len(shape)
        key = (value.name or "", axis)
        self._touched.add(key)
        if key not in self._start:
            self._start[key] = self._count
            self._count += shape[axis]
        return np.arange(self._start[key], self._start[key] + shape[axis])

    def join(self, a: ir.Value, a_axis: int, b: ir.Value, b_axis: int) -> None:
        """Positions of the two axes stand for the same channels, one by one."""
        one, two = self.ids(a, a_axis), self.ids(b, b_axis)
        if len(one) == len(two):
            self.link(one, two)
            self.spread((a, a_axis), (b, b_axis))

    def link(self, a: Ids, b: Ids) -> None:
        """Join identifiers pairwise."""
        self._edges.append((a.ravel(), b.ravel()))

    def spread(self, *ends: tuple[ir.Value, int]) -> None:
        """Axes that stand for the same channels: when one carries weights' channels, all do."""
        keys = {(v.name or "", axis % max(len(self.shape(v) or ()), 1)) for v, axis in ends}
        if keys & self.live:
            self.live |= keys
        known = next((self._merged[key] for key in keys if key in self._merged), None)
        if known is not None:
            self._merged |= dict.fromkeys(keys - self._merged.keys(), known)

    def merge(self, whole: tuple[ir.Value, int], sizes: tuple[int, ...], place: int) -> None:
        """This axis consists of factors of these sizes, of which the one at `place` carries channels."""
        value, axis = whole
        self._merged.setdefault((value.name or "", axis), (sizes, place))

    def merged(self, value: ir.Value, axis: int, sizes: tuple[int, ...]) -> int | None:
        """Which of the factors of these sizes carries channels in an axis that was merged from such."""
        known = self._merged.get((value.name or "", axis))
        return known[1] if known is not None and known[0] == sizes else None

    def is_live(self, value: ir.Value, axis: int) -> bool:
        """Does this axis carry channels that a weight produced?"""
        return (value.name or "", axis) in self.live

    def taken_apart(self, value: ir.Value, axis: int) -> bool:
        """Is every position of this axis read alone, such as query, key and value in `[batch, n, 3, heads, size]`?"""
        users = [user for user, _ in value.uses()]
        while len(users) == 1 and users[0].op_type in ("Transpose", "Squeeze", "Unsqueeze"):
            before, after = self.shape(value) or (), self.shape(users[0].outputs[0]) or ()
            order = list(users[0].attributes.get_ints("perm", range(len(before))[::-1]))
            if users[0].op_type != "Transpose":  # the axes that are longer than 1 keep their order
                longer = iter(place for place, size in enumerate(before) if size > 1)
                order = [next(longer, -1) if size > 1 else -1 for size in after]
            if axis not in order:
                return False
            value, axis = users[0].outputs[0], order.index(axis)
            users = [user for user, _ in value.uses()]
        for user in users:
            shape = self.shape(user.outputs[0]) or ()
            scalar = user.op_type == "Gather" and self.shape(user.inputs[1]) == ()
            if scalar and user.attributes.get_int("axis", 0) % len(self.shape(value) or (0,)) == axis:
                continue
            if user.op_type not in ("Slice", "Split") or len(shape) <= axis or shape[axis] != 1:
                return False
        return bool(users)

    def port(self, node: ir.Node, weight: ir.Value, axis: int, side: str, value: ir.Value, value_axis: int) -> None:
        """The node contracts or produces channels through this axis of its weight."""
        rank = len(self.shape(value) or ())
        if weight.is_initializer():
            self.ports.append(
                Port(node.name or "", weight.name or "", axis, side, value.name or "", value_axis % max(rank, 1))
            )
            if side == "output":
                self.live.add((value.name or "", value_axis % max(rank, 1)))

    def freeze(self, value: ir.Value, axis: int, reason: str, node: str) -> None:
        """No position of this axis may go."""
        self._frozen.append((self.ids(value, axis), reason, node))

    def settle(self, node: ir.Node, reason: str) -> None:
        """Freeze every axis of the node's tensors that its rule did not speak for.

        An axis of size 1 has nothing to lose, unless it is a channel: one that was taken out of others (unbind).
        """
        touched, self._touched = self._touched, set()
        for value in dict.fromkeys([*node.inputs, *node.outputs]):
            for axis, size in enumerate(self.shape(value) or ()):
                key = ("" if value is None else value.name or "", axis)
                if value is not None and key not in touched and (size > 1 or key in self.live):
                    self.freeze(value, axis, reason, node.name or "")
        self._touched = set()

    def solve(self) -> Coupling:
        """Components, atoms and groups."""
        label = _components(self._count, self._edges)
        reasons: dict[int, tuple[str, str]] = {}
        for ids, reason, node in self._frozen:
            for root in np.unique(label[ids]):
                reasons.setdefault(int(root), (reason, node))
        shapes = {**self.facts.shapes}
        for value in self.model.graph.initializers.values():
            shapes[value.name or ""] = self.shape(value) or ()
        labels = {key: label[start : start + shapes[key[0]][key[1]]] for key, start in self._start.items()}
        return Coupling(labels, _groups(labels, self.model, self.ports, reasons), self.facts)


def _components(count: int, edges: Iterable[tuple[Ids, Ids]]) -> Ids:
    """Smallest connected identifier for each of `count` identifiers (hooking and pointer jumping)."""
    label = np.arange(count)
    pairs = [(a, b) for a, b in edges if len(a)]
    if not pairs:
        return label
    left, right = np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])
    while True:
        one, two = label[left], label[right]
        apart = one != two
        if not apart.any():
            return label
        left, right, one, two = left[apart], right[apart], one[apart], two[apart]
        np.minimum.at(label, np.maximum(one, two), np.minimum(one, two))
        while not np.array_equal(shorter := label[label], label):
            label = shorter


def _groups(
    labels: Mapping[TensorAxis, Ids], model: ir.Model, ports: list[Port], reasons: Mapping[int, tuple[str, str]]
) -> tuple[Group, ...]:
    """Atoms with a producing weight, gathered by the (initializer, axis) positions they cover."""
    initializers = set(model.graph.initializers)
    places: dict[int, dict[TensorAxis, list[int]]] = {}
    for axis, row in labels.items():
        if axis[0] in initializers:
            for position, root in enumerate(row.tolist()):
                places.setdefault(root, {}).setdefault(axis, []).append(position)
    produced = {(port.weight, port.axis) for port in ports if port.side == "output"}
    layouts: dict[object, list[int]] = {}
    for root, axes in places.items():
        if not produced.isdisjoint(axes):
            layout = (tuple((axis, len(where)) for axis, where in axes.items()), reasons.get(root))
            layouts.setdefault(layout, []).append(root)
    order = {node.name: number for number, node in enumerate(model.graph)}
    at: dict[TensorAxis, list[int]] = {}
    for number, port in enumerate(ports):
        at.setdefault((port.weight, port.axis), []).append(number)
    groups = []
    for roots in layouts.values():
        slices = {axis: np.array([places[root][axis] for root in roots], np.int64) for axis in places[roots[0]]}
        own = {number for axis in slices for number in at.get(axis, ())}
        mine = sorted((ports[number] for number in sorted(own)), key=lambda port: order[port.node])
        producers = tuple(port for port in mine if port.side == "output")
        reason, node = reasons.get(roots[0], (None, ""))
        groups.append(
            Group(
                name=producers[0].node,
                atoms=np.array(roots, np.int64),
                slices=slices,
                producers=producers,
                consumers=tuple(port for port in mine if port.side == "input"),
                frozen=reason,
                node=node,
            )
        )
    groups.sort(key=lambda group: (order[group.name], group.frozen is not None, int(group.atoms[0])))
    return _unique_names(groups)


def _unique_names(groups: list[Group]) -> tuple[Group, ...]:
    seen: dict[str, int] = {}
    named = []
    for group in groups:
        number = seen[group.name] = seen.get(group.name, 0) + 1
        named.append(group if number == 1 else dataclasses.replace(group, name=f"{group.name}#{number}"))
    return tuple(named)
