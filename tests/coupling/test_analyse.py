"""Channels that must go together: operators one by one, random networks, and what has to stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.coupling.networks import Network, analysed, assert_zeroed_equals_cut

B = "batch"


def residual(n: Network) -> str:
    x = n.conv(n.input("x", B, 3, 8, 8), 3, 8)
    y = n.conv(n.node("Relu", n.norm(n.conv(x, 8, 6), 6)), 6, 8)
    return n.conv(n.node("Relu", n.node("Add", x, y)), 8, 4)


def concatenation(n: Network) -> str:
    x = n.input("x", B, 3, 8, 8)
    return n.conv(n.node("Concat", n.conv(x, 3, 5), n.conv(x, 3, 7), axis=1), 12, 4)


def split(n: Network) -> str:
    n.node("Split", n.conv(n.input("x", B, 3, 8, 8), 3, 8), n.literal(2, 6), outputs=2, axis=1)
    name = n.nodes[-1].output
    return n.node("Concat", n.conv(name[0], 2, 4), n.conv(name[1], 6, 4), axis=1)


def depthwise(n: Network) -> str:
    x = n.node("Clip", n.conv(n.input("x", B, 3, 8, 8), 3, 8))
    return n.conv(n.node("Relu", n.conv(x, 8, 16, group=8)), 16, 4, kernel=1)


def grouped(n: Network) -> str:
    return n.conv(n.conv(n.conv(n.input("x", B, 3, 8, 8), 3, 8), 8, 12, group=2), 12, 4)


def squeeze_excite(n: Network) -> str:
    x = n.conv(n.input("x", B, 3, 8, 8), 3, 8)
    gate = n.conv(n.node("Relu", n.conv(n.node("GlobalAveragePool", x), 8, 4, 1)), 4, 8, 1)
    return n.conv(n.node("Mul", x, n.node("Sigmoid", gate)), 8, 4)


def flatten(n: Network) -> str:
    x = n.node("MaxPool", n.conv(n.input("x", B, 3, 8, 8), 3, 6), kernel_shape=[2, 2], strides=[2, 2])
    return n.node("Gemm", n.node("Flatten", x), n.weight(5, 96), n.weight(5), transB=1)


def channels_last(n: Network) -> str:
    x = n.node("Transpose", n.conv(n.input("x", B, 3, 4, 4), 3, 6), perm=[0, 2, 3, 1])
    return n.linear(n.node("Reshape", x, n.literal(-1, 96)), 96, 5)


def attention(n: Network) -> str:
    x = n.input("x", B, "length", 12)

    def heads(perm: list[int]) -> str:
        return n.node("Transpose", n.node("Reshape", n.linear(x, 12, 24), n.literal(0, 0, 4, 6)), perm=perm)

    scores = n.node("Softmax", n.node("MatMul", heads([0, 2, 1, 3]), heads([0, 2, 3, 1])), axis=-1)
    mixed = n.node("Transpose", n.node("MatMul", scores, heads([0, 2, 1, 3])), perm=[0, 2, 1, 3])
    return n.node("Add", x, n.linear(n.node("Reshape", mixed, n.literal(0, 0, 24)), 24, 12))


def feed_forward(n: Network) -> str:
    x = n.input("x", B, "length", 8)
    y = n.linear(x, 8, 16)
    gelu = n.node("Mul", y, n.node("Add", n.node("Erf", y), n.weight(values=np.array(1.0, np.float32))))
    y = n.node("Add", x, n.linear(gelu, 16, 8))
    return n.node("LayerNormalization", y, n.weight(8), n.weight(8))


def padded_shortcut(n: Network) -> str:
    x = n.conv(n.input("x", B, 3, 8, 8), 3, 4)
    half = n.node("Slice", x, n.literal(0, 0), n.literal(8, 8), n.literal(2, 3), n.literal(2, 2))
    shortcut = n.node("Pad", half, n.literal(0, 2, 0, 0, 0, 2, 0, 0))
    return n.conv(n.node("Add", shortcut, n.conv(x, 4, 8, stride=2)), 8, 4)


def shuffle(n: Network) -> str:
    x = n.node("Reshape", n.conv(n.input("x", B, 3, 4, 4), 3, 8), n.literal(-1, 2, 4, 4, 4))
    x = n.node("Reshape", n.node("Transpose", x, perm=[0, 2, 1, 3, 4]), n.literal(-1, 8, 4, 4))
    return n.conv(x, 8, 4)


def sliced(n: Network) -> str:
    x = n.conv(n.input("x", B, 3, 4, 4), 3, 9)
    one = n.node("Slice", x, n.literal(0), n.literal(4), n.literal(1))
    two = n.node("Slice", x, n.literal(4), n.literal(9), n.literal(1))
    return n.node("Concat", n.conv(one, 4, 3), n.conv(two, 5, 3), axis=1)


def gathered(n: Network) -> str:
    x = n.conv(n.input("x", B, 3, 4, 4), 3, 6)
    return n.conv(n.node("Gather", x, n.literal(5, 0, 3, 1), axis=1), 4, 3)


def transposed(n: Network) -> str:
    x = n.conv(n.input("x", B, 3, 4, 4), 3, 6)
    y = n.node("ConvTranspose", x, n.weight(6, 5, 2, 2), n.weight(5), strides=[2, 2])
    return n.conv(n.node("PRelu", y, n.weight(5, 1, 1)), 5, 3)


def instance_norm(n: Network) -> str:
    x = n.conv(n.input("x", B, 3, 4, 4), 3, 6)
    return n.conv(n.node("InstanceNormalization", x, n.weight(6), n.weight(6)), 6, 3)


def depth_to_space(n: Network) -> str:
    x = n.conv(n.input("x", B, 3, 4, 4), 3, 12)
    return n.conv(n.node("DepthToSpace", x, blocksize=2, mode="CRD"), 3, 3)


def space_to_depth(n: Network) -> str:
    return n.conv(n.node("SpaceToDepth", n.conv(n.input("x", B, 3, 4, 4), 3, 3), blocksize=2), 12, 3)


def resized(n: Network) -> str:
    scales = n.weight(values=np.array([1, 1, 2, 2], np.float32))
    return n.conv(n.node("Resize", n.conv(n.input("x", B, 3, 4, 4), 3, 6), "", scales, mode="nearest"), 6, 3)


def einsum(n: Network) -> str:
    return n.node("Einsum", n.linear(n.input("x", B, 5, 4), 4, 6), n.weight(6, 3), equation="bsc,cd->bsd")


def shared_weight(n: Network) -> str:
    x, w = n.conv(n.input("x", B, 3, 4, 4), 3, 6), n.weight(6, 6, 3, 3)
    y = n.node("Conv", x, w, pads=[1, 1, 1, 1])
    return n.conv(n.node("Conv", n.node("Relu", y), w, pads=[1, 1, 1, 1]), 6, 3)


def computed_shape(n: Network) -> str:
    """The exported form of `x.view(x.size(0), -1)` and of a width that is read at run time."""
    x = n.conv(n.input("x", B, 3, 4, 4), 3, 6)
    size = n.node("Gather", n.node("Shape", x), n.literal(0), axis=0)
    return n.linear(n.node("Reshape", x, n.node("Concat", size, n.literal(96), axis=0)), 96, 4)


def reduced(n: Network) -> str:
    return n.linear(n.node("ReduceMean", n.conv(n.input("x", B, 3, 4, 4), 3, 6), axes=[2, 3], keepdims=0), 6, 4)


BUILDERS = (
    residual, concatenation, split, depthwise, grouped, squeeze_excite, flatten, channels_last, attention, feed_forward,
    padded_shortcut, shuffle, sliced, gathered, transposed, instance_norm, depth_to_space, space_to_depth, resized,
    einsum, shared_weight, computed_shape, reduced,
)  # fmt: skip


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_pruning_zeroed_channels_changes_nothing(build: Callable[[Network], str]) -> None:
    network = Network()
    assert_zeroed_equals_cut(network.model(build(network)))


def test_old_split_and_slice_attributes() -> None:
    network = Network(opset=9)
    x = network.conv(network.input("x", B, 3, 8, 8), 3, 8)
    network.node("Split", x, outputs=2, axis=1, split=[3, 5])
    one, two = network.nodes[-1].output
    three = network.node("Slice", x, starts=[2], ends=[1000], axes=[1])
    parts = [network.conv(one, 3, 2), network.conv(two, 5, 2), network.conv(three, 6, 2)]
    assert_zeroed_equals_cut(network.model(network.node("Concat", *parts, axis=1)))


def test_heads_are_pruned_whole() -> None:
    network = Network()
    _, found = analysed(network.model(attention(network)))
    group = next(group for group in found.groups if group.frozen is None)
    assert group.channels == 4
    assert len(group.producers) == 3
    assert all(positions.shape == (4, 6) for axis, positions in group.slices.items() if axis[1] == 1)


def test_blocks_of_a_residual_net_share_one_group() -> None:
    network = Network()
    _, found = analysed(network.model(residual(network)))
    stream, inner, last = found.groups
    assert [port.node for port in stream.producers] == ["Conv_0", "Conv_4"]
    assert inner.channels == 6
    assert last.frozen is not None
    assert "output" in last.frozen


@pytest.mark.parametrize("how", ["Slice", "Split", "Gather"])
def test_heads_of_query_key_and_value_from_one_product(how: str) -> None:
    """As `qkv.reshape(b, n, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)` is exported: a third is no channel."""
    network = Network(opset=13)
    x = network.input("x", B, "length", 12)
    five = network.node("Reshape", network.linear(x, 12, 72), network.literal(0, 0, 3, 4, 6))
    five = network.node("Transpose", five, perm=[2, 0, 3, 1, 4])
    if how == "Split":
        network.node("Split", five, outputs=3, axis=0)
        parts = list(network.nodes[-1].output)
    elif how == "Slice":
        ends = [(network.literal(at), network.literal(at + 1)) for at in range(3)]
        parts = [network.node("Slice", five, start, end, network.literal(0)) for start, end in ends]
    else:
        parts = [network.node("Gather", five, network.weight(values=np.array(at, np.int64)), axis=0) for at in range(3)]
    if how != "Gather":
        parts = [network.node("Squeeze", part, network.literal(0)) for part in parts]
    query, key, value = parts
    scores = network.node("MatMul", query, network.node("Transpose", key, perm=[0, 1, 3, 2]))
    mixed = network.node("MatMul", network.node("Softmax", scores, axis=-1), value)
    mixed = network.node("Reshape", network.node("Transpose", mixed, perm=[0, 2, 1, 3]), network.literal(0, 0, 24))
    model = network.model(network.node("Add", x, network.linear(mixed, 24, 12)))
    (group,) = (group for group in analysed(model)[1].groups if group.frozen is None)
    assert group.channels == 4
    assert_zeroed_equals_cut(model)


def test_a_channel_taken_out_of_others_stays() -> None:
    """Masks from one channel: without it there is nothing for Squeeze to take."""
    network = Network()
    x = network.conv(network.input("x", B, 3, 4, 4), 3, 6)
    part = network.node("Slice", x, network.literal(2), network.literal(3), network.literal(1))
    mask = network.node("Unsqueeze", network.node("Squeeze", part, network.literal(1)), network.literal(1))
    y = network.conv(network.node("Mul", network.node("Relu", x), mask), 6, 4)
    _, found = analysed(network.model(y))
    assert [group.channels for group in found.groups if group.producers[0].node == "Conv_0" and not group.frozen] == [5]
    assert_zeroed_equals_cut(network.model(y), share=1)


def frozen_reasons(network: Network, output: str) -> dict[str, str | None]:
    return {group.name: group.frozen for group in analysed(network.model(output))[1].groups}


def test_what_cannot_be_proved_is_frozen_with_a_reason() -> None:
    network = Network()
    x = network.conv(network.input("x", B, 3, 4, 4), 3, 6)
    reasons = frozen_reasons(network, network.conv(network.node("Softmax", x, axis=1), 6, 4))
    assert reasons["Conv_0"] == "Softmax fixes this axis"
    network = Network()
    x = network.conv(network.input("x", B, 3, 4, 4), 3, 6)
    reasons = frozen_reasons(network, network.conv(network.node("LRN", x, size=3), 6, 4))
    assert reasons["Conv_0"] == "LRN fixes this axis"
    network = Network()
    x = network.conv(network.input("x", B, 3, 4, 4), 3, 6)
    reasons = frozen_reasons(network, network.node("ReduceMax", x, axes=[1]))
    assert reasons["Conv_0"] == "ReduceMax fixes this axis"


def test_layer_norm_width_is_frozen() -> None:
    network = Network()
    x = network.linear(network.input("x", B, 5, 4), 4, 8)
    x = network.node("LayerNormalization", x, network.weight(8), network.weight(8))
    assert frozen_reasons(network, network.linear(x, 8, 3))["MatMul_0"] == "LayerNormalization fixes this axis"


def test_a_width_read_at_run_time_is_frozen() -> None:
    network = Network()
    x = network.conv(network.input("x", B, 3, "height", 4), 3, 6)
    size = network.node("Cast", network.node("Gather", network.node("Shape", x), network.literal(1, 2), axis=0), to=1)
    y = network.node("Mul", x, network.node("ReduceProd", size, keepdims=0))
    assert "Shape" in str(frozen_reasons(network, network.conv(y, 6, 4))["Conv_0"])


def test_weights_that_are_inputs_too_are_weights() -> None:
    network = Network()
    output = network.conv(network.conv(network.input("x", B, 3, 4, 4), 3, 6), 6, 4)
    model = network.model(output)
    model.graph.inputs.append(model.graph.initializers["w0"])
    looked_at, found = analysed(model)
    assert found.groups[0].frozen is None
    assert [value.name for value in looked_at.graph.inputs] == ["x"]


def test_captured_by_a_subgraph_is_frozen() -> None:
    network = Network()
    x = network.conv(network.input("x", B, 3, 4, 4), 3, 6)
    condition = network.weight(values=np.array(True))
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("Relu", [x], ["inner"])], "then", [], [out])
    other = helper.make_graph([helper.make_node("Neg", [x], ["inner"])], "else", [], [out])
    network.nodes.append(
        helper.make_node("If", [condition], ["chosen"], name="If_0", then_branch=then, else_branch=other)
    )
    assert "If" in str(frozen_reasons(network, network.conv("chosen", 6, 4))["Conv_0"])


@st.composite
def random_network(draw: st.DrawFn) -> ir.Model:
    """A chain of blocks of random widths: plain, residual, depthwise, concatenated, gated, normalised."""
    network = Network(seed=draw(st.integers(0, 2**16)))
    width = draw(st.integers(2, 9))
    x = network.conv(network.input("x", B, 3, 8, 8), 3, width)
    for block in draw(
        st.lists(st.sampled_from(["plain", "residual", "depthwise", "concat", "excite", "norm", "pool"]), max_size=5)
    ):
        inner = draw(st.integers(2, 9))
        if block == "plain":
            x, width = network.node("Relu", network.conv(x, width, inner)), inner
        elif block == "residual":
            x = network.node("Add", x, network.conv(network.node("Relu", network.conv(x, width, inner)), inner, width))
        elif block == "depthwise":
            x = network.node("Relu", network.conv(x, width, width, group=width))
        elif block == "concat":
            x, width = network.node("Concat", x, network.conv(x, width, inner), axis=1), width + inner
        elif block == "excite":
            gate = network.conv(network.conv(network.node("GlobalAveragePool", x), width, inner, 1), inner, width, 1)
            x = network.node("Mul", x, network.node("Sigmoid", gate))
        elif block == "norm":
            x = network.norm(x, width)
        else:
            x = network.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    if draw(st.booleans()):
        return network.model(
            network.node("Gemm", network.node("Flatten", x), network.weight(width * 64, 5), network.weight(5))
        )
    return network.model(network.conv(x, width, 3))


@given(random_network(), st.floats(0.1, 0.9), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_random_networks(model: ir.Model, share: float, seed: int) -> None:
    assert_zeroed_equals_cut(model, share=share, seed=seed)
