"""What no gradient comes back from, why, and what stands for it: held to what torch says of the same graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.train.gradients import Gradients, Origin
from lepton_cli.train.network import Network
from lepton_cli.train.proof import tensors
from tests.quantize.builders import Graph
from tests.train.test_network import ran
from tests.train.test_outside import ML, X, boxed, labelled, typed

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def linear(graph: Graph) -> str:
    return graph.linear(graph.take("x", ["b", 4]), 4, 3)


def origins(network: Network) -> dict[str, Origin]:
    return {name: network.gradients.origin(network.value(name)) for name in network.outputs}


#: By operator: what it is given besides, its attributes, the type of its result.
DECIDED: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("ArgMax", [], {"axis": 1}, INT),
    ("Cast", [], {"to": INT}, INT),
    ("Cast", [], {"to": TensorProto.UINT8}, TensorProto.UINT8),
    ("Greater", [np.float32(0.1)], {}, TensorProto.BOOL),
    ("Hardmax", [], {}, FLOAT),
    ("Shape", [], {}, INT),
]
#: Those whose slope torch gives as zero.
FLAT = ["Ceil", "Floor", "Round", "Sign"]


@pytest.mark.parametrize(("name", "others", "attributes", "kind"), DECIDED)
def test_decisions_let_no_gradient_through(name: str, others: list[Any], attributes: dict[str, Any], kind: int) -> None:
    graph = Graph()
    inner = linear(graph)
    y = graph.op(name, inner, *map(graph.constant, others), **attributes)
    network = Network(typed(graph, **{y: kind, inner: FLOAT}))
    assert not network.run(tensors({"x": X}))[y].requires_grad
    made = Origin.GIVEN if name == "Shape" else Origin.DECIDED
    assert origins(network) == {y: made, inner: Origin.LEARNT}
    end = network.gradients.end(network.value(y))
    assert end is None if name == "Shape" else end is network.value(y).producer()
    assert network.gradients.made_of(network.value(y)) == (() if name == "Shape" else (inner,))
    assert network.compared == (y, inner), "the decision itself too"


@pytest.mark.parametrize("name", FLAT)
def test_steps_are_decisions(name: str) -> None:
    graph = Graph()
    inner = linear(graph)
    network = Network(graph.model(graph.op(name, inner)))
    (output,) = network.outputs
    network.run(tensors({"x": X}))[output].sum().backward()
    assert all(one.grad is not None and not one.grad.any() for one in network.parameters.values())
    assert origins(network) == {output: Origin.DECIDED}
    assert network.gradients.made_of(network.value(output)) == (inner,)


@pytest.mark.parametrize("on", [True, False])
def test_branches(on: bool) -> None:
    """A float of either branch may learn; what one of them bars is barred."""
    graph = Graph()
    inner, condition = linear(graph), graph.take("on", [], TensorProto.BOOL)
    kinds = {"domain": ML, "norm": "L1", "name": "between"} if on else {"name": "between"}
    nodes = helper.make_node("Normalizer" if on else "Relu", [inner], ["yes"], **kinds)
    other = helper.make_node("Identity", [inner], ["no"], name="not")
    bodies = [
        helper.make_graph([node], "body", [], [helper.make_tensor_value_info(node.output[0], FLOAT, None)])
        for node in (nodes, other)
    ]
    y = graph.op("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    network = Network(typed(graph, **{y: FLOAT}))
    assert origins(network) == {y: Origin.BARRED if on else Origin.LEARNT}
    end = network.gradients.end(network.value(y))
    assert (None if end is None else end.name) == ("between" if on else None)
    assert network.compared == ((inner,) if on else (y,))


def looped(step: str, learnt: str) -> tuple[ir.Model, str]:
    """Twice `step` of what is carried, whose start is given, and something added: `outside` it is learnt, `inside` by
    weights of the body's own.
    """
    graph = Graph()
    x = graph.take("x", ["b", 4])
    added = graph.linear(x, 4, 4) if learnt == "outside" else x
    attributes = {"domain": ML, "norm": "L2"} if step == "Normalizer" else {}
    own = [numpy_helper.from_array(np.arange(4, dtype=np.float32), "own")] if learnt == "inside" else []
    nodes = [
        helper.make_node(step, ["carried"], ["made"], name="step", **attributes),
        helper.make_node("Add", ["made", "own" if own else added], ["sum"], name="sum"),
        helper.make_node("Identity", ["on"], ["on_"], name="on"),
    ]
    take = [("i", INT, []), ("on", TensorProto.BOOL, []), ("carried", FLOAT, None)]
    give = [("on_", TensorProto.BOOL, []), ("sum", FLOAT, None)]
    inputs, outputs = ([helper.make_tensor_value_info(*one) for one in some] for some in (take, give))
    body = helper.make_graph(nodes, "body", inputs, outputs, own)
    y = graph.op("Loop", graph.constant(np.int64(2)), "", x, body=body)
    return typed(graph, **{y: FLOAT}), y


@pytest.mark.parametrize(
    ("step", "learnt", "origin"),
    [
        ("Tanh", "outside", Origin.LEARNT),
        ("Tanh", "inside", Origin.LEARNT),
        ("Normalizer", "outside", Origin.BARRED),
        ("Normalizer", "inside", Origin.BARRED),
        ("Normalizer", "nowhere", Origin.GIVEN),
    ],
)
def test_loops_carry_what_is_learnt(step: str, learnt: str, origin: Origin) -> None:
    """In the first round what comes in is given; in the second it may be learnt."""
    model, y = looped(step, learnt)
    network = Network(model)
    assert origins(network)[y] == origin
    if origin != Origin.BARRED:
        found = network.run(tensors({"x": X}))[y]
        assert found.requires_grad == (origin == Origin.LEARNT)
        np.testing.assert_allclose(found.detach().numpy(), ran(model, {"x": X})[y], rtol=0, atol=1e-6)


def test_what_a_loop_bars_is_barred_for_all_that_it_carries() -> None:
    """One value is added to the other a round later than it was barred."""
    graph = Graph()
    inner = linear(graph)
    nodes = [
        helper.make_node("Normalizer", [inner], ["barred"], name="step", domain=ML, norm="L2"),
        helper.make_node("Add", ["sum", "last"], ["more"], name="sum"),
        helper.make_node("Identity", ["on"], ["on_"], name="on"),
    ]
    bools, floats = (
        [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "on_")],
        {name: helper.make_tensor_value_info(name, FLOAT, None) for name in ("last", "sum", "barred", "more")},
    )
    taken = [helper.make_tensor_value_info("i", INT, []), bools[0], floats["last"], floats["sum"]]
    body = helper.make_graph(nodes, "body", taken, [bools[1], floats["barred"], floats["more"]])
    _, total = graph.op("Loop", graph.constant(np.int64(2)), "", inner, inner, body=body, outputs=2)
    network = Network(typed(graph, **{total: FLOAT}))
    assert origins(network) == {total: Origin.BARRED}


def test_quantized_numbers_are_floats_here() -> None:
    """Rounding passes gradients; but none comes through a product of integers, which torch lacks."""
    graph = Graph()
    inner = linear(graph)
    scale, zero = graph.constant(np.float32(0.05)), graph.constant(np.int8(0))
    codes = graph.op("Transpose", graph.op("QuantizeLinear", inner, scale, zero))
    y = graph.op("DequantizeLinear", codes, scale, zero)
    moved, spread, zero = graph.op("DynamicQuantizeLinear", inner, outputs=3)
    whole = graph.op("MatMulInteger", moved, graph.constant(np.ones((3, 2), np.uint8)), zero)
    product = graph.op("Mul", graph.op("Cast", whole, to=FLOAT), spread)
    network = Network(typed(graph, **{y: FLOAT, codes: TensorProto.INT8, product: FLOAT}))
    found = network.run(tensors({"x": X}), [y, codes])
    assert all(one.requires_grad for one in found.values())
    assert origins(network) == {y: Origin.LEARNT, codes: Origin.LEARNT, product: Origin.BARRED}
    assert network.gradients.learns(network.value(y))
    assert not network.gradients.learns(network.value(codes))
    assert set(network.gradients.made_of(network.value(product))) == {spread, inner}
    end = network.gradients.end(network.value(product))
    assert end is not None
    assert end.op_type == "MatMulInteger"


def test_what_is_picked_gives_way_to_what_it_is_picked_from() -> None:
    graph = Graph()
    boxes, scores, left, chosen = boxed(graph, graph.take("x", ["b", 6, 4]))
    network = Network(typed(graph, **{left: INT, chosen: FLOAT, boxes: FLOAT}))
    assert origins(network) == {left: Origin.DECIDED, chosen: Origin.LEARNT, boxes: Origin.LEARNT}
    transposed = network.value(scores).uses()[0].node.outputs[0].name
    assert set(network.compared) == {boxes, transposed}
    assert [network.gradients.learns(network.value(name)) for name in (left, chosen, boxes)] == [False, False, True]


def test_rows_by_a_decision_that_torch_lacks_are_no_rows_of_their_own() -> None:
    """As many as ever, but which is which can change."""
    graph = Graph()
    inner = linear(graph)
    best = graph.op("ArgMax", inner, axis=0, keepdims=0)
    other = graph.op("LabelEncoder", best, domain=ML, keys_int64s=[0, 1, 2], values_int64s=[2, 0, 1])
    y = graph.op("Gather", inner, other)
    network = Network(typed(graph, **{y: FLOAT}))
    assert origins(network) == {y: Origin.LEARNT}
    assert network.compared == (inner,)
    np.testing.assert_allclose(
        network.run(tensors({"x": X}))[y].detach().numpy(), ran(network.model, {"x": X})[y], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("rows", [True, False])
def test_what_keeps_its_rows_stays(rows: bool) -> None:
    """Numbers that are searched: taken out they are some of them, changed in place they are all there."""
    graph = Graph(18)
    inner = linear(graph)
    places = graph.op("Transpose", graph.op("NonZero", graph.op("Less", inner, graph.constant(np.float32(0)))))
    below = graph.op("GatherND", inner, places)
    y = below if rows else graph.op("ScatterND", inner, places, graph.op("Neg", below))
    network = Network(typed(graph, **{y: FLOAT}))
    assert origins(network) == {y: Origin.LEARNT}
    assert network.compared == ((inner,) if rows else (y,))


def test_what_is_cut_where_a_decision_says_has_no_size_of_its_own() -> None:
    graph = Graph()
    inner = linear(graph)
    end = graph.op("ReduceMax", graph.op("ArgMax", inner, axis=1, keepdims=0), axes=[0])
    places = [graph.constant(np.array([value])) for value in (0, 1)]
    y = graph.op("Slice", inner, places[0], end, places[1])
    network = Network(typed(graph, **{y: FLOAT}))
    assert origins(network) == {y: Origin.LEARNT}
    assert network.compared == (inner,)


def test_all_that_scikit_learn_ends_with_is_one_value() -> None:
    graph = Graph()
    classes = linear(graph)
    model = typed(graph, **labelled(graph, classes))
    network = Network(model)
    shares = network.value(classes).uses()[0].node.outputs[0].name
    assert network.compared == (shares,)
    assert list(origins(network).values()) == [Origin.DECIDED, Origin.BARRED]


def test_what_does_not_fit_is_looked_past_up_to_weights() -> None:
    graph = Graph()
    first = graph.op("Tanh", linear(graph))
    last = graph.op("Sigmoid", graph.linear(first, 3, 3))
    label = graph.op("ArgMax", last, axis=1)
    network = Network(typed(graph, **{label: INT}))
    asked: list[list[str]] = []

    def none(names: Any) -> list[str]:
        asked.append(list(names))
        return []

    assert network.gradients.made_of(network.value(label), none) == ()
    (sum_,) = (node.outputs[0].name for node in network.model.graph if node.name == "Gemm_2")
    assert asked == [[last], [sum_]]
    assert network.gradients.made_of(network.value(label), lambda names: {sum_} & set(names)) == (sum_,)
    before = network.gradients.before([network.value(last)])
    assert {first, last, sum_, "x"} <= before
    assert label not in before


def test_where_nothing_trains_all_is_given() -> None:
    graph = Graph()
    model = typed(graph, **{graph.op("ArgMax", linear(graph), axis=1): INT})
    made = Gradients(model, (), {})
    assert {made.origin(value) for node in model.graph for value in node.outputs} == {Origin.GIVEN}
    assert made.end(model.graph.outputs[0]) is None


def test_types_that_no_file_tells_follow_from_the_operator() -> None:
    """Nothing infers those of values inside a branch."""
    graph = Graph()
    boxes, scores, *_ = boxed(graph, graph.take("x", ["b", 6, 4]))
    (reader,) = (node for node in graph.nodes if node.op_type == "NonMaxSuppression")
    nodes = [
        helper.make_node("NonMaxSuppression", list(reader.input), ["left"], name="left"),
        helper.make_node("Cast", ["left"], ["y"], name="y", to=FLOAT),
    ]
    body = helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info("y", FLOAT, None)])
    y = graph.op("If", graph.take("on", [], TensorProto.BOOL), then_branch=body, else_branch=body)
    network = Network(typed(graph, **{y: FLOAT}))
    assert origins(network) == {y: Origin.DECIDED}
    feeds = {"x": np.random.default_rng(5).normal(size=(2, 6, 4)).astype(np.float32), "on": np.array(True)}
    assert np.array_equal(network.run(tensors(feeds))[y].numpy(), ran(network.model, feeds)[y])
    assert boxes in network.compared
    assert scores not in network.compared
