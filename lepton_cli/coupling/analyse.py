"""Analyses a model: every operator's rule is asked which channels it couples, and the groups follow."""

from __future__ import annotations

import onnx_ir as ir

from lepton_cli.coupling.known_shapes import KnownShapes
from lepton_cli.coupling.links import Coupling, Links
from lepton_cli.coupling.operators import apply_rule


def analyse(model: ir.Model, facts: KnownShapes) -> Coupling:
    """Coupling of a prepared model (see `known_shapes.prepare`)."""
    links = Links(model, facts)
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            for axis, size in enumerate(links.shape(value) or ()):
                if size > 1:
                    links.freeze(value, axis, f"`{value.name}` is an {kind} of the model", "")
    for node in model.graph:
        apply_rule(links, node)
    return links.solve()
