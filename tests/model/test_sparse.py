"""Sparse tensors in files are written out when they are read; plain onnxruntime knows what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from lepton_cli.errors import ModelError
from lepton_cli.model import io, sparse
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
        ([[0, 1, 2], [0, 1, 3]], (4, 2), "has values at positions that it does not have"),
        ([[0, 1, 2], [0, 1, 3]], (4, 4, 4), "has values at positions that it does not have"),
        ([1, 4, 7], (-1, 4), "cannot be written out: its shape is [-1, 4]"),
        ([1, 4, 7], (4, -1), "cannot be written out: its shape is [4, -1]"),
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


def _tensor(values: object, indices: object, dims: tuple[int, ...], name: str = "w") -> onnx.SparseTensorProto:
    numbers = tensor(name, np.asarray(values, np.float32))
    return helper.make_sparse_tensor(numbers, tensor("", np.asarray(indices, np.int64)), dims)


def _written(*given: onnx.SparseTensorProto) -> list[np.ndarray]:
    proto = _initializer(given[0])
    proto.graph.sparse_initializer.extend(given[1:])
    sparse.write_out(Path("memory"), proto)
    assert not proto.graph.sparse_initializer
    return [onnx.numpy_helper.to_array(one) for one in proto.graph.initializer]


@pytest.mark.parametrize(
    ("values", "indices", "dims", "dense"),
    [
        ([2], [0], (3,), [2, 0, 0]),
        ([2], [[0, 0]], (1, 2), [[2, 0]]),
        ([2, 3], [[0, 1], [1, 0]], (2, 2), [[0, 2], [3, 0]]),
        ([2], [0], (), 2),
        ([], [], (2, 2), [[0, 0], [0, 0]]),
        ([], np.zeros((0, 2)), (2, 2), [[0, 0], [0, 0]]),
        ([], [], (0, 3), np.zeros((0, 3))),
    ],
)
def test_what_is_not_stored_is_zero(values: object, indices: object, dims: tuple[int, ...], dense: object) -> None:
    (found,) = _written(_tensor(values, indices, dims))
    np.testing.assert_array_equal(found, dense)
    assert (found.dtype, found.shape) == (np.float32, dims)


def test_all_of_them_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.iinfo(np.int32).max == sparse.MOST_BYTES, "of a protobuf message"
    monkeypatch.setattr(sparse, "MOST_BYTES", 64)
    assert len(_written(_tensor([2], [0], (4, 2)), _tensor([2], [0], (8,), "v"))) == 2
    with pytest.raises(ModelError) as caught:
        _written(_tensor([2], [0], (4, 2)), _tensor([2], [0], (9,), ""))
    assert caught.value.cause == "the sparse tensor `(unnamed)` cannot be written out: its shape is [9]"


@pytest.mark.parametrize("kind", ["values", "indices"])
def test_types_that_cannot_be_sparse(kind: str) -> None:
    wrong = _tensor([2], [0], (3,))
    if kind == "values":
        wrong.values.CopyFrom(helper.make_tensor("w", onnx.TensorProto.STRING, [1], [b"a"]))
    else:
        wrong.indices.CopyFrom(tensor("", np.zeros(1, np.int32)))
    with pytest.raises(ModelError) as caught:
        _written(wrong)
    assert caught.value.cause == "the sparse tensor `w` is of a type that cannot be sparse"


@pytest.mark.parametrize("kind", ["values", "indices"])
def test_no_file_outside_the_folder_is_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "inside").mkdir()
    one = _tensor([2], [0], (3,))
    onnx.external_data_helper.set_external_data(getattr(one, kind), "../secret", 0, 4 if kind == "values" else 8)
    getattr(one, kind).ClearField("raw_data")
    with pytest.raises(ModelError):
        sparse.write_out(tmp_path / "inside" / "model.onnx", _initializer(one))


def test_branches_and_functions_are_written_out_and_other_attributes_stay() -> None:
    inner = helper.make_node("Constant", [], ["c"], sparse_value=_tensor([2], [0], (3,)))
    plain = helper.make_node("Constant", [], ["p"], value=tensor("", np.ones(2, np.float32)))
    other = helper.make_node("Other", [], ["o"], sparse_value=_tensor([2], [0], (3,)))
    branch = helper.make_graph([inner, plain, other], "branch", [], [])
    branch.sparse_initializer.append(_tensor([3], [1], (2,)))
    proto = model([helper.make_node("If", ["x"], ["y"], then_branch=branch)], {"x": (FLOAT, [1])}, {"y": (FLOAT, None)})
    proto.functions.append(helper.make_function("local", "f", [], ["c"], [inner], [helper.make_opsetid("", 17)]))
    sparse.write_out(Path("memory"), proto)
    graph = proto.graph.node[0].attribute[0].g
    assert not graph.sparse_initializer
    assert onnx.numpy_helper.to_array(graph.initializer[0]).tolist() == [0, 3]
    assert [node.attribute[0].name for node in graph.node] == ["value", "value", "sparse_value"]
    assert onnx.numpy_helper.to_array(graph.node[1].attribute[0].t).tolist() == [1, 1]
    for node in (graph.node[0], proto.functions[0].node[0]):
        assert onnx.numpy_helper.to_array(node.attribute[0].t).tolist() == [2, 0, 0]
