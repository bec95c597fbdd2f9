"""Tensors that a file stores by their non-zero values, written out: nothing behind this line knows them."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from lepton_cli.errors import ModelError
from lepton_cli.model import stored
from lepton_cli.model.stored import broken

#: A few bytes can ask for any size; together they may come to what a file can hold.
MOST_BYTES = 2**31 - 1


def write_out(path: Path, proto: onnx.ModelProto) -> None:
    """Make sparse initializers and sparse constants dense, in place, subgraphs and functions included.

    Raises ModelError for those that are damaged, and where they would come to more than 2 GiB.
    """
    _Writer(path).graph(proto.graph)
    for function in proto.functions:
        _Writer(path).nodes(function.node)


class _Writer:
    def __init__(self, path: Path) -> None:
        self._path, self._folder = path, path.parent.resolve()
        self._left = MOST_BYTES

    def graph(self, graph: onnx.GraphProto) -> None:
        graph.initializer.extend(self._dense(one) for one in graph.sparse_initializer)
        graph.ClearField("sparse_initializer")
        self.nodes(graph.node)

    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "sparse_value":
                    dense = self._dense(attribute.sparse_tensor)
                    attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
                for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                    self.graph(graph)

    def _dense(self, sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
        """Values [n], at positions [n] of the flat tensor or [n, rank]."""
        name, dims = sparse.values.name or "(unnamed)", tuple(sparse.dims)
        for tensor in (sparse.values, sparse.indices):
            stored.check(self._path, tensor, self._folder)
        if sparse.values.data_type == onnx.TensorProto.STRING or sparse.indices.data_type != onnx.TensorProto.INT64:
            raise self._broken(name, "is of a type that cannot be sparse")
        values, indices = (numpy_helper.to_array(one, str(self._folder)) for one in (sparse.values, sparse.indices))
        self._left -= prod(dims) * values.dtype.itemsize
        if min(dims, default=1) < 0 or self._left < 0:
            raise self._broken(name, f"cannot be written out: its shape is {list(dims)[:8]}")
        try:
            where = np.ravel_multi_index(tuple(indices.T), dims) if indices.ndim == 2 else indices
            dense = np.zeros(prod(dims), values.dtype)
            if where.shape != values.shape or (len(where) and not 0 <= where.min() <= where.max() < dense.size):
                raise ValueError
        except ValueError:
            raise self._broken(name, "has values at positions that it does not have") from None
        dense[where] = values
        return numpy_helper.from_array(dense.reshape(dims), sparse.values.name)

    def _broken(self, name: str, what: str) -> ModelError:
        return broken(self._path, f"the sparse tensor `{name}` {what}")
