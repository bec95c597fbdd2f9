"""Which nodes become int8: every reason to keep one in float on a graph of its own, and the regions between anchors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.graph import edit
from lepton_cli.model import io
from lepton_cli.quantize import choose
from lepton_cli.quantize.choose import Choice
from tests.quantize.builders import Graph


def candidates(model: ir.Model) -> Choice:
    return choose.candidates(model, {node.name or "" for node in model.graph})


def verdict(kind: str, *operands: Any, **attributes: Any) -> str | None:
    """The reason to keep one node with these constants (`None`: computed), or `None` when it is chosen."""
    graph = Graph()
    x = graph.take("x", None)  # of a shape that fits wherever it stands
    names = [x if one is None else graph.constant(one) for one in operands]
    choice = candidates(graph.model(graph.op(kind, *names, **attributes)))
    (node,) = choice.anchors or {decision.node for decision in choice.kept}
    assert node == f"{kind}_0"
    return choice.kept[0].reason if choice.kept else None


def ones(*shape: int, kind: Any = np.float32) -> np.ndarray:
    return np.ones(shape, kind)


def test_each_reason_to_keep_a_product() -> None:
    assert verdict("MatMul", None, ones(32, 32)) is None
    assert verdict("MatMul", None, None) == "its second input is computed, not a constant weight"
    assert verdict("MatMul", ones(32, 32), None) == "its second input is computed, not a constant weight"
    assert verdict("MatMul", None, ones(32, 32, kind=np.float16)) == "its weight is float16, not float32"
    assert verdict("MatMul", None, ones(32, 32, kind=np.float64)) == "its weight is double, not float32"
    for value in (np.inf, -np.inf, np.nan):
        weight = ones(32, 32)
        weight[31, 31] = value
        assert verdict("MatMul", None, weight) == "its weight holds infinities or NaN"
    assert verdict("MatMul", None, ones(2, 32, 32)) == "its weight has 3 dimensions"
    assert verdict("MatMul", None, ones(32)) == "its weight has 1 dimensions"


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_products_need_16_on_both_sides(kind: str) -> None:
    assert verdict(kind, None, ones(16, 16)) is None
    for shape in ((15, 16), (16, 15), (400, 15), (15, 400)):
        told = f"too small for int8: {shape[0]}x{shape[1]}, needs at least 16 on both sides"
        assert verdict(kind, None, ones(*shape)) == told


def test_each_reason_to_keep_a_gemm() -> None:
    weight, bias = ones(32, 32), ones(32)
    assert verdict("Gemm", None, weight, bias, alpha=1.0, beta=1.0, transA=0, transB=1) is None
    assert verdict("Gemm", None, weight) is None
    assert verdict("Gemm", None, weight, bias, transA=1) == "its activation is transposed (transA)"
    assert verdict("Gemm", None, weight, None) == "its bias is not a constant vector"
    assert verdict("Gemm", None, weight, ones(1, 32)) == "its bias is not a constant vector"
    assert verdict("Gemm", None, weight, bias, alpha=0.5) == "it scales its operands (alpha, beta)"
    assert verdict("Gemm", None, weight, bias, beta=0.5) == "it scales its operands (alpha, beta)"


def test_each_reason_to_keep_a_convolution() -> None:
    """Its size is none: small kernels pay as well."""
    assert verdict("Conv", None, ones(4, 3, 3, 3)) is None
    assert verdict("Conv", None, ones(4, 3, 3, 3), ones(4)) is None
    assert verdict("Conv", None, ones(4, 3, 3, 3), None) == "its bias is computed"
    assert verdict("Conv", None, None) == "its second input is computed, not a constant weight"


def test_weights_in_files_are_looked_through(tmp_path: Path) -> None:
    graph = Graph()
    weight = ones(32, 32)
    weight[-1, -1] = np.inf
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 32]), graph.constant(weight)))
    ir.save(model, tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    (decision,) = candidates(ir.load(tmp_path / "model.onnx")).kept
    assert decision.reason == "its weight holds infinities or NaN"


def test_nodes_that_are_not_allowed_say_why_and_never_stand_between() -> None:
    model = chain("Relu")
    choice = choose.candidates(model, {"Gemm_0", "Relu_1"})
    assert choice.anchors == {"Gemm_0"}
    assert [(one.node, one.op, one.action, one.reason) for one in choice.kept] == [
        ("Gemm_2", "Gemm", "kept", "left out by include/exclude")
    ]
    others = choose.candidates(model, {"Gemm_0", "Gemm_2"}, "another reason")
    assert (others.anchors, others.between) == ({"Gemm_0", "Gemm_2"}, frozenset())
    assert choose.candidates(model, set(), "another reason").kept[0].reason == "another reason"


def test_operators_of_other_domains_and_other_kinds_are_no_candidates() -> None:
    graph = Graph()
    x = graph.op("MatMul", graph.take("x", ["b", 32]), graph.constant(ones(32, 32)), domain="elsewhere")
    model = graph.model(graph.op("Erf", x))
    assert candidates(model) == Choice(frozenset(), frozenset(), ())


def test_anchors_inside_branches_stay_float_with_a_reason() -> None:
    source = """<ir_version: 8, opset_import: ["": 17]>
    main (float[b, 64] x, bool flag) => (float[b, 64] y) <float[64, 64] w>
    { y = If (flag) <
        then_branch = yes () => (float[b, 64] p) { p = MatMul (x, w) },
        else_branch = no () => (float[b, 64] q) { q = Relu (x) }> }"""
    proto = onnx.parser.parse_model(source)
    del proto.graph.initializer[:]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(ones(64, 64), "w"))
    model = ir.from_proto(proto)
    io.name_nodes(model)
    (decision,) = candidates(model).kept
    assert (decision.op, decision.action) == ("MatMul", "kept")
    assert decision.reason == "inside the branch of a control-flow node"
    (other,) = choose.inside_subgraphs(model, {"Relu", "If"})
    assert other.op == "Relu"


def chain(*kinds: str, x: str = "", **attributes: Any) -> ir.Model:
    """Gemm, the operators, Gemm."""
    graph = Graph()
    y = graph.linear(graph.take("x", ["b", 32]), 32, 32)
    for kind in kinds:
        y = graph.op(kind, y, **attributes)
    return graph.model(graph.linear(y, 32, 32))


@pytest.mark.parametrize("kind", ["Relu", "LeakyRelu", "Sigmoid"])
def test_what_stands_between_two_anchors_becomes_int8(kind: str) -> None:
    assert candidates(chain(kind)).between == {f"{kind}_1"}
    assert candidates(chain(kind, kind)).between == {f"{kind}_1", f"{kind}_2"}


@pytest.mark.parametrize("kind", ["Softmax", "Erf", "Tanh", "Exp"])
def test_what_int8_would_ruin_never_does(kind: str) -> None:
    assert candidates(chain(kind)).between == frozenset()
    assert candidates(chain("Sigmoid", kind)).between == frozenset(), "its result never reaches an anchor"
    assert candidates(chain(kind, "Sigmoid")).between == frozenset(), "its input is float"


def test_nodes_between_of_other_domains_stay_float() -> None:
    assert candidates(chain("Relu", domain="elsewhere")).between == frozenset()


def test_a_node_in_front_of_the_first_or_behind_the_last_anchor_stays_float() -> None:
    graph = Graph()
    x = graph.op("Sigmoid", graph.take("x", ["b", 32]))
    model = graph.model(graph.op("Sigmoid", graph.linear(x, 32, 32)))
    assert candidates(model).between == frozenset()


def test_the_result_of_a_matmul_is_float() -> None:
    graph = Graph()
    x = graph.op("Sigmoid", graph.linear(graph.take("x", ["b", 32]), 32, 32, gemm=False))
    assert candidates(graph.model(graph.linear(x, 32, 32))).between == frozenset()
    graph = Graph()
    x = graph.op("Sigmoid", graph.op("MatMul", graph.take("x", ["b", 32]), graph.constant(ones(32, 32))))
    assert candidates(graph.model(graph.linear(x, 32, 32))).between == frozenset()


def joined(first: bool, second: bool, kind: str = "Add") -> frozenset[str]:
    """Nodes between when two branches, each int8 or not, are joined in front of an anchor."""
    graph = Graph()
    x = graph.take("x", ["b", 32])
    branches = [graph.linear(x, 32, 32) if int8 else graph.op("Tanh", x) for int8 in (first, second)]
    return candidates(graph.model(graph.linear(graph.op(kind, *branches), 32, 32))).between


def test_every_input_of_a_joining_node_must_be_int8() -> None:
    for kind in ("Add", "Mul"):
        assert joined(True, True, kind) == {f"{kind}_2"}
        assert joined(True, False, kind) == frozenset()
        assert joined(False, True, kind) == frozenset()


def test_a_concat_with_an_int8_input_is_int8() -> None:
    def concat(first: bool, second: bool, end: bool = True) -> Choice:
        graph = Graph()
        x = graph.take("x", ["b", 8, 6, 6])
        branches = [graph.conv(x, 8, 8, relu=False) if int8 else graph.op("Tanh", x) for int8 in (first, second)]
        y = graph.op("Concat", *branches, axis=1)
        return candidates(graph.model(graph.conv(y, 16, 8, relu=False) if end else graph.op("Tanh", y)))

    assert concat(True, True).between == concat(False, True).between == concat(True, False).between == {"Concat_2"}
    assert concat(False, False).between == concat(True, False, end=False).between == frozenset()


@pytest.mark.parametrize(
    ("constant", "fits"),
    [
        (ones(32), True),
        (np.float32(2), True),
        (np.float32([1, np.inf] * 16), False),
        (np.float32([-np.inf] * 32), False),
        (np.float32([np.nan] * 32), False),
    ],
)
@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_constants_that_are_joined_must_be_finite(kind: str, constant: np.ndarray, fits: bool) -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 32]), 32, 32)
    model = graph.model(graph.linear(graph.op(kind, x, graph.constant(constant)), 32, 32))
    assert candidates(model).between == ({f"{kind}_1"} if fits else frozenset())


def test_constants_that_are_joined_must_be_float32() -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 32]), 32, 32)
    y = graph.op("Concat", x, graph.constant(np.ones((1, 32), np.float64)), axis=0)
    model = graph.model(graph.linear(y, 32, 32))
    assert candidates(model).between == frozenset()


def test_a_node_that_reads_only_constants_is_none_between() -> None:
    graph = Graph()
    y = graph.op("Relu", graph.constant(ones(1, 32)))
    model = graph.model(graph.linear(y, 32, 32))
    assert candidates(model).between == frozenset()


def test_shapes_and_axes_of_a_moving_node_are_no_activations() -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 32]), 32, 32)
    y = graph.op("Reshape", x, graph.constant(np.array([-1, 32])))
    model = graph.model(graph.linear(y, 32, 32))
    choice = candidates(model)
    assert choice.between == {"Reshape_1"}
    reshape = next(node for node in model.graph if node.op_type == "Reshape")
    assert [value.name for value in choose.data_inputs(reshape)] == ["t0"]
    assert choose.activations(model, choice) == ["x", "t0", "t1", "t2"]


def test_data_inputs_of_joining_nodes_are_all_that_is_computed() -> None:
    graph = Graph()
    x, y = graph.take("x", ["b", 32]), graph.take("y", ["b", 32])
    nodes = [graph.op("Concat", x, graph.constant(ones(1, 32)), y, axis=0), graph.op("MatMul", x, y)]
    first, second = graph.model(*nodes).graph
    assert [value.name for value in choose.data_inputs(first)] == ["x", "y"]
    assert [value.name for value in choose.data_inputs(second)] == ["x"]


@pytest.mark.parametrize(
    ("low", "high", "holds"),
    [(0.0, 6.0, True), (-1.0, 1.0, True), (-1.0, 0.0, True), (0.5, 6.0, False), (-6.0, -0.5, False),
     (None, 6.0, True), (None, -1.0, False), (0.0, None, True), (1.0, None, False)],
)  # fmt: skip
@pytest.mark.parametrize("opset", [10, 17])
def test_a_clip_must_hold_zero(low: float | None, high: float | None, holds: bool, opset: int) -> None:
    """Its bounds are inputs from opset 11 on, attributes before."""
    graph = Graph(opset)
    x = graph.linear(graph.take("x", ["b", 32]), 32, 32)
    if opset < 11:
        bounds = {name: value for name, value in (("min", low), ("max", high)) if value is not None}
        y = graph.op("Clip", x, **bounds)
    else:
        y = graph.op("Clip", x, *("" if one is None else graph.constant(np.float32(one)) for one in (low, high)))
    model = graph.model(graph.linear(y, 32, 32))
    assert candidates(model).between == ({"Clip_1"} if holds else frozenset())


@pytest.mark.parametrize("computed", [1, 2])
def test_a_clip_with_a_computed_bound_stays_float(computed: int) -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 32]), 32, 32)
    bounds = [graph.constant(np.float32(-1)), graph.constant(np.float32(1))]
    bounds[computed - 1] = graph.take("bound", [])
    model = graph.model(graph.linear(graph.op("Clip", x, *bounds), 32, 32))
    assert candidates(model).between == frozenset()


@pytest.mark.parametrize(
    ("kind", "mode", "fits"),
    [("Pad", None, True), ("Pad", "constant", True), ("Pad", "reflect", True), ("Pad", "edge", True),
     ("Pad", "wrap", False), ("Resize", None, True), ("Resize", "nearest", True), ("Resize", "linear", True),
     ("Resize", "cubic", False)],
)  # fmt: skip
def test_some_modes_of_padding_and_resizing_have_kernels(kind: str, mode: str | None, fits: bool) -> None:
    graph = Graph(19)
    x = graph.conv(graph.take("x", ["b", 3, 8, 8]), 3, 16, relu=False)
    if kind == "Pad":
        more = [graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))]
    else:
        more = ["", graph.constant(np.float32([1, 1, 2, 2]))]
    model = graph.model(graph.conv(graph.op(kind, x, *more, **({"mode": mode} if mode else {})), 16, 16, relu=False))
    assert candidates(model).between == ({f"{kind}_1"} if fits else frozenset())


def trailing(kind: str = "Relu", extra: bool = False, output: bool = False, gemm: bool = True) -> frozenset[str]:
    graph = Graph()
    x = graph.take("x", ["b", 32])
    x = graph.linear(x, 32, 32) if gemm else graph.op("MatMul", x, graph.constant(ones(32, 32)))
    y = graph.op(kind, x)
    ends = [graph.op("Tanh", y)] + ([graph.op("Tanh", x)] if extra else []) + ([x] if output else [])
    return candidates(graph.model(*ends)).between


def test_an_activation_behind_the_last_anchor_is_taken_where_it_can_be_fused() -> None:
    assert trailing() == {"Relu_1"}
    assert trailing("Clip") == {"Clip_1"}
    assert trailing("Sigmoid") == frozenset(), "no activation that is fused"
    assert trailing(extra=True) == frozenset(), "another node reads the anchor's result"
    assert trailing(output=True) == frozenset(), "the anchor's result is an output"
    assert trailing(gemm=False) == frozenset(), "the result of a MatMul is float"


def test_an_activation_behind_a_node_between_is_not_trailing() -> None:
    graph = Graph()
    x = graph.op("Sigmoid", graph.linear(graph.take("x", ["b", 32]), 32, 32))
    assert candidates(graph.model(graph.op("Relu", x))).between == frozenset()


def residual(activation: str = "", end: str = "Tanh", skip: str = "conv") -> frozenset[str]:
    """Conv_0, and what is added to its result: that of Conv_1, of the input, of a Gemm, or a constant."""
    graph = Graph()
    x = graph.take("x", ["b", 16, 8, 8])
    y = graph.conv(x, 16, 16, relu=False)
    other = {
        "conv": lambda: graph.conv(x, 16, 16, relu=False),
        "input": lambda: x,
        "constant": lambda: graph.constant(ones(1, 16, 1, 1)),
        "same": lambda: y,
    }[skip]()
    z = graph.op("Add", y, other)
    z = graph.op(activation, z) if activation else z
    return candidates(graph.model(graph.op(end, z) if end else z)).between


def test_the_last_sum_of_two_int8_results_is_int8_unless_it_is_an_output() -> None:
    assert residual() == {"Add_2"}
    assert residual("Relu") == {"Add_2", "Relu_3"}
    assert residual("Sigmoid") == {"Add_2"}
    assert residual(skip="same") == {"Add_1"}
    assert residual(end="") == frozenset(), "an output would be rounded"
    assert residual("Relu", end="") == frozenset()
    assert residual(skip="input") == frozenset()
    assert residual(skip="constant") == frozenset()
    graph = Graph()
    x = graph.take("x", ["b", 32])
    sums = graph.op("Add", graph.linear(x, 32, 32), graph.linear(x, 32, 32))
    assert candidates(graph.model(graph.op("Tanh", sums))).between == frozenset(), "of transformers it is kept exact"


def test_sums_of_sums_are_int8_to_the_last() -> None:
    graph = Graph()
    x = graph.take("x", ["b", 16, 8, 8])
    y = graph.op("Add", graph.conv(x, 16, 16, relu=False), graph.conv(x, 16, 16, relu=False))
    y = graph.op("Relu", graph.op("Add", y, graph.conv(x, 16, 16)))
    assert candidates(graph.model(graph.op("Tanh", y))).between == {"Add_2", "Relu_4", "Add_5", "Relu_6"}


def test_regions_shrink_when_an_anchor_goes() -> None:
    """Gemm_0, Sigmoid_1, Gemm_2, Relu_3, Gemm_4, Relu_5."""
    graph = Graph()
    x = graph.op("Sigmoid", graph.linear(graph.take("x", ["b", 32]), 32, 32))
    x = graph.op("Relu", graph.linear(x, 32, 32))
    model = graph.model(graph.op("Relu", graph.linear(x, 32, 32)))
    choice = candidates(model).widened(["Gemm_0", "Gemm_4", "Relu_3", "nothing"])
    assert choice.wide == {"Gemm_0", "Gemm_4"}
    assert choice.nodes == {"Gemm_0", "Sigmoid_1", "Gemm_2", "Relu_3", "Gemm_4", "Relu_5"}
    less = choice.without(["Gemm_2"], "slow", model)
    assert less.anchors == {"Gemm_0", "Gemm_4"}
    assert less.between == {"Relu_5"}, "what stood beside it has a float neighbour now"
    assert less.wide == {"Gemm_0", "Gemm_4"}
    assert [(one.node, one.op, one.action, one.reason) for one in less.kept] == [("Gemm_2", "Gemm", "kept", "slow")]
    again = less.without(["Gemm_4", "Gemm_2", "nothing"], "slower", model)
    assert (again.anchors, again.between, again.wide) == ({"Gemm_0"}, frozenset(), {"Gemm_0"})
    assert [(one.node, one.reason) for one in again.kept] == [("Gemm_2", "slow"), ("Gemm_4", "slower")]
    kept = choice.without(["Relu_3"], "unwanted", model)
    assert kept.between == {"Sigmoid_1", "Relu_5"}
    assert kept.kept == ()
    assert choice.without([], "none", model) == choice


def test_ranges_are_needed_of_what_goes_in_and_comes_out_but_not_of_matmuls() -> None:
    graph = Graph()
    x = graph.op("Relu", graph.linear(graph.take("x", ["b", 32]), 32, 32))
    y = graph.op("MatMul", x, graph.constant(ones(32, 32)))
    model = graph.model(graph.op("Tanh", y))
    choice = candidates(model)
    assert choose.activations(model, choice) == ["x", "t0", "t1"]
    assert choose.activations(model, choice.without(["Gemm_0"], "", model)) == ["t1"]
    next(node for node in model.graph if node.op_type == "Relu").outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    assert choose.activations(model, choice) == ["x", "t0"]
    next(node for node in model.graph if node.op_type == "Gemm").outputs[0].type = None
    assert choose.activations(model, choice) == ["x", "t0"]


FULL = {"x": (-1.0, 1.0), "t0": (-1.0, 1.0), "t1": (0.0, 1.0), "t2": (-1.0, 1.0)}


def test_ranges_that_are_there_change_nothing() -> None:
    model = chain("Relu")
    choice = candidates(model)
    assert choose.refine(model, choice, FULL, {}) == choice


def test_masks_and_unseen_tensors_return_their_readers_and_writers_to_float() -> None:
    model = chain("Relu")
    choice = candidates(model).widened(["Gemm_0", "Gemm_2"])
    masked = choose.refine(model, choice, FULL, {"t2": 3, "other": 1})
    assert (masked.anchors, masked.between, masked.wide) == ({"Gemm_0"}, {"Relu_1"}, {"Gemm_0"})
    assert [(one.node, one.op, one.action, one.reason) for one in masked.kept] == [
        ("Gemm_2", "Gemm", "kept", "`t2` holds infinities or mask constants")
    ]
    both = choose.refine(model, choice, FULL, {"t1": 1})
    assert both.nodes == {"Gemm_0"}
    assert [one.node for one in both.kept] == ["Relu_1", "Gemm_2"]
    unseen = choose.refine(model, choice, {name: pair for name, pair in FULL.items() if name != "x"}, {})
    assert unseen.anchors == {"Gemm_2"}
    assert [(one.node, one.reason) for one in unseen.kept] == [("Gemm_0", "no calibration values for `x`")]
    known = {name: pair for name, pair in FULL.items() if name != "x"}
    worse = choose.refine(model, choice, known, {"x": 1})
    assert [one.reason for one in worse.kept] == ["`x` holds infinities or mask constants"], "the first reason stays"


def concat(low: float, high: float, other: float = 1.0) -> tuple[ir.Model, Choice, Choice]:
    graph = Graph()
    x = graph.take("x", ["b", 3, 8, 8])
    parts = [graph.conv(x, 3, 16, relu=False) for _ in range(2)]
    model = graph.model(graph.conv(graph.op("Concat", *parts, axis=1), 32, 16, relu=False))
    choice = candidates(model)
    ranges = {"x": (-1.0, 1.0), "t0": (-other, other), "t1": (low, high), "t2": (-99.0, 99.0), "t3": (-1.0, 1.0)}
    return model, choice, choose.refine(model, choice, ranges, {})


@pytest.mark.parametrize(
    ("low", "high", "stays"),
    [(-1.0, 16.0, True), (-1.0, 16.01, False), (-16.0, 1.0, True), (-16.01, 1.0, False), (0.0, 0.0625, True),
     (-0.0624, 0.0, False), (0.0, 0.0, True)],
)  # fmt: skip
def test_ranges_that_are_joined_may_differ_16_times(low: float, high: float, stays: bool) -> None:
    _, choice, refined = concat(low, high)
    assert choice.between == {"Concat_2"}
    assert refined.between == (choice.between if stays else frozenset())
    assert refined.anchors == choice.anchors
    if not stays:
        (decision,) = refined.kept
        assert (decision.node, decision.op) == ("Concat_2", "Concat")
        assert decision.reason == "joins ranges that differ 16 times: one scale would lose the smaller"


def test_joining_empty_ranges_is_no_difference() -> None:
    _, choice, refined = concat(0.0, 0.0, other=0.0)
    assert refined == choice


def test_the_weight_of_a_node_is_its_constant_at_the_position() -> None:
    graph = Graph()
    weight = np.arange(4, dtype=np.float32).reshape(2, 2)
    first, second = graph.model(
        graph.op("Gemm", graph.take("x", ["b", 2]), graph.constant(weight), graph.constant(weight[0])),
        graph.op("Clip", "x", "", graph.constant(np.float32(3))),
    ).graph
    np.testing.assert_array_equal(edit.array_of(first), weight)  # type: ignore[arg-type]
    np.testing.assert_array_equal(edit.array_of(first, 2), weight[0])  # type: ignore[arg-type]
    assert edit.array_of(first, 0) is None
    assert edit.array_of(first, 3) is None
    assert edit.array_of(second) is None
    assert edit.array_of(second, 2) == 3
