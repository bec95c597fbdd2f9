"""Weights that branches cut, turn and join: plain onnxruntime finds the same outputs, and nothing is computed twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.graph import inner
from lepton_cli.graph.edit import is_constant

N = helper.make_node
W = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
ENOUGH = 100.0


def branch(name: str, nodes: list[onnx.NodeProto], *outputs: str, **held: Any) -> onnx.GraphProto:
    made = [helper.make_empty_tensor_value_info(output) for output in outputs]
    return helper.make_graph(
        nodes, name, [], made, [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()]
    )


def chosen(yes: onnx.GraphProto, no: onnx.GraphProto, opset: int = 17, domain: str = "", **held: Any) -> ir.Model:
    """`x` [n, 4] and `c`: which branch makes `y`."""
    graph = helper.make_graph(
        [N("If", ["c"], ["y"], "if", then_branch=yes, else_branch=no)],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))


def plain() -> onnx.GraphProto:
    return branch("no", [N("MatMul", ["x", "w"], ["n"])], "n")


def one(nodes: list[onnx.NodeProto], *outputs: str, opset: int = 17, domain: str = "", **held: Any) -> ir.Model:
    """What the branch `yes` does; `w` is a weight of the main graph."""
    return chosen(branch("yes", nodes, *outputs, **held), plain(), opset, domain, w=W)


def ran(model: ir.Model) -> list[np.ndarray]:
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    return [session.run(None, {"x": x, "c": np.array(c)})[0] for c in (True, False)]


def settled(model: ir.Model, growth: float = ENOUGH) -> list[str]:
    """What is computed from weights before, by name. Outputs stay, to the last bit."""
    before = ran(model)
    stored = {value.name for graph in model.graphs() for value in graph.initializers.values()}
    inner.settle(model, growth)
    for array, wanted in zip(ran(model), before, strict=True):
        np.testing.assert_array_equal(array, wanted)
    return sorted(
        value.name or ""
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.name not in stored
    )


def weight(model: ir.Model, name: str) -> np.ndarray:
    (found,) = (graph.initializers[name] for graph in model.graphs() if name in graph.initializers)
    assert is_constant(found)
    assert found.const_value is not None
    return found.const_value.numpy()


MOVES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], np.ndarray]] = {
    "Cast": ([N("Cast", ["h"], ["m"], to=1)], {"h": W.astype(np.float16)}, W.astype(np.float16).astype(np.float32)),
    "Concat": ([N("Concat", ["w", "w"], ["m"], axis=1)], {}, np.hstack([W, W])),
    "Flatten": ([N("Flatten", ["h"], ["m"], axis=1)], {"h": W.reshape(4, 3, 2)}, W),
    "Identity": ([N("Identity", ["w"], ["m"])], {}, W),
    "Reshape": ([N("Reshape", ["w", "s"], ["m"])], {"s": [2, 4, 3]}, W.reshape(2, 4, 3)),
    "Slice": (
        [N("Slice", ["w", "from", "to", "", "by"], ["m"])],
        {"from": [0, 1], "to": [4, 6], "by": [1, 2]},
        W[:, 1::2],
    ),
    "Split": ([N("Split", ["w", "parts"], ["rest", "m"], axis=1)], {"parts": [4, 2]}, W[:, 4:]),
    "Squeeze": ([N("Squeeze", ["h", "axis"], ["m"])], {"h": W[:, None], "axis": [1]}, W),
    "Unsqueeze": ([N("Unsqueeze", ["w", "axis"], ["m"])], {"axis": [0]}, W[None]),
}


def test_the_operators_that_move_are_those_here() -> None:
    assert set(MOVES) == inner.MOVING


@pytest.mark.parametrize("op", MOVES)
def test_what_a_branch_moves_is_computed_once_with_the_values_of_numpy(op: str) -> None:
    nodes, held, wanted = MOVES[op]
    model = one([*nodes, N("MatMul", ["x", "m"], ["y1"])], "y1", **held)
    assert settled(model) == ["m"]
    np.testing.assert_array_equal(weight(model, "m"), wanted)
    (graph,) = (graph for graph in model.graphs() if graph.name == "yes")
    assert graph.initializers["m"].name == "m", "it stands where it was made"
    assert is_constant(next(node for node in graph if node.op_type == "MatMul").inputs[1])


def test_of_a_chain_only_what_others_read_is_kept() -> None:
    """An LSTM's gates, put into another order."""
    nodes = [
        N("Split", ["w"], ["i", "f"], axis=0),
        N("Concat", ["f", "i"], ["turned"], axis=0),
        N("Unsqueeze", ["turned", "axis"], ["m"]),
        N("MatMul", ["x", "m"], ["p"]),
        N("MatMul", ["x", "turned"], ["q"]),
        N("Add", ["p", "q"], ["y1"]),
    ]
    model = one(nodes, "y1", axis=[0])
    assert settled(model) == ["m", "turned"]
    np.testing.assert_array_equal(weight(model, "turned"), np.vstack([W[2:], W[:2]]))


