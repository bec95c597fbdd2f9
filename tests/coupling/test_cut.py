"""The surgery: what a cut model looks like."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lepton_cli.coupling import cut
from lepton_cli.model import io
from tests.coupling.networks import Network, analysed
from tests.coupling.test_analyse import attention, depthwise, grouped, padded_shortcut, split


def cut_first(network: Network, output: str, channels: list[int]) -> ir.Model:
    model, found = analysed(network.model(output))
    group = next(group for group in found.groups if group.frozen is None)
    return cut.cut(model, found, group.atoms[channels])


def node(model: ir.Model, op: str, index: int = 0) -> ir.Node:
    return [node for node in model.graph if node.op_type == op][index]


def literal(value: ir.Value | None) -> list[int]:
    assert value is not None
    assert value.const_value is not None
    return [int(number) for number in value.const_value.numpy()]


def test_depthwise_convolutions_get_fewer_groups() -> None:
    network = Network()
    model = cut_first(network, depthwise(network), [0, 3])
    assert node(model, "Conv", 1).attributes["group"].as_int() == 6
    assert [list(v.const_value.shape.numpy()) for v in node(model, "Conv", 1).inputs[1:]] == [[12, 1, 3, 3], [12]]


def test_grouped_convolutions_keep_their_groups() -> None:
    network = Network()
    model = cut_first(network, grouped(network), [1])
    assert node(model, "Conv", 1).attributes["group"].as_int() == 2
    assert node(model, "Conv", 0).inputs[1].const_value.shape.numpy()[0] == 6


def test_heads_change_the_literal_shapes() -> None:
    network = Network()
    model = cut_first(network, attention(network), [2])
    shapes = [literal(n.inputs[1]) for n in model.graph if n.op_type == "Reshape"]
    assert shapes == [[0, 0, 3, 6]] * 3 + [[0, 0, 18]]


def test_split_sizes_and_pads_follow() -> None:
    network = Network()
    model = cut_first(network, split(network), [0])
    assert literal(node(model, "Split").inputs[1]) == [1, 6]
    network = Network()
    model = cut_first(network, padded_shortcut(network), [0])
    pads = literal(node(model, "Pad").inputs[1])
    assert sum(pads) == 4


def test_equal_splits_get_explicit_sizes() -> None:
    network = Network(opset=18)
    network.node("Split", network.conv(network.input("x", "batch", 3, 4, 4), 3, 8), outputs=2, axis=1, num_outputs=2)
    one, two = network.nodes[-1].output
    output = network.node("Concat", network.conv(one, 4, 2), network.conv(two, 4, 2), axis=1)
    model = cut_first(network, output, [0, 1])
    assert literal(node(model, "Split").inputs[1]) == [2, 4]
    assert "num_outputs" not in node(model, "Split").attributes


def test_the_input_and_its_weights_stay_as_they_are() -> None:
    network = Network()
    model, found = analysed(network.model(depthwise(network)))
    before = io.to_bytes(model)
    cut.cut(model, found, found.groups[0].atoms[:2])
    assert io.to_bytes(model) == before


def test_values_are_taken_not_copied_wrong() -> None:
    network = Network()
    model, found = analysed(network.model(depthwise(network)))
    group = found.groups[0]
    after = cut.cut(model, found, group.atoms[[1]])
    old, new = (m.graph.initializers["w0"].const_value.numpy() for m in (model, after))
    np.testing.assert_array_equal(np.delete(old, 1, axis=0), new)


def test_operators_of_other_domains_are_left_alone_whatever_their_name() -> None:
    """A `Conv` of one's own need not even have a weight."""
    network = Network()
    x = network.conv(network.input("x", "b", 3, 8, 8), 3, 8)
    model, found = analysed(network.model(network.conv(x, 8, 4)))
    model.graph.append(ir.node("Conv", [model.graph.outputs[0]], domain="own", name="own"))
    group = next(group for group in found.groups if group.frozen is None)
    assert node(cut.cut(model, found, group.atoms[[0]]), "Conv").inputs[1].const_value.shape.numpy()[0] == 7
