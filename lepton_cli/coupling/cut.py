"""Removing channels from a graph: weights are sliced, and everything that names a width is brought up to date."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from lepton_cli.coupling.links import Coupling, Ids
from lepton_cli.coupling.operators import find
from lepton_cli.coupling.surgery import Surgery
from lepton_cli.model import io


def cut(model: ir.Model, coupling: Coupling, removed: Collection[int] | Ids) -> ir.Model:
    """A copy of the analysed model without the channels whose labels are in `removed`.

    `model` must be the prepared model that `coupling` was made from (weights may have other values).
    """
    copy = io.clone(model)
    surgery = Surgery(copy, coupling, np.asarray(sorted(int(label) for label in removed), np.int64))
    for node in list(copy.graph):
        operator = find(node)
        if operator is not None and operator.mend is not None:
            operator.mend(surgery, node)
    surgery.slice_weights()
    forget_shapes(copy)
    return copy


def forget_shapes(model: ir.Model) -> None:
    """Drop stale shapes of inner values; inputs and outputs keep theirs."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