def test_what_depends_on_an_input_or_computes_stays() -> None:
    nodes = [
        N("Concat", ["x", "x"], ["xx"], axis=0),
        N("Slice", ["xx", "zero", "four"], ["part"]),
        N("Neg", ["w"], ["minus"]),
        N("Identity", ["minus"], ["m"]),
        N("Transpose", ["w"], ["t"]),
        N("MatMul", ["part", "m"], ["p"]),
        N("MatMul", ["p", "t"], ["y1"]),
    ]
    assert settled(one(nodes, "y1", zero=[0], four=[4])) == []


def test_one_input_of_the_model_is_enough_to_stay_and_keeps_nothing_else() -> None:
    nodes = [
        N("Transpose", ["x"], ["xt"]),
        N("Concat", ["w", "xt"], ["m"], axis=1),
        N("MatMul", ["x", "m"], ["p"]),
        N("Identity", ["w"], ["k"]),
        N("MatMul", ["x", "k"], ["q"]),
        N("Concat", ["p", "q"], ["y1"], axis=1),
    ]
    assert settled(one(nodes, "y1")) == ["k"]


def test_what_is_not_used_or_returned_stays() -> None:
    """A graph returns what its nodes make; a result that nothing reads is no weight."""
    nodes = [N("Reshape", ["w", "s"], ["y1"]), N("Identity", ["w"], ["unread"])]
    assert settled(one(nodes, "y1", s=[-1])) == []
    nodes = [N("Identity", ["w"], ["m"]), N("Reshape", ["m", "s"], ["y1"])]
    assert settled(one(nodes, "y1", s=[-1])) == []


def test_operators_of_other_domains_only_have_the_name() -> None:
    nodes = [
        N("Identity", ["w"], ["m"], domain="own"),
        N("Identity", ["w"], ["k"]),
        N("Add", ["m", "k"], ["sum"]),
        N("MatMul", ["x", "sum"], ["y1"]),
    ]
    model = one(nodes, "y1", domain="own")
    inner.settle(model, ENOUGH)
    assert {name for graph in model.graphs() for name in graph.initializers} == {"w", "k"}


