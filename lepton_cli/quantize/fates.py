"""What becomes of the weights that a step has no form for: said of every node that holds some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from lepton_cli.graph.facts import CARRIERS, reads_quantized
from lepton_cli.graph.held import holders
from lepton_cli.step import Decision

#: For lookups of small tables and of those that no form fits, by the steps that store tables in blocks.
TABLES = {
    "Gather": "8 bits are for tables of 100,000 values or more, with rows a multiple of 16 long, that one Gather of "
    "whole rows reads"
}

#: For what onnxruntime has no int8 kernel for, by the steps that need one.
NO_KERNEL = {
    "ConvTranspose": "ConvTranspose stays float: onnxruntime has no int8 kernel for it; only one whose kernel is its "
    "stride, between int8 convolutions, can be written as Conv",
    "GRU": "GRU stays float: onnxruntime has no int8 kernel for it",
    "RNN": "RNN stays float: onnxruntime has no int8 kernel for it",
}
#: What `quantize.static` says.
STATIC = {**TABLES, **NO_KERNEL, "LSTM": "LSTM stays float: `quantize.dynamic` has an int8 form of it"}


def left_alone(
    model: ir.Model, decided: Iterable[Decision], takes: str, reasons: Mapping[str, str] = TABLES
) -> tuple[Decision, ...]:
    """A decision for each node with weights that has none among `decided`.

    `takes`: what the step works on, in words. `reasons`: by operator, where there is more to say.
    """
    known = {decision.node for decision in decided}
    found = []
    for node in (holder.node for holder in holders(model)):
        if node.name not in known:
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            reason = reasons.get(operator, f"{operator} stays float: {takes}")
            found.append(Decision(node=node.name or "", op=node.op_type, action="kept", reason=reason))
    for node in model.graph.all_nodes():
        if node.name not in known and reads_quantized(node) and not node.domain and node.op_type not in CARRIERS:
            reason = "its weight is quantized already"
            found.append(Decision(node=node.name or "", op=node.op_type, action="kept", reason=reason))
    return tuple(found)
