"""One cut of channels: what stays of every axis, and the means to bring a node up to date."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling.links import Coupling, Ids, Links
from lepton_cli.graph.edit import Editor, set_weight


class Surgery:
    """One cut, as the operators see it: which positions of their values stay."""

    def __init__(self, model: ir.Model, coupling: Coupling, removed: Ids) -> None:
        self.model = model
        self.editor = Editor(model)
        self.coupling = coupling
        self.removed = removed
        self.links = Links(model, coupling.facts)

    def keep(self, value: ir.Value, axis: int) -> NDArray[np.bool_] | None:
        """Mask of the positions of an axis that stay; `None` when all do."""
        rank = len(self.links.shape(value) or ())
        return self.coupling.keep((value.name or "", axis % max(rank, 1)), self.removed)

    def width(self, value: ir.Value, axis: int) -> int:
        """Size of an axis after the cut."""
        mask = self.keep(value, axis)
        return (self.links.shape(value) or ())[axis] if mask is None else int(mask.sum())

    def touches(self, value: ir.Value) -> bool:
        """Does any axis of this value get shorter?"""
        return any(self.keep(value, axis) is not None for axis in range(len(self.links.shape(value) or ())))

    def set_input(self, node: ir.Node, index: int, numbers: list[int]) -> None:
        """A new literal int64 input of the node."""
        self.editor.give(node, index, np.array(numbers, np.int64), f"{node.name}__{index}")

    def slice_weights(self) -> None:
        """Take the kept positions of every initializer."""
        for name, value in self.model.graph.initializers.items():
            if value.const_value is None:
                continue
            array: NDArray[Any] | None = None
            for axis in range(len(value.const_value.shape)):
                mask = self.coupling.keep((name, axis), self.removed)
                if mask is not None:
                    array = np.compress(mask, value.const_value.numpy() if array is None else array, axis)
            if array is not None:
                set_weight(value, array)
