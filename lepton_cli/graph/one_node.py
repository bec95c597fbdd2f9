"""One node of a graph, run alone on arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli import runtime
from lepton_cli.errors import ModelError
from lepton_cli.graph.edit import inner_graphs

#: The error of a node whose result cannot be looked at.
NO_ARRAY = "model.no-array"


def outer_values(node: ir.Node) -> list[ir.Value]:
    """Values from outside that graphs inside the node read, whatever graph around it they stand in."""
    found: dict[ir.Value, None] = {}
    for graph in inner_graphs(node):
        inside = {graph, *graph.subgraphs()}
        read = [value for one in graph.all_nodes() for value in one.inputs if value is not None]
        read += [value for one in inside for value in one.outputs]
        found.update((value, None) for value in read if value.graph not in inside)
    return list(found)


class OneNode:
    """A node as a model of its own: inputs by their number, what inner graphs read from outside by name."""

    def __init__(
        self,
        node: ir.Node,
        model: ir.Model,
        fixed: Mapping[int | str, NDArray[Any]],
        fed: Mapping[int | str, Any],
    ) -> None:
        """`fixed`: what is the same in every run. `fed`: of the rest, arrays as they will be given; lists of arrays for
        sequences.

        Raises ModelError where onnxruntime does not take the node.
        """
        proto = ir.serde.serialize_node(node)
        proto.input[:] = [_name(index) if one is not None else "" for index, one in enumerate(node.inputs)]
        _forget_shapes(proto)
        self._names = [value.name or "" for value in node.outputs if value.name]
        inputs = [onnx.ValueInfoProto(name=_name(key), type=type_of(one)) for key, one in fed.items()]
        held = [ir.serde.serialize_tensor(_tensor(array, _name(key))) for key, array in fixed.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in self._names]
        graph = onnx.helper.make_graph([proto], "node", inputs, outputs, held)
        imports = [onnx.helper.make_opsetid(*one) for one in model.graph.opset_imports.items()]
        made = onnx.helper.make_model(graph, opset_imports=imports, ir_version=max(model.ir_version, 4))
        self._session = runtime.Session(made.SerializeToString(), threads=1, optimise=False, spin=False)

    def run(self, fed: Mapping[int | str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The node's results. Raises ModelError where there are none, or where they are no arrays."""
        found = self.results(fed)
        if not all(isinstance(one, np.ndarray) for one in found):
            raise ModelError(NO_ARRAY, "its result is a sequence or a map")
        return found

    def results(self, fed: Mapping[int | str, Any]) -> list[Any]:
        """The same where sequences and maps may be among them. Raises ModelError where there are none."""
        return list(self._session.run({_name(key): one for key, one in fed.items()}).values())


def type_of(value: Any) -> onnx.TypeProto:
    """The type of an array or of a sequence, a list of arrays. Raises ModelError for anything else."""
    if isinstance(value, np.ndarray):
        return onnx.helper.make_tensor_type_proto(_kind(value), _dims(value))
    if not isinstance(value, list) or not value or not isinstance(value[0], np.ndarray):
        raise ModelError(NO_ARRAY, "one of its inputs is a map, or a sequence of maps or of nothing")
    return onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(_kind(value[0]), None))


def _forget_shapes(node: onnx.NodeProto) -> None:
    """Those that inner graphs state, of one sample: onnxruntime holds results to them."""
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            del graph.value_info[:]
            for value in graph.output:
                value.type.tensor_type.ClearField("shape")
            for inner in graph.node:
                _forget_shapes(inner)


def _tensor(array: NDArray[Any], name: str) -> ir.TensorProtocol:
    if array.dtype == object:
        texts = [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel()]
        return ir.StringTensor(texts, shape=ir.Shape(array.shape), name=name)
    return ir.tensor(array, name=name)


def _name(key: int | str) -> str:
    return key if isinstance(key, str) else f"input:{key}"


def _dims(array: NDArray[Any]) -> list[int | None]:
    """Open sizes, but for shapes: shape inference counts their numbers."""
    return [len(array)] if array.ndim == 1 and array.dtype == np.int64 else [None] * array.ndim


def _kind(array: NDArray[Any]) -> int:
    return int(ir.DataType.STRING if array.dtype == object else ir.DataType.from_numpy(array.dtype))
