"""Whole networks of operators that compute: what a cut may take, and that it changes nothing where it takes zeros."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from lepton_cli.coupling import cut, links
from lepton_cli.coupling.known_shapes import KnownShapes
from lepton_cli.coupling.operators import apply_rule
from tests.coupling.networks import Network, analysed, check, prunable


def image(n: Network) -> str:
    return n.input("x", "batch", 3, 4, 4)


def sized(how: str, n: Network, x: str) -> str:
    shape = n.node("Shape", x, start=1, end=2) if how == "some" else n.node("Shape", x)
    if how == "until":
        shape = n.node("Gather", n.node("Shape", x, end=2), n.literal(-1), axis=0)
    elif how == "first two":
        shape = n.node("Slice", shape, n.literal(0), n.literal(2))
    elif how == "rows":
        shape = n.node("Gather", shape, n.literal(-1, 2), axis=0)
    elif how == "channels":
        shape = n.node("Gather", shape, n.literal(-3), axis=0)
    elif how == "behind":
        shape = n.node("Slice", shape, n.literal(2), n.literal(4))
    elif how == "every second":
        shape = n.node("Slice", shape, n.literal(0), n.literal(4), n.literal(0), n.literal(2))
    elif how == "from the second":
        shape = n.node("Slice", shape, n.literal(1), n.literal(4), n.literal(0), n.literal(2))
    return n.node("ReduceProd", n.node("Cast", shape, to=1), keepdims=0)


@pytest.mark.parametrize(
    ("how", "free"),
    [
        ("rows", True), ("channels", False), ("behind", True), ("every second", True), ("from the second", False),
        ("all", False), ("some", False), ("until", False), ("first two", False),
    ],
)  # fmt: skip
def test_a_size_that_is_read_stays(how: str, free: bool) -> None:
    n = Network()
    x = n.conv(image(n), 3, 6)
    output = n.conv(n.node("Mul", x, sized(how, n, x)), 6, 2)
    if free:
        check(n, output, {"Conv_0": 6})
    else:
        assert prunable(n.model(output)) == {}


def test_sizes_read_from_a_computed_place_on_are_all_fixed() -> None:
    x, start, end = ir.Value(name="x"), ir.Value(name="s"), ir.Value(name="e", const_value=ir.tensor([2], name="e"))
    shape = ir.node("Shape", [x], name="n")
    part = ir.node("Slice", [shape.outputs[0], start, end], name="m")
    shape.outputs[0].name, part.outputs[0].name = "y", "z"
    graph = ir.Graph([x, start], part.outputs, nodes=[shape, part], initializers=[end], opset_imports={"": 17})
    collected = links.Links(ir.Model(graph, ir_version=9), KnownShapes({"x": (2, 3), "y": (2,)}, frozenset()))
    apply_rule(collected, shape)
    assert {reason for _, reason, _ in collected._frozen} == {"Shape fixes this axis"}
    assert len(collected._frozen) == 3


def test_layers_name_the_axes_of_their_weights_and_of_their_channels() -> None:
    """Of weights and of activations, on both sides."""
    n = Network()
    y = n.node("ConvTranspose", n.conv(image(n), 3, 6), n.weight(6, 5, 2, 2))
    y = n.node("MatMul", n.node("Transpose", y, perm=[0, 2, 3, 1]), n.weight(5, 4))
    y = n.node("Gemm", n.node("Reshape", y, n.literal(-1, 4)), n.weight(7, 4), transB=1)
    found = {
        (port.node, port.weight, port.axis, port.side, port.value, port.value_axis)
        for group in analysed(n.model(n.node("Gemm", y, n.weight(7, 2))))[1].groups
        for port in (*group.producers, *group.consumers)
    }
    assert found == {
        ("Conv_0", "w0", 0, "output", "Conv_0_out", 1),
        ("ConvTranspose_1", "w2", 0, "input", "Conv_0_out", 1),
        ("ConvTranspose_1", "w2", 1, "output", "ConvTranspose_1_out", 1),
        ("MatMul_3", "w3", 0, "input", "Transpose_2_out", 3),
        ("MatMul_3", "w3", 1, "output", "MatMul_3_out", 3),
        ("Gemm_5", "w5", 1, "input", "Reshape_4_out", 1),
        ("Gemm_5", "w5", 0, "output", "Gemm_5_out", 1),
        ("Gemm_6", "w6", 0, "input", "Gemm_5_out", 1),
        ("Gemm_6", "w6", 1, "output", "Gemm_6_out", 1),
    }


def test_a_shape_that_is_an_output_fixes_every_axis() -> None:
    n = Network()
    x = n.conv(image(n), 3, 6)
    rows = n.node("Shape", x)
    y = n.conv(n.node("Mul", x, n.node("Cast", n.node("Gather", rows, n.literal(2), axis=0), to=1)), 6, 2)
    model = n.model(y)
    assert prunable(model) == {"Conv_0": 6}
    model.graph.outputs.append(next(node for node in model.graph if node.op_type == "Shape").outputs[0])
    assert prunable(model) == {}


NETWORKS: dict[str, tuple[Callable[[Network], str], dict[str, int]]] = {
    "transposed": (
        lambda n: n.conv(n.node("ConvTranspose", n.conv(image(n), 3, 6), n.weight(6, 5, 2, 2), n.weight(5)), 5, 2),
        {"Conv_0": 6, "ConvTranspose_1": 5},
    ),
    "transposed, depthwise": (
        lambda n: n.conv(n.node("ConvTranspose", n.conv(image(n), 3, 6), n.weight(6, 1, 2, 2), group=6), 6, 2),
        {"Conv_0": 6},
    ),
    "transposed, grouped": (
        lambda n: n.conv(n.node("ConvTranspose", n.conv(image(n), 3, 6), n.weight(6, 2, 2, 2), group=2), 4, 2),
        {"Conv_0": 3},
    ),
    "grouped": (lambda n: n.conv(n.conv(n.conv(image(n), 3, 6), 6, 4, group=2), 4, 2), {"Conv_0": 3, "Conv_1": 2}),
    "depthwise with a multiplier": (
        lambda n: n.conv(n.conv(n.conv(image(n), 3, 4), 4, 8, group=4), 8, 2),
        {"Conv_0": 4},
    ),
    "gemm": (
        lambda n: n.node("Gemm", n.node("Gemm", n.input("x", "batch", 3), n.weight(5, 3), transB=1), n.weight(5, 2)),
        {"Gemm_0": 5},
    ),
    "norms": (
        lambda n: n.conv(
            n.node("InstanceNormalization", n.norm(n.conv(image(n), 3, 6), 6), n.weight(6), n.weight(6)), 6, 2
        ),
        {"Conv_0": 6},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_lose_zeros_without_a_change(name: str) -> None:
    build, channels = NETWORKS[name]
    n = Network()
    check(n, build(n), channels)


def test_resized_to_literal_sizes_that_follow() -> None:
    n = Network()
    x = n.conv(n.input("x", 2, 3, 4, 4), 3, 6)
    output = n.conv(n.node("Resize", x, "", "", n.literal(2, 6, 8, 8), mode="nearest"), 6, 2)
    prepared, found = analysed(n.model(output))
    group = next(group for group in found.groups if group.frozen is None)
    made = cut.cut(prepared, found, group.atoms[:2])
    sizes = next(node for node in made.graph if node.op_type == "Resize").inputs[3]
    assert sizes is not None
    assert sizes.const_value is not None
    assert sizes.const_value.numpy().tolist() == [2, 4, 8, 8]


def test_sizes_of_chosen_axes_stay() -> None:
    n = Network(opset=18)
    x = n.node("Resize", n.conv(image(n), 3, 6), "", "", n.literal(8, 8), mode="nearest", axes=[2, 3])
    made = check(n, n.conv(x, 6, 2), {"Conv_0": 6})
    sizes = next(node for node in made.graph if node.op_type == "Resize").inputs[3]
    assert sizes is not None
    assert sizes.const_value is not None
    assert sizes.const_value.numpy().tolist() == [8, 8]


def test_groups_of_depthwise_convolutions_follow_and_others_stay() -> None:
    n = Network()
    x = n.conv(n.conv(n.conv(n.conv(image(n), 3, 6), 6, 6, group=6), 6, 4, group=2), 4, 2)
    prepared, found = analysed(n.model(x))
    group = found.groups[0]
    made = cut.cut(prepared, found, group.atoms[[0]])
    assert [node.attributes.get_int("group", 1) for node in made.graph] == [1, 4, 2, 1]
