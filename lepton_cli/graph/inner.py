"""Weights of branches and bodies that nodes cut, turn and join before they are used: computed once and for all.

Exporters write an LSTM's weights so, with the gates in the order that ONNX wants. In the main graph `fold` does it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir

from lepton_cli import runtime
from lepton_cli.errors import LeptonError
from lepton_cli.graph.edit import Editor, is_constant

#: Operators that return the values they are given. Blocks take a Transpose as it is, and share the table behind it.
MOVING = frozenset({"Cast", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"})


def settle(model: ir.Model, growth: float) -> None:
    """Replace what only moves weights in inner graphs by its results, in place, unless these are `growth` times larger.

    Their initializers must be there: no Constant nodes.
    """
    editor = Editor(model)
    for graph in model.graphs():
        if graph is model.graph:
            continue
        made: set[ir.Value] = set()
        nodes = []
        for node in graph:
            values = [value for value in node.inputs if value is not None]
            if node.op_type in MOVING and not node.domain and all(_numbers(v) or v in made for v in values):
                nodes.append(node)
                made.update(node.outputs)
        wanted = [v for v in made if not v.is_graph_output() and any(use.node not in nodes for use in v.uses())]
        sources = {v for node in nodes for v in node.inputs if v is not None and v.const_value is not None}
        results = _computed(model, nodes, sources, [value.name or "" for value in wanted])
        read = sum(value.const_value.nbytes for value in sources if value.const_value is not None)
        if sum(array.nbytes for array in results.values()) <= growth * read:
            for value in wanted:
                if value.name in results:
                    editor.freeze(value, results[value.name])


def _numbers(value: ir.Value) -> bool:
    """Is this a weight? Texts are none."""
    tensor = value.const_value
    return is_constant(value) and tensor is not None and tensor.dtype != ir.DataType.STRING


def _computed(
    model: ir.Model, nodes: Collection[ir.Node], sources: Collection[ir.Value], names: Collection[str]
) -> dict[str, np.ndarray]:
    """What onnxruntime makes of the nodes; nothing where it cannot."""
    if not names:
        return {}
    held = []
    for value in sources:
        tensor = value.const_value
        assert tensor is not None
        proto = ir.serde.serialize_tensor(ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name))
        held.append(proto)
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    graph = onnx.helper.make_graph([ir.serde.serialize_node(node) for node in nodes], "moved", [], outputs, held)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    made = onnx.helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)
    try:
        found = runtime.Session(made.SerializeToString(), threads=1, optimise=False).run({}, list(names))
    except LeptonError:
        return {}
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray) and array.dtype != object}
