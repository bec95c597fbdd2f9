"""Operators that compute: which channels they couple, and which they fix."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lepton_cli.coupling import links
from lepton_cli.coupling.known_shapes import KnownShapes
from lepton_cli.coupling.operators import apply_rule
from tests.coupling.networks import Network, analysed


def joined(
    op: str, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]], *,
    constant: dict[str, Any] | None = None, opset: int = 17, version: int | None = None, domain: str = "",
    **attributes: Any,
) -> set[frozenset[str]]:  # fmt: skip
    """Whole axes that one node joins position by position, written `name axis`; frozen ones with `!`."""
    values = {name: ir.Value(name=name) for name in inputs}
    for name, array in (constant or {}).items():
        values[name] = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
    node = ir.node(op, list(values.values()), attributes, domain=domain, num_outputs=len(outputs), name="n")
    node.version = version
    for value, name in zip(node.outputs, outputs, strict=True):
        value.name = name
    graph = ir.Graph(
        [values[name] for name in inputs if name not in (constant or {})], node.outputs, nodes=[node],
        initializers=[values[name] for name in constant or {}], opset_imports={"": opset},
    )  # fmt: skip
    shapes = {**inputs, **outputs}
    collected = links.Links(ir.Model(graph, ir_version=9), KnownShapes(shapes, frozenset()))
    apply_rule(collected, node)
    found = collected.solve()
    frozen = {int(number) for ids, _, _ in collected._frozen for number in ids}
    sets: dict[tuple[int, ...], set[str]] = {}
    for (name, axis), ids in found.labels.items():
        key = tuple(ids.tolist())
        sets.setdefault(key, set()).add(f"{name} {axis}" + ("!" if set(key) & frozen else ""))
    return {frozenset(names) for names in sets.values()}


def sets(*names: str) -> set[frozenset[str]]:
    return {frozenset(name.split(", ")) for name in names}


def softmax(axis: int | None, opset: int = 17) -> set[frozenset[str]]:
    given = {} if axis is None else {"axis": axis}
    return joined("Softmax", {"x": (2, 3, 4, 5)}, {"y": (2, 3, 4, 5)}, opset=opset, **given)


def test_softmax_fixes_one_axis_and_before_opset_13_all_behind_it_too() -> None:
    assert softmax(None) == sets("x 0, y 0", "x 1, y 1", "x 2, y 2", "x 3!", "y 3!")
    assert softmax(1) == softmax(-3) == sets("x 0, y 0", "x 1!", "y 1!", "x 2, y 2", "x 3, y 3")
    assert softmax(None, 12) == sets("x 0, y 0", "x 1!", "y 1!", "x 2!", "y 2!", "x 3!", "y 3!")
    assert softmax(2, 12) == sets("x 0, y 0", "x 1, y 1", "x 2!", "y 2!", "x 3!", "y 3!")
    assert softmax(1, 13) == softmax(1)
    old = joined("Softmax", {"x": (2, 3)}, {"y": (2, 3)}, version=11, axis=0)
    assert old == sets("x 0!", "y 0!", "x 1!", "y 1!")
    new = joined("Softmax", {"x": (2, 3)}, {"y": (2, 3)}, opset=11, version=13, axis=0)
    assert new == sets("x 0!", "y 0!", "x 1, y 1")


@pytest.mark.parametrize(
    ("op", "attributes", "fixed"),
    [
        ("LayerNormalization", {}, {2}),
        ("LayerNormalization", {"axis": 1}, {1, 2}),
        ("RMSNormalization", {}, {2}),
        ("LpNormalization", {}, {2}),
        ("LpNormalization", {"axis": 0}, {0}),
        ("LRN", {"size": 3}, {1}),
        ("CumSum", {}, {0, 1, 2}),
    ],
)
def test_normalisations_fix_the_axes_they_mix(op: str, attributes: dict[str, int], fixed: set[int]) -> None:
    found = joined(op, {"x": (2, 3, 4)}, {"y": (2, 3, 4)}, **attributes)
    wanted = [f"x {k}!;y {k}!" if k in fixed else f"x {k}, y {k}" for k in range(3)]
    assert found == sets(*(name for pair in wanted for name in pair.split(";")))


def reduced(op: str, shape: tuple[int, ...], **options: Any) -> set[frozenset[str]]:
    return joined(op, {"x": (2, 3, 4)}, {"y": shape}, **options)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceLogSumExp"])
def test_reduced_axes_are_fixed_and_the_others_pass(op: str) -> None:
    assert reduced(op, (2, 1, 4), axes=[1]) == sets("x 0, y 0", "x 1!", "x 2, y 2")
    assert reduced(op, (2, 4), axes=[-2], keepdims=0) == sets("x 0, y 0", "x 1!", "x 2, y 1")
    assert reduced(op, (3,), axes=[0, 2], keepdims=0) == sets("x 0!", "x 1, y 0", "x 2!")
    assert reduced(op, (1, 1, 1)) == sets("x 0!", "x 1!", "x 2!")
    assert reduced(op, (2, 3, 4), noop_with_empty_axes=1) == sets("x 0, y 0", "x 1, y 1", "x 2, y 2")
    given = joined(op, {"x": (2, 3, 4), "a": (1,)}, {"y": (2, 1, 4)}, constant={"a": np.array([1])})
    assert given - sets("a 0") == sets("x 0, y 0", "x 1!", "x 2, y 2")
    computed = joined(op, {"x": (2, 3, 4), "a": (2,)}, {"y": (2, 1, 4)})
    assert computed == sets("x 0!", "x 1!", "x 2!", "y 0!", "y 2!", "a 0!")


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_the_place_of_the_greatest_is_one_along_the_first_axis_unless_said(op: str) -> None:
    assert reduced(op, (1, 3, 4)) == sets("x 0!", "x 1, y 1", "x 2, y 2")
    assert reduced(op, (2, 3), axis=-1, keepdims=0) == sets("x 0, y 0", "x 1, y 1", "x 2!")


def test_sums_broadcast_from_the_right() -> None:
    found = joined("Add", {"a": (2, 3, 4), "b": (3, 1)}, {"y": (2, 3, 4)})
    assert found == sets("a 0, y 0", "a 1, b 0, y 1", "a 2, y 2")
    assert joined("Add", {"a": (2, 3), "b": ()}, {"y": (2, 3)}) == sets("a 0, y 0", "a 1, y 1")
    two = joined("Dropout", {"x": (2, 3)}, {"y": (2, 3), "mask": (2, 3)})
    assert two == sets("x 0, y 0, mask 0", "x 1, y 1, mask 1")
    assert joined("Dropout", {"x": (2, 3)}, {"y": (2, 3), "m": (3,)}) == sets("x 0, y 0", "x 1, y 1", "m 0!")
    assert joined("Add", {"a": (2, 3), "b": (3,)}, {"y": ()}) == sets("a 0!", "a 1!", "b 0!")


def test_operators_of_other_domains_and_unknown_ones_are_fixed() -> None:
    for op, domain in (("Relu", "mine"), ("Whatever", "")):
        assert joined(op, {"x": (2, 3)}, {"y": (2, 3)}, domain=domain) == sets("x 0!", "x 1!", "y 0!", "y 1!")
    for domain in ("ai.onnx", "com.microsoft", "com.microsoft.nchwc"):
        assert joined("Relu", {"x": (2, 3)}, {"y": (2, 3)}, domain=domain) == sets("x 0, y 0", "x 1, y 1")


def test_nothing_is_said_of_a_node_with_an_unknown_shape() -> None:
    x = ir.Value(name="x")
    for op, known in itertools.product(("Relu", "Flatten", "Slice", "Concat"), ("x", "y")):
        node = ir.Node("", op, [x], name="n")
        node.outputs[0].name = "y"
        graph = ir.Graph([], [], nodes=[node], opset_imports={"": 17})
        collected = links.Links(ir.Model(graph, ir_version=9), KnownShapes({known: (1, 3, 2)}, frozenset()))
        apply_rule(collected, node)
        assert [(reason, name) for _, reason, name in collected._frozen] == [(f"{op} has unknown shapes", "n")] * 2
        assert set(collected.solve().labels) == {(known, 1), (known, 2)}


def gemm(a: tuple[int, ...], b: tuple[int, ...], c: tuple[int, ...], **attributes: int) -> set[frozenset[str]]:
    return joined("Gemm", {"a": a, "b": b, "c": c}, {"y": (2, 4)}, **attributes)


def test_products_join_what_they_contract() -> None:
    assert gemm((2, 3), (3, 4), (4,)) == sets("a 0, y 0", "a 1, b 0", "b 1, c 0, y 1")
    assert gemm((3, 2), (3, 4), (2, 1), transA=1) == sets("a 1, y 0, c 0", "a 0, b 0", "b 1, y 1")
    assert gemm((2, 3), (4, 3), (2, 4), transB=1) == sets("a 0, c 0, y 0", "a 1, b 1", "b 0, c 1, y 1")
    plain = joined("MatMul", {"a": (5, 6, 2, 3), "b": (6, 3, 4)}, {"y": (5, 6, 2, 4)})
    assert plain == sets("a 0, y 0", "a 1, b 0, y 1", "a 2, y 2", "a 3, b 1", "b 2, y 3")
    flat = joined("MatMul", {"a": (5, 3), "b": (3, 4)}, {"y": (5, 4)})
    assert flat == sets("a 0, y 0", "a 1, b 0", "b 1, y 1")
    pair = joined("MatMul", {"a": (2, 5, 3), "b": (2, 3, 4)}, {"y": (2, 5, 4)})
    assert pair == sets("a 0, b 0, y 0", "a 1, y 1", "a 2, b 1", "b 2, y 2")
    wide = joined("MatMul", {"a": (1, 2, 3), "b": (6, 3, 4)}, {"y": (6, 2, 4)})
    assert wide == sets("b 0, y 0", "a 1, y 1", "a 2, b 1", "b 2, y 2")
    across = {"transB": 1, "domain": "com.microsoft"}
    fused = joined("FusedMatMul", {"a": (6, 2, 3), "b": (6, 4, 3)}, {"y": (6, 2, 4)}, **across)
    assert fused == sets("a 0, b 0, y 0", "a 1, y 1", "a 2, b 2", "b 1, y 2")


@pytest.mark.parametrize("attribute", ["transA", "transBatchA"])
def test_products_of_a_transposed_first_or_of_vectors_are_fixed(attribute: str) -> None:
    found = joined("FusedMatMul", {"a": (3, 2), "b": (3, 4)}, {"y": (2, 4)}, domain="com.microsoft", **{attribute: 1})
    assert found == sets("a 0!", "a 1!", "b 0!", "b 1!", "y 0!", "y 1!")
    assert joined("MatMul", {"a": (3,), "b": (3, 4)}, {"y": (4,)}) == sets("a 0!", "b 0!", "b 1!", "y 0!")
    assert joined("MatMul", {"a": (4, 3), "b": (3,)}, {"y": (4,)}) == sets("a 0!", "a 1!", "b 0!", "y 0!")


def test_letters_of_an_equation() -> None:
    def einsum(equation: str) -> set[frozenset[str]]:
        return joined("Einsum", {"a": (2, 3, 5), "b": (5, 1, 4)}, {"y": (2, 4)}, equation=equation)

    assert einsum("b s c, c o d -> b d") == sets("a 0, y 0", "a 1", "a 2, b 0", "b 2, y 1")
    frozen = sets("a 0!", "a 1!", "a 2!", "b 0!", "b 2!", "y 0!", "y 1!")
    assert einsum("bsc,cod") == einsum("...c,cod->bd") == einsum("bbc,cod->bd") == einsum("bsc,cod->dd") == frozen


def test_parameters_of_norms_follow_their_channels() -> None:
    x = {"x": (2, 3, 4, 5), "s": (3,), "b": (3,)}
    batch = joined("BatchNormalization", {**x, "m": (3,), "v": (3,)}, {"y": (2, 3, 4, 5)})
    assert batch == sets("x 0, y 0", "x 1, s 0, b 0, m 0, v 0, y 1", "x 2, y 2", "x 3, y 3")
    instance = joined("InstanceNormalization", x, {"y": (2, 3, 4, 5)})
    assert instance == sets("x 0, y 0", "x 1, s 0, b 0, y 1", "x 2!", "x 3!", "y 2!", "y 3!")


def test_pools_pass_batch_and_channels() -> None:
    found = joined("MaxPool", {"x": (2, 3, 4)}, {"y": (2, 3, 2), "i": (2, 3, 2)}, kernel_shape=[2])
    assert found == sets("x 0, y 0, i 0", "x 1, y 1, i 1", "x 2!", "y 2!", "i 2!")
    assert joined("MaxPool", {"x": (2, 3, 4)}, {"y": ()}) == sets("x 0!", "x 1!", "x 2!")


def test_resizing_passes_batch_and_channels_that_keep_their_size() -> None:
    x, y = {"x": (2, 3, 4)}, {"y": (2, 3, 4)}
    assert joined("Resize", x, y) == sets("x 0, y 0", "x 1, y 1", "x 2!", "y 2!")
    assert joined("Resize", x, {"y": (2, 6, 8)}) == sets("x 0, y 0", "x 1!", "x 2!", "y 1!", "y 2!")
    assert joined("Resize", {"x": (1, 3)}, {"y": (1, 3)}) == sets("x 1, y 1")
    sizes = {**x, "r": (0,), "c": (0,), "s": (3,)}
    assert sets("x 1!", "y 1!") <= joined("Resize", sizes, y)
    assert sets("x 1, y 1") <= joined("Resize", sizes, y, constant={"s": np.array([2, 3, 4])})


@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear"])
def test_scales_of_channels_follow_their_axis(op: str) -> None:
    given = {"x": (2, 3, 4), "s": (3,), "z": (3,)}
    wanted = sets("x 0, y 0", "x 1, s 0, z 0, y 1", "x 2, y 2")
    assert joined(op, given, {"y": (2, 3, 4)}) == joined(op, given, {"y": (2, 3, 4)}, axis=-2) == wanted
    assert joined(op, {"x": (2, 3), "s": (2,)}, {"y": (2, 3)}, axis=0) == sets("x 0, s 0, y 0", "x 1, y 1")
    assert joined(op, {"x": (2, 3), "s": ()}, {"y": (2, 3)}) == sets("x 0, y 0", "x 1, y 1")
    blocks = joined(op, {"x": (2, 4), "s": (2, 2)}, {"y": (2, 4)}, block_size=2)
    assert blocks == sets("x 0!", "x 1!", "s 0!", "s 1!", "y 0!", "y 1!")


def convolution(op: str, w: tuple[int, ...], y: int, group: int = 1, **more: tuple[int, ...]) -> set[frozenset[str]]:
    given = {"x": (2, 4, 5), "w": w, **more}
    return joined(op, given, {"y": (2, y, 5)}, **({"group": group} if group > 1 else {}))


def test_convolutions_join_outputs_and_inputs_with_their_weights() -> None:
    rest = sets("x 2!", "w 2!", "y 2!")
    assert convolution("Conv", (6, 4, 3), 6, b=(6,)) == sets("x 0, y 0", "w 0, b 0, y 1", "x 1, w 1") | rest
    added = convolution("FusedConv", (6, 4, 3), 6, b=(6,), z=(2, 6, 5))
    assert added == sets("x 0, y 0, z 0", "w 0, b 0, y 1, z 1", "x 1, w 1", "x 2!", "w 2!", "y 2, z 2")
    deep = convolution("Conv", (4, 1, 3), 4, 4, b=(4,))
    assert deep == sets("x 0, y 0", "x 1, w 0, b 0, y 1") | rest
    turned = convolution("ConvTranspose", (4, 6, 3), 6, b=(6,))
    assert turned == sets("x 0, y 0", "w 1, b 0, y 1", "x 1, w 0") | rest
    assert convolution("ConvTranspose", (4, 1, 3), 4, 4) == sets("x 0, y 0", "x 1, w 0, y 1") | rest


@pytest.mark.parametrize(
    ("op", "w", "even", "shared"), [("Conv", (6, 2, 3), "x", "y"), ("ConvTranspose", (4, 3, 3), "y", "x")]
)
def test_groups_of_a_convolution_lose_the_same_channels(op: str, w: tuple[int, ...], even: str, shared: str) -> None:
    """The weight has one axis for all groups; along the other one the groups are kept alike."""
    n = Network()
    x = n.input("x", 2, 4, 5, 5)
    found = analysed(n.model(n.node(op, x, n.weight(*w, 3), group=2)))[1].labels
    ends = {"x": found["x", 1].tolist(), "y": found[f"{op}_0_out", 1].tolist()}
    for end in ends.values():
        half = len(end) // 2
        assert end[:half] == end[half:]
        assert len(set(end)) == half
    assert ends[even][: len(ends[even]) // 2] == found["w0", 1].tolist()
    assert ends[shared] == found["w0", 0].tolist()


def test_values_that_subgraphs_read_are_fixed_by_their_node() -> None:
    """Both branches read one convolution, one of them another; a third is read by neither."""
    n = Network()
    x = n.input("x", "batch", 3, 4, 4)
    one, two, three = (n.conv(x, 3, size) for size in (2, 5, 6))
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    both = [helper.make_node("Neg", [one], ["half"]), helper.make_node("Relu", ["half"], ["inner"])]
    then = helper.make_graph(both, "then", [], [out])
    left = [helper.make_node("ReduceSum", [two], ["t"]), helper.make_node("Add", [one, "t"], ["inner"])]
    other = helper.make_graph(left, "else", [], [out])
    condition = n.weight(values=np.array(True))
    n.nodes.append(helper.make_node("If", [condition], ["chosen"], name="If_0", then_branch=then, else_branch=other))
    model = n.model(n.conv("chosen", 2, 2), n.conv(three, 6, 2))
    found = {group.name: (group.frozen, group.node) for group in analysed(model)[1].groups}
    assert found["Conv_0"] == found["Conv_1"]
    assert "If" in str(found["Conv_0"][0])
    assert found["Conv_0"][1] == "If_0"
    assert found["Conv_2"] == (None, "")