def test_the_main_graph_stays() -> None:
    graph = helper.make_graph(
        [N("Identity", ["w"], ["m"]), N("MatMul", ["x", "m"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(W, "w")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    inner.settle(model, ENOUGH)
    assert set(model.graph.initializers) == {"w"}


def test_both_branches_may_use_the_same_names_and_each_has_its_own_weight() -> None:
    def cut(name: str, start: int) -> onnx.GraphProto:
        nodes = [N("Slice", ["w", "a", "b", "axis"], ["m"]), N("MatMul", ["x", "m"], ["out"])]
        return branch(name, nodes, "out", a=[start], b=[start + 3], axis=[1])

    model = chosen(cut("yes", 0), cut("no", 3), w=W)
    assert settled(model) == ["m", "m"]
    held = {graph.name: graph.initializers["m"].const_value for graph in model.graphs() if "m" in graph.initializers}
    assert set(held) == {"yes", "no"}
    for name, start in (("yes", 0), ("no", 3)):
        tensor = held[name]
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), W[:, start : start + 3])


def test_a_branch_in_a_branch_goes_on_with_what_the_outer_one_made() -> None:
    deep = [
        branch("a", [N("Unsqueeze", ["m", "axis"], ["n1"]), N("MatMul", ["x", "n1"], ["o1"])], "o1", axis=[0]),
        branch("b", [N("MatMul", ["x", "m"], ["o2"])], "o2"),
    ]
    nodes = [N("Identity", ["w"], ["m"]), N("If", ["c"], ["y1"], "deep", then_branch=deep[0], else_branch=deep[1])]
    model = one(nodes, "y1")
    assert settled(model) == ["m", "n1"]
    np.testing.assert_array_equal(weight(model, "n1"), W[None])


@pytest.mark.parametrize("nodes", [1, 2])
def test_results_may_be_as_many_times_larger_as_is_said_all_of_a_graph_together(nodes: int) -> None:
    """Of one weight, read once however many read it: twice and three times its bytes."""
    parts = [N("Concat", ["w", "w"], ["m"], axis=1), N("Concat", ["w"] * 3, ["n1"], axis=1)][:nodes]
    reads = [N("MatMul", ["x", name], [f"{name}.y"]) for name in ("m", "n1")[:nodes]]
    last = N("Concat", ["m.y", "n1.y"][:nodes], ["y1"], axis=1)
    ratio = 2 if nodes == 1 else 5
    assert settled(one([*parts, *reads, last], "y1"), ratio) == ["m", "n1"][:nodes]
    assert settled(one([*parts, *reads, last], "y1"), ratio - 1 / 96) == []
    assert settled(one([*parts, *reads, last], "y1"), 0) == []


def test_a_graph_with_too_large_results_does_not_keep_others_from_theirs() -> None:
    large = branch("yes", [N("Concat", ["w"] * 4, ["m"], axis=1), N("MatMul", ["x", "m"], ["y1"])], "y1")
    small = branch("no", [N("Identity", ["w"], ["k"]), N("MatMul", ["x", "k"], ["y2"])], "y2")
    assert settled(chosen(large, small, w=W), 1) == ["k"]
    assert settled(chosen(small, large, w=W), 1) == ["k"]


def test_what_onnxruntime_cannot_compute_stays_and_does_no_harm_elsewhere() -> None:
    """The Reshape is never reached."""
    wrong = branch("yes", [N("Reshape", ["w", "s"], ["m"]), N("MatMul", ["x", "m"], ["y1"])], "y1", s=[5, 5])
    right = branch("no", [N("Identity", ["w"], ["k"]), N("MatMul", ["x", "k"], ["y2"])], "y2")
    model = chosen(wrong, right, w=W)
    inner.settle(model, ENOUGH)
    names = {name for graph in model.graphs() for name in graph.initializers}
    assert names == {"w", "s", "k"}


def test_texts_stay_and_numbers_beside_them_are_computed() -> None:
    """Stored texts, and those made of numbers."""
    nodes = [
        N("Identity", ["texts"], ["t"]),
        N("Cast", ["t"], ["two"], to=TensorProto.FLOAT),
        N("Cast", ["number"], ["made"], to=TensorProto.STRING),
        N("Cast", ["made"], ["three"], to=TensorProto.FLOAT),
        N("Equal", ["t", "made"], ["same"]),
        N("Cast", ["same"], ["zero"], to=TensorProto.FLOAT),
        N("Identity", ["w"], ["m"]),
        N("MatMul", ["x", "m"], ["p"]),
        N("Mul", ["p", "two"], ["q"]),
        N("Sum", ["q", "three", "zero"], ["y1"]),
    ]
    model = one(nodes, "y1", opset=19, texts=np.array(["2"], object), number=np.float32([3]))
    assert settled(model) == ["m", "three"]
    assert weight(model, "three").tolist() == [3]


def test_operators_mean_what_they_mean_in_the_models_opset() -> None:
    """Squeeze had its axes as an attribute."""
    nodes = [N("Squeeze", ["h"], ["m"], axes=[1]), N("MatMul", ["x", "m"], ["y1"])]
    model = one(nodes, "y1", opset=11, h=W[:, None])
    assert settled(model) == ["m"]


def test_types_that_numpy_does_not_know_come_through() -> None:
    """bfloat16 weights that are cut, and cast where they are used."""
    nodes = [
        N("Slice", ["h", "a", "b"], ["part"]),
        N("Identity", ["part"], ["kept"]),
        N("Cast", ["kept"], ["m"], to=1),
        N("MatMul", ["x", "m"], ["y1"]),
    ]
    model = one(nodes, "y1", a=[1], b=[5])
    (graph,) = (graph for graph in model.graphs() if graph.name == "yes")
    rows = np.round(np.vstack([W, W]) * 4) / 4
    held = helper.make_tensor("h", TensorProto.BFLOAT16, rows.shape, rows.ravel())
    value = ir.Value(name="h", const_value=ir.serde.deserialize_tensor(held), type=ir.TensorType(ir.DataType.BFLOAT16))
    graph.register_initializer(value)
    graph[0].replace_input_with(0, value)
    assert settled(model) == ["m"]
    np.testing.assert_array_equal(weight(model, "m"), rows[1:5])
