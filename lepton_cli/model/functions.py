"""A model's own functions, put in the place of their calls: steps and measurements see what is computed."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes import common


def written_out(model: ir.Model) -> ir.Model:
    """The model without functions of its own; as it is where onnx-ir cannot put one of them in place.

    That is one which takes a graph, or one written in another version of an operator set where an operator in it means
    something else.
    """
    if not model.functions:
        return model
    copy = model.clone()
    for function in copy.functions.values():
        for node in function.all_nodes():  # onnx-ir calls what has no name just "node"
            node.name = node.name or node.op_type
        for domain, version in copy.graph.opset_imports.items():
            written = function.opset_imports.get(domain, version)
            if written != version and all(_same(node, domain, written, version) for node in function.all_nodes()):
                function.opset_imports[domain] = version
    try:
        common.InlinePass()(copy)
    except (ValueError, ir.passes.InvariantError, ir.passes.PassError):
        return model
    return copy


def _same(node: ir.Node, domain: str, one: int, other: int) -> bool:
    """Whether two versions of an operator set give the node's operator one signature; other sets' do not matter.

    Types aside: newer versions of an operator take more of them. Where its meaning changed, so did a default.
    """
    if node.domain != domain:
        return True
    try:
        first, second = (onnx.defs.get_schema(node.op_type, version, domain) for version in (one, other))
    except onnx.defs.SchemaError:
        return False
    return _signature(first) == _signature(second)


def _signature(schema: onnx.defs.OpSchema) -> object:
    values = [[(value.name, value.option) for value in side] for side in (schema.inputs, schema.outputs)]
    attributes = {name: one.default_value.SerializeToString() for name, one in schema.attributes.items()}
    return values, attributes
