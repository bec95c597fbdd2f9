"""Values beyond which nobody who reads a tensor tells one from another: the flat ends of activation functions.

SiLU is 0 for -20 as for -2000. A range that reaches to -2000 spends its 256 levels on values that all come to the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from lepton_cli.probe.clipping import Range

#: From here on exp(-x) is below 1e-5, and tanh and erf are as close to 1.
_EXP, _TANH, _ERF = 12.0, 6.5, 3.2


def _hard_sigmoid(node: ir.Node) -> Range:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else (-np.inf, np.inf)


#: Where the slope of a function is nothing, at both sides.
_FLAT: dict[str, Callable[[ir.Node], Range]] = {
    "Sigmoid": lambda node: (-_EXP, _EXP),
    "Tanh": lambda node: (-_TANH, _TANH),
    "Erf": lambda node: (-_ERF, _ERF),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node: (-3.0, np.inf),
    "Gelu": lambda node: (-_TANH, np.inf),
    "Relu": lambda node: (0.0, np.inf),
}


def bounds(model: ir.Model) -> dict[str, Range]:
    """By tensor, where it stands on a flat end for all its readers; no entry where there is none."""
    found = {}
    for node in model.graph:
        for value in node.outputs:
            ends = [_seen(user, value) for user, _ in value.uses()]
            if not ends or value.is_graph_output():
                continue
            low, high = min(end[0] for end in ends), max(end[1] for end in ends)
            if np.isfinite(low) or np.isfinite(high):
                found[value.name or ""] = (low, high)
    return found


def _seen(node: ir.Node, value: ir.Value) -> Range:
    """Where the function of this reader begins and ends to depend on the value."""
    if node.domain:
        return -np.inf, np.inf
    if node.op_type in _FLAT:
        return _FLAT[node.op_type](node)
    if node.op_type == "Mul":  # x Sigmoid(x), which is 0 on the left and x on the right
        for other in node.inputs:
            gate = other.producer() if other is not None and other is not value else None
            if gate is not None and gate.op_type in ("Sigmoid", "HardSigmoid") and gate.inputs[0] is value:
                return _FLAT[gate.op_type](gate)[0], np.inf
    return -np.inf, np.inf
