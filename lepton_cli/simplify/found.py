"""What a rule answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Found:
    """Nodes that come in the place of the one looked at; the last gives its result.

    `matched`: the nodes that this stands on, in the order of the graph: they go when nothing else reads them. Constants
    among the inputs of the made nodes (`held`) are not in the graph yet. `instead`: further results of the node, each
    with the value of a made node that stands for it.
    """

    made: Sequence[ir.Node]
    matched: Sequence[ir.Node]
    instead: Sequence[tuple[ir.Value, ir.Value]] = ()


#: Looks at a node of the main graph; `None` where the rule does not fit.
Find = Callable[[ir.Model, ir.Node], Found | None]


def held(name: str, array: NDArray[np.generic]) -> ir.Value:
    """A constant for a made node."""
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    return ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))


def before(node: ir.Node, index: int = 0) -> ir.Node | None:
    """The standard operator of the same graph that gives input number `index`; nothing else need read it."""
    value = node.inputs[index] if index < len(node.inputs) else None
    made = value.producer() if value is not None else None
    return made if made is not None and made.domain in ("", "ai.onnx") and made.graph is node.graph else None


def only_reader(node: ir.Node) -> bool:
    """Does one node alone read the first result, and no output of the graph?"""
    return len(node.outputs[0].uses()) == 1 and not node.outputs[0].is_graph_output()
