"""What follows from the sizes of a model's inputs alone, found without running the model: shapes, and shape arithmetic.

With sizes given, what a graph computes from them is constant: folding and inference take turns until nothing is new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph import fold, shapes
from lepton_cli.model import io

#: Elements of a value up to which it may be shape arithmetic.
_SMALL = 4096
_ROUNDS = 32


def settle(model: ir.Model, feeds: Mapping[str, Sequence[int]]) -> tuple[shapes.Shapes, dict[str, NDArray[np.generic]]]:
    """Shapes of the main graph's values for inputs of these shapes, and the small values that follow from them.

    What depends on the data that is fed stays out of both.
    """
    copy = io.clone(model)
    for value in copy.graph.inputs:
        if value.name in feeds:
            value.shape = ir.Shape([int(size) for size in feeds[value.name or ""]])
    found: shapes.Shapes = {}
    for _ in range(_ROUNDS):
        known = shapes.infer(copy)
        found |= {name: one.fixed for name, one in known.items() if name and one.fixed is not None}
        if not fold.fold_constants(copy, _arithmetic(copy, known), known):
            break
    held = {name: value.const_value for name, value in copy.graph.initializers.items()}
    values = {
        name: tensor.numpy()
        for name, tensor in held.items()
        if tensor is not None and name not in model.graph.initializers and tensor.size <= _SMALL
    }
    return found | {name: tuple(array.shape) for name, array in values.items()}, values


def _arithmetic(model: ir.Model, known: Mapping[str, shapes.Inferred]) -> set[str]:
    """Nodes that may be shape arithmetic: they make little."""
    return {
        node.name or ""
        for node in model.graph
        if all((shape := known[o.name].fixed) is None or math.prod(shape) <= _SMALL for o in node.outputs if o.name)
    }
