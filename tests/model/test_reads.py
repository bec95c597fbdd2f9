"""What the readers of an input tell: tables, their rows, and the axis of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lepton_cli.model import reads
from lepton_cli.tensors import Dim
from tests.hostile.models import FLOAT, model, tensor

N = helper.make_node
INDICES = TensorProto.INT64


def read(nodes: list[Any], shape: Any, kind: int = FLOAT, opset: int = 17, **held: Any) -> ir.Value:
    """The input `x` of a graph; nobody checks its operators."""
    outputs = {nodes[-1].output[0]: (kind, None)}
    numbers = [tensor(name, np.asarray(array)) for name, array in held.items()]
    return ir.from_proto(model(nodes, {"x": (kind, shape)}, outputs, numbers, opset=opset)).graph.inputs[0]


@pytest.mark.parametrize(
    ("node", "axis"),
    [
        (N("Gather", ["t", "x"], ["y"]), 0),
        (N("Gather", ["t", "x"], ["y"], axis=1), 1),
        (N("GatherElements", ["t", "x"], ["y"], axis=-1), -1),
        (N("ScatterElements", ["t", "x", "u"], ["y"], axis=1), 1),
        (N("GatherND", ["t", "x"], ["y"]), 0),
        (N("GatherND", ["t", "x"], ["y"], batch_dims=1), 1),
        (N("ScatterND", ["t", "x", "u"], ["y"]), 0),
        (N("Gather", ["x", "i"], ["y"]), None),
        (N("GatherND", ["x", "i"], ["y"]), None),
        (N("ScatterND", ["t", "i", "x"], ["y"]), None),
        (N("Add", ["t", "x"], ["y"]), None),
    ],
)
def test_tables_and_the_axis_that_indices_count_along(node: Any, axis: int | None) -> None:
    value = read([node], [3], INDICES, t=np.zeros((5, 4)), i=np.zeros(1, np.int64), u=np.zeros(3))
    assert [(table.name, found) for table, found in reads.tables(value)] == ([] if axis is None else [("t", axis)])


def test_indices_are_followed_through_what_keeps_them() -> None:
    nodes = [
        N("Cast", ["x"], ["a"], to=INDICES),
        N("Reshape", ["a", "s"], ["b"]),
        N("Reshape", ["t", "x"], ["other"]),
        N("Gather", ["other", "i"], ["none"]),
        N("Gather", ["u", "other"], ["wrong"]),
        N("Neg", ["a"], ["c"]),
        N("Gather", ["v", "c"], ["wrong2"]),
        N("Gather", ["t", "b"], ["y"]),
    ]
    held = {name: np.zeros((5, 4)) for name in "tuv"}
    value = read(nodes, [3], INDICES, s=np.array([-1]), i=np.zeros(1, np.int64), **held)
    assert [table.name for table, _ in reads.tables(value)] == ["t"]


def test_rows_of_the_shortest_table_of_known_height() -> None:
    nodes = [
        N("Gather", [name, "x"], [f"{name}.y"], axis=axis)
        for name, axis in zip("abcde", (0, -1, 2, 0, -3), strict=True)
    ]
    shapes: dict[str | None, tuple[Dim, ...]] = {"a": (7, 2), "b": (2, 6), "c": (1, 1), "d": ("n", 3), "e": (1, 1)}
    value = read(nodes, [3], INDICES)
    assert reads.rows(value, lambda table: shapes.get(table.name)) == 6
    assert reads.rows(value, lambda table: {"a": (7, 2), "c": (1, 1, 9)}.get(table.name or "")) == 7
    assert reads.rows(value, lambda table: {"b": (6,)}.get(table.name or "")) == 6
    assert reads.rows(value, lambda table: {"e": (3, 9, 9)}.get(table.name or "")) == 3
    assert reads.rows(value, lambda table: None) is None


def test_what_is_stored_has_a_shape() -> None:
    nodes = [N("Gather", ["t", "x"], ["y"])]
    value = read(nodes, [3], INDICES, t=np.zeros((5, 4)))
    ((table, _),) = reads.tables(value)
    assert reads.held(table) == (5, 4)
    assert reads.held(value) is None


def conv(x: str) -> Any:
    return N("Conv", [x, "w"], ["y"])


def before(op: str, *inputs: str, **attributes: Any) -> Any:
    return N(op, ["x", *inputs], ["m"], **attributes)


@pytest.mark.parametrize(
    ("nodes", "rank", "axis"),
    [
        ([conv("x")], 3, 0),
        ([N("MaxPool", ["x"], ["y"])], 4, 0),
        ([conv("x")], 2, None),
        ([N("Conv", ["w", "x"], ["y"])], 3, None),
        ([before("Cast", to=FLOAT), conv("m")], 3, 0),
        ([before("Relu"), conv("m")], 3, 0),
        ([before("Neg"), conv("m")], 3, None),
        ([before("Transpose", perm=[1, 2, 0]), conv("m")], 3, 1),
        ([before("Transpose"), conv("m")], 3, 2),
        ([before("Transpose"), conv("m")], 4, 3),
        ([before("Transpose", perm=[1, 0]), conv("m")], 3, None),
        ([before("Unsqueeze", "first"), conv("m")], 2, -1),
        ([before("Unsqueeze", "last"), conv("m")], 2, 0),
        ([before("Unsqueeze", "computed"), conv("m")], 2, None),
        ([before("Unsqueeze", axes=[0]), conv("m")], 2, -1),
        ([before("Unsqueeze", axes=[-1, 2]), conv("m")], 2, 0),
        ([before("Unsqueeze", axes=[0, -1]), conv("m")], 1, -1),
        ([before("Unsqueeze", axes=[-3]), conv("m")], 2, -1),
        ([before("Unsqueeze", "ends"), conv("m")], 1, -1),
        ([before("Squeeze", "first"), conv("m")], 4, 1),
        ([before("Squeeze", axes=[-4]), conv("m")], 4, 1),
        ([before("Squeeze", ""), conv("m")], 4, None),
        ([before("Squeeze", "last"), conv("m")], 4, 0),
        ([before("Squeeze", axes=[0, -1]), conv("m")], 5, 1),
        ([before("Squeeze"), conv("m")], 4, None),
        ([before("Add", "first"), conv("m")], 3, 0),
        ([before("Add", "computed"), conv("m")], 3, None),
        ([N("Sub", ["first", "x"], ["m"]), conv("m")], 3, 0),
        ([N("Unsqueeze", ["first", "x"], ["m"]), conv("m")], 1, None),
        ([N("Neg", ["x"], ["k"]), before("Transpose", perm=[2, 1, 0]), conv("m")], 3, 2),
        ([before("Unsqueeze", axes=[1, 1]), conv("m")], 2, 0),
        ([N("GRU", ["x", "w", "r"], ["y"])], 3, 1),
        ([N("LSTM", ["x", "w", "r"], ["y"], layout=1)], 3, 0),
        ([N("LSTM", ["x", "w", "r"], ["y"], layout=0)], 3, 1),
        ([N("RNN", ["z", "w", "r", "", "", "x"], ["y"])], 3, 1),
        ([N("LSTM", ["z", "w", "r", "", "", "h", "x"], ["y"])], 3, 1),
        ([N("LSTM", ["z", "x", "r"], ["y"])], 3, None),
        ([N("LSTM", ["z", "w", "r", "", "x"], ["y"])], 3, None),
        ([N("GRU", ["x", "w", "r"], ["y"])], 2, None),
        ([before("Unsqueeze", "second"), N("GRU", ["m", "w", "r"], ["y"])], 2, -1),
        ([before("Unsqueeze", "first"), N("GRU", ["m", "w", "r"], ["y"])], 2, 0),
    ],
)
def test_the_axis_of_samples(nodes: list[Any], rank: int, axis: int | None) -> None:
    held = {"first": [0], "second": [1], "last": [-1], "ends": [0, -1]}
    value = read(nodes, [None] * rank, **{name: np.array(numbers) for name, numbers in held.items()}, w=np.zeros(1))
    assert reads.batch_axis(value) == axis


def test_nothing_is_known_without_a_rank() -> None:
    assert reads.batch_axis(read([conv("x")], None)) is None
    assert reads.batch_axis(read([before("Unsqueeze", axes=[0, 1, 2]), conv("m")], None)) is None
    assert reads.batch_axis(read([before("Squeeze", axes=[0]), conv("m")], [])) is None
