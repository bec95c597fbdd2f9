"""Proofs on the model at hand, before anything is repaired: what pruning rewrites stays the same function.

The prepared model computes what the given one does, and the model without some channels what the prepared one does with
zeros in their place: a channel of zeros adds nothing to whatever sums over it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling.links import Group
from lepton_cli.errors import StepError
from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.probe.rewrites import Given
from lepton_cli.step import Context


def same(before: ir.Model, after: ir.Model, does: str, context: Context) -> None:
    """Raise StepError where two models do not compute the same on the check samples; `does`: what was done between."""
    difference = Given(before, context).difference(after)
    if difference is not None:
        raise StepError(
            "step.rewrite",
            f"{does} does not compute the same: {difference}",
            hint="exclude the nodes concerned, and report this: it is a defect of lepton",
        )


def zeroed(model: ir.Model, gone: Sequence[tuple[Group, NDArray[np.int64]]]) -> ir.Model:
    """A copy in which every slice of the channels at these positions of the groups is zero, and variances one."""
    copy = io.clone(model)
    arrays: dict[str, NDArray[np.generic]] = {}
    for group, channels in gone:
        for (name, axis), positions in group.slices.items():
            value = copy.graph.initializers[name]
            assert value.const_value is not None
            array = arrays.setdefault(name, value.const_value.numpy().copy())
            variance = any(node.op_type == "BatchNormalization" and index == 4 for node, index in value.uses())
            np.moveaxis(array, axis, 0)[positions[channels].ravel()] = 1 if variance else 0
    for name, array in arrays.items():
        set_weight(copy.graph.initializers[name], array)
    return copy
