"""Sparse tensors in files are written out when they are read; plain onnxruntime knows what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from lepton_cli.errors import ModelError
from lepton_cli.model import io
from lepton_cli.runtime import Session
from tests.hostile.models import FLOAT, model, tensor

VALUES = np.float32([2, -3, 5])
X = np.eye(4, dtype=np.float32)


def _sparse(indices: object, dims: tuple[int, ...] = (4, 2), name: str = "w") -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(tensor(name, VALUES), tensor("", np.array(indices, np.int64)), dims)


def _initializer(sparse: onnx.SparseTensorProto) -> onnx.ModelProto:
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, None)})
    proto.graph.sparse_initializer.append(sparse)
    return proto


def _constant(sparse: onnx.SparseTensorProto) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["w"], sparse_value=sparse),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, None)})


@pytest.mark.parametrize("make", [_initializer, _constant])
@pytest.mark.parametrize("indices", [[1, 4, 7], [[0, 1], [2, 0], [3, 1]]])
def test_written_out(make: object, indices: object) -> None:
    proto = make(_sparse(indices))  # type: ignore[operator]
    before = proto.SerializeToString()
    made = io.to_bytes(io.read(before).model)
    found = Session(made, threads=1).run({"x": X})["y"]
    np.testing.assert_array_equal(found, [[0, 2], [0, 0], [-3, 0], [0, 5]])
    np.testing.assert_array_equal(found, Session(before, threads=1).run({"x": X})["y"])


@pytest.mark.parametrize(
    ("indices", "dims", "told"),
    [
        ([1, 4, 8], (4, 2), "has values at positions that it does not have"),
        ([-1, 4, 7], (4, 2), "has values at positions that it does not have"),
        ([1, 4], (4, 2), "has values at positions that it does not have"),
        ([[0, 1], [2, 0], [4, 1]], (4, 2), "has values at positions that it does not have"),
        ([[0, 1], [2, 0], [3, 1]], (4, 2, 2), "has values at positions that it does not have"),
        ([1, 4, 7], (2**20, 2**20), "cannot be written out: its shape is [1048576, 1048576]"),
        ([1, 4, 7], (-4, -2), "cannot be written out: its shape is [-4, -2]"),
    ],
)
def test_damaged_ones_are_refused(indices: object, dims: tuple[int, ...], told: str) -> None:
    with pytest.raises(ModelError) as caught:
        io.read(_initializer(_sparse(indices, dims)).SerializeToString())
    assert caught.value.cause == f"the sparse tensor `w` {told}"


def test_a_name_that_is_taken_is_found(tmp_path: Path) -> None:
    proto = _initializer(_sparse([1, 4, 7]))
    proto.graph.initializer.append(tensor("w", np.zeros((4, 2), np.float32)))
    with pytest.raises(ModelError, match="usable") as caught:
        io.read(proto.SerializeToString())
    assert caught.value.cause == "two initializers are named `w`"
