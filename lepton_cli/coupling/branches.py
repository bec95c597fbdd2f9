"""Residual branches: what feeds one side of an Add and nothing else, and the graph without it.

Depth pruning is channel pruning to zero across an Add: the other side takes the sum's place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from lepton_cli.coupling.known_shapes import KnownShapes
from lepton_cli.graph.edit import bypass
from lepton_cli.model import io

#: Applying these twice is applying them once.
_IDEMPOTENT = ("Relu", "Abs", "Round", "Floor", "Ceil", "Sign")


@dataclasses.dataclass(frozen=True)
class Branch:
    """One side of an Add, and the nodes (in graph order) that nothing else needs."""

    #: Name of the Add.
    add: str
    #: Which of its inputs goes.
    side: int
    nodes: tuple[str, ...]


def find(model: ir.Model, facts: KnownShapes) -> tuple[Branch, ...]:
    """Branches with weights of their own, one an Add at most: the side with more of them.

    Both sides must have the sum's shape at every input size, so that either can stand for it.
    """
    order = {node: number for number, node in enumerate(model.graph)}
    found = []
    for add in model.graph:
        plain = add.op_type == "Add" and add.domain in ("", "ai.onnx") and add.name
        if not plain or add.outputs[0].is_graph_output():
            continue
        sides = [
            (_weights(nodes), -side, sorted(nodes, key=order.__getitem__))
            for side in (0, 1)
            if _same_shape(add, side, facts) and (nodes := _only_for(add, side)) and _weights(nodes)
        ]
        if sides:
            _, minus, ordered = max(sides, key=lambda entry: entry[:2])
            found.append(Branch(add.name or "", -minus, tuple(node.name or "" for node in ordered)))
    return tuple(found)


def _same_shape(add: ir.Node, side: int, facts: KnownShapes) -> bool:
    """May the input opposite to `side` take the place of the sum?"""
    branch, other, y = add.inputs[side], add.inputs[1 - side], add.outputs[0]
    if branch is None or other is None or branch is other or other.is_initializer() or other.producer() is None:
        return False
    shapes = [facts.shapes.get(value.name or "") for value in (other, y)]
    if shapes[0] is None or shapes[0] != shapes[1]:
        return False
    return all(
        ((other.name or "", axis) in facts.open) == ((y.name or "", axis) in facts.open)
        for axis in range(len(shapes[0]))
    )


def _only_for(add: ir.Node, side: int) -> set[ir.Node]:
    """Nodes whose results reach nothing but this side of the Add."""
    start = add.inputs[side]
    producer = start.producer() if start is not None else None
    if start is None or producer is None or len(start.uses()) != 1:
        return set()
    inside: set[ir.Node] = set()
    waiting = [producer]
    while waiting:
        node = waiting.pop()
        users = {use.node for output in node.outputs for use in output.uses() if use != (add, side)}
        if node in inside or users - inside or any(output.is_graph_output() for output in node.outputs):
            continue
        inside.add(node)
        waiting += [before for value in node.inputs if value is not None and (before := value.producer()) is not None]
    return inside


def _weights(nodes: Iterable[ir.Node]) -> int:
    """Elements of the matrices and kernels that these nodes compute with (a table that is looked up costs nothing)."""
    computing = [node for node in nodes if not node.op_type.startswith("Gather")]
    tensors = {
        value.const_value for node in computing for value in node.inputs if value is not None and value.is_initializer()
    }
    matrices = [t for t in tensors if t is not None and len(t.shape) > 1 and t.dtype.is_floating_point()]
    return sum(tensor.size for tensor in matrices)


def drop(model: ir.Model, branches: Sequence[Branch]) -> tuple[ir.Model, frozenset[str]]:
    """A copy without these branches, and the names of values that now stand for sums which had them.

    A value that is left with the sum's readers only takes the sum's name: that is what it should become in a repair.
    """
    copy = io.clone(model)
    stand_ins: set[str] = set()
    for branch in branches:
        add = next((node for node in copy.graph if node.name == branch.add), None)
        if add is not None:
            stand_ins |= _drop(copy, add, branch.side)
    left = {output.name for node in copy.graph for output in node.outputs}
    return copy, frozenset(stand_ins & left)


def _drop(model: ir.Model, add: ir.Node, side: int) -> set[str]:
    """Remove one branch in place; names of the values that stand for its sum."""
    gone, total, other = _only_for(add, side), add.outputs[0], add.inputs[1 - side]
    if other is None:
        return set()
    exclusive = not other.is_graph_output() and not {user for user, _ in other.uses()} - gone - {add}
    name = total.name or ""
    bypass(add, 1 - side)
    model.graph.remove([node for node in model.graph if node in gone], safe=True)
    before, again = other.producer(), _repeated(other)
    if again is None or before is None:
        if not exclusive:
            return set()
        other.name = name
        return {name}
    outer = again.outputs[0].name or ""
    bypass(again)
    if not exclusive:
        return set()
    other.name = outer
    inner = before.inputs[0]
    if inner is None or inner.producer() is None or len(inner.uses()) > 1 or inner.is_graph_output():
        return {outer}
    inner.name = name
    return {outer, name}


def _repeated(value: ir.Value) -> ir.Node | None:
    """The only reader of a value, when it does again what made the value and changes nothing."""
    before, users = value.producer(), [user for user, _ in value.uses()]
    if before is None or len(users) != 1 or value.is_graph_output() or users[0].outputs[0].is_graph_output():
        return None
    plain = before.op_type in _IDEMPOTENT and before.domain == ""
    return users[0] if plain and (users[0].op_type, users[0].domain) == (before.op_type, "") else None
