"""Bytes of a finished file as a function of the widths, before anything is built: the file of the unpruned model tells.

What a later step makes of a node's weights (codes, scales, zero points, biases, packed blocks) is found in the file
where that node is computed, and counted along the axes of the weights that it stands for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from lepton_cli.coupling.links import TensorAxis
from lepton_cli.model import io
from lepton_cli.prune.analysis import Analysis
from lepton_cli.prune.cost import CostModel, Widths, build

#: Bytes of a tensor in a file besides its elements: its name comes on top.
_FRAME = 16


@dataclasses.dataclass(frozen=True)
class Stored:
    """Bytes by widths of the plan's groups, and what goes with a whole node."""

    price: CostModel
    #: Bytes of every node of the plan with all its channels: its constants and what the file says about it.
    nodes: Mapping[str, float]

    def __call__(self, widths: Widths, gone: Collection[str] = ()) -> float:
        """Bytes at these widths, which are full inside branches that go; `gone`: the nodes of such branches."""
        return self.price(widths) - sum(self.nodes.get(node, 0.0) for node in gone)


def stored(plan: Analysis, written: ir.Model) -> Stored:
    """`written`: the file that the unpruned model becomes, in the precision of a candidate."""
    size = float(len(io.to_bytes(written)))
    terms: list[tuple[float, list[TensorAxis], tuple[int, ...]]] = []
    nodes: dict[str, float] = {}
    counted: set[str] = set()
    ends = _ends(plan, written)
    borders = {value.name for node in plan.model.graph for value in node.outputs} | {
        value.name for value in plan.model.graph.inputs
    }
    for node in plan.model.graph:
        name = node.name or ""
        weights = _weights(node)
        for made in _cone(ends.get(name), borders, counted):
            nodes[name] = nodes.get(name, 0.0) + (_FRAME if isinstance(made, ir.Value) else _length(made))
            if isinstance(made, ir.Value):
                tensor = made.const_value
                assert tensor is not None
                nodes[name] += float(tensor.nbytes) + len(made.name or "")
                if (axes := _axes(tuple(map(int, tensor.shape.numpy())), name, weights, plan)) is not None:
                    terms.append((float(tensor.nbytes), *axes))
    rest = size - sum(total for total, _, _ in terms)
    return Stored(build(terms, rest, plan.coupling, plan.groups), nodes)


def _ends(plan: Analysis, written: ir.Model) -> dict[str, ir.Node]:
    """The node of the file that each node of the plan became: by its name, else by its output."""
    by_name = {node.name or "": node for node in written.graph}
    by_output = {value.name: node for node in written.graph for value in node.outputs}
    found = {}
    for node in plan.model.graph:
        end = by_name.get(node.name or "") or by_output.get(node.outputs[0].name)
        if end is not None:
            found[node.name or ""] = end
    return found


def _cone(end: ir.Node | None, borders: Collection[str | None], counted: set[str]) -> Iterator[ir.Node | ir.Value]:
    """A node of the file, what computes its inputs up to the plan's values, and all constants on the way; each once."""
    queue = [] if end is None else [end]
    while queue:
        node = queue.pop()
        if (key := f"node {node.name}") in counted:
            continue
        counted.add(key)
        yield node
        for value in node.inputs:
            if value is None:
                continue
            if value.const_value is not None and value.is_initializer():
                if value.name not in counted:
                    counted.add(value.name or "")
                    yield value
            elif (producer := value.producer()) is not None and value.name not in borders:
                queue.append(producer)


def _length(node: ir.Node) -> float:
    """Bytes of a node in a file, about: names of what it reads and makes, and a frame around each."""
    values = (*(v.name or "" for v in node.inputs if v is not None), *(v.name or "" for v in node.outputs))
    return float(sum(len(text) + 2 for text in (node.name or "", node.op_type, *values)) + _FRAME)


def _weights(node: ir.Node) -> list[tuple[str, tuple[int, ...]]]:
    """Weights that a node of the plan reads, with their shapes, the largest first."""
    found = [
        (value.name or "", tuple(map(int, value.const_value.shape.numpy())))
        for value in node.inputs
        if value is not None and value.is_initializer() and value.const_value is not None
    ]
    return sorted(found, key=lambda one: -_count(one[1]))


def _axes(
    shape: tuple[int, ...], node: str, weights: Sequence[tuple[str, tuple[int, ...]]], plan: Analysis
) -> tuple[list[TensorAxis], tuple[int, ...]] | None:
    """The axes of the plan's weights that a constant of the file is counted along; `None` for what stays.

    As many elements as a weight: all of its axes. As many as it has outputs: that axis. Blocks of several codes, or a
    scale for each block: as many as there are elements.
    """
    count = _count(shape)
    for name, full in weights:
        if count == _count(full) and count > 1:
            return [(name, axis) for axis in range(len(full))], full
    for name, full in weights:
        axis = _outputs(plan, node, name)
        if axis is not None and count == full[axis] and count > 1:
            return [(name, axis)], (full[axis],)
        if len(full) > 1 and count > max(full):
            return [(name, axis) for axis in range(len(full))], full
    return None


def _outputs(plan: Analysis, node: str, weight: str) -> int | None:
    """The axis of a weight along which the node's outputs lie."""
    for group in (*plan.groups, *plan.frozen):
        for port in group.producers:
            if port.node == node and port.weight == weight:
                return port.axis
    return None


def _count(shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
