"""Cross-layer equalisation: which pairs, which scales, and that the float model computes the same."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.probe import channels
from lepton_cli.probe.channels import Channels
from lepton_cli.quantize import choose, equalise
from lepton_cli.quantize.equalise import LayerPair
from tests.quantize.builders import Graph, context, images, run, sqnr


def convolutions(model: ir.Model) -> choose.Choice:
    return choose.Choice(frozenset(node.name or "" for node in model.graph if node.op_type == "Conv"), frozenset(), ())


def constant(model: ir.Model, name: str) -> np.ndarray:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def two(width: int = 3, group: int = 1, k: int = 1, between: str = "Relu", **attributes: Any) -> ir.Model:
    """Conv -> `between` -> Conv, input `x` [b, 3, 6, 6]."""
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 6, 6]), 3, width, relu=False)
    return graph.model(graph.conv(graph.op(between, x, **attributes), width, width, k, group=group, relu=False))


def ends(*widest: float, low: float = 0.0) -> Channels:
    high = np.float32(widest)
    return Channels(np.full(high.shape, low, np.float32), high)


PAIR = LayerPair("Conv_0", "Conv_2", "t1")


def test_three_channels_by_hand() -> None:
    # Widest 8; the third channel grows by no more than 64, as if it were 0.125 wide.
    model = two()
    made, count = equalise.equalise(model, [PAIR], {"t1": ends(2, 8, 0.001)}, 1.0)
    scale = np.array([4.0, 1, 64])
    assert count == 1
    assert np.allclose(constant(made, "w0"), constant(model, "w0") * scale[:, None, None, None], rtol=1e-6)
    assert np.allclose(constant(made, "w1"), constant(model, "w1") * scale, rtol=1e-6)
    assert np.allclose(constant(made, "w2"), constant(model, "w2") / scale[None, :, None, None], rtol=1e-6)
    assert np.array_equal(constant(made, "w3"), constant(model, "w3"))


def test_dead_channels_and_small_values_are_equalised_too() -> None:
    model = two()
    made, count = equalise.equalise(model, [PAIR], {"t1": ends(0, 0.5, 0.25)}, 1.0)
    assert count == 1
    assert np.allclose(constant(made, "w1") / constant(model, "w1"), [64, 1, 2], rtol=1e-6)


@pytest.mark.parametrize("strength", [0.5, 0.25])
def test_strength_is_the_power_of_the_scale(strength: float) -> None:
    model = two()
    made, _ = equalise.equalise(model, [PAIR], {"t1": ends(2, 8, 0.001)}, strength)
    expected = np.array([4.0, 1, 64]) ** strength
    assert np.allclose(constant(made, "w1") / constant(model, "w1"), expected, rtol=1e-6)


def test_depthwise_and_grouped_layers_divide_their_own_channels() -> None:
    scale = np.array([4.0, 1, 2, 8])
    for group in (1, 2, 4):
        model = two(width=4, group=group, k=3)
        made, _ = equalise.equalise(model, [PAIR], {"t1": ends(*(8 / scale))}, 1.0)
        before, after = constant(model, "w2"), constant(made, "w2")
        for out in range(4):
            for within in range(4 // group):
                channel = out // (4 // group) * (4 // group) + within
                assert np.allclose(after[out, within], before[out, within] / scale[channel], rtol=1e-6)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(
    ("between", "attributes"),
    [
        ("Relu", {}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("MaxPool", {"kernel_shape": [2, 2]}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("GlobalAveragePool", {}),
    ],
)
def test_the_float_model_computes_the_same(
    between: str, attributes: dict[str, Any], group: int, tmp_path: Path
) -> None:
    model, data = two(4, group, 3, between, **attributes), images(6, size=6)
    weight = model.graph.initializers["w0"]
    weight.const_value = ir.tensor(constant(model, "w0") * np.float32([10, 0.1, 1, 3]).reshape(4, 1, 1, 1), name="w0")
    before = run(model, data)
    found = equalise.pairs(model, convolutions(model))
    assert found == [PAIR]
    known = channels.collect(model, {"t1": 1}, data, context(data, tmp_path))
    made, count = equalise.equalise(model, found, known, 1.0)
    assert count == 1
    assert sqnr(model, made, data) > 110
    assert np.array_equal(run(model, data), before), "the model given stays as it is"
    after = channels.collect(made, {"t1": 1}, data, context(data, tmp_path))["t1"].widest
    widest = float(known["t1"].widest.max())
    assert np.allclose(after[known["t1"].widest > widest / 64], widest, rtol=1e-4), "all channels are equally wide"


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_ranges_of_the_equalised_model_are_known_without_running_it(strength: float, tmp_path: Path) -> None:
    """Against the equalised model itself, run on the data: Conv -> MaxPool -> LeakyRelu -> Conv -> Conv."""
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 6, 6]), 3, 4, relu=False)
    x = graph.op("LeakyRelu", graph.op("MaxPool", x, kernel_shape=[2, 2]), alpha=0.4)
    model = graph.model(graph.conv(graph.conv(x, 4, 4, relu=False), 4, 4, relu=False))
    weight = model.graph.initializers["w0"]
    weight.const_value = ir.tensor(constant(model, "w0") * np.float32([10, 0.1, 1, 3]).reshape(4, 1, 1, 1), name="w0")
    data = images(6, size=6)
    found = equalise.pairs(model, convolutions(model))
    scaled = equalise.between(model, found)
    assert scaled == {"t2": ["t0", "t1", "t2"], "t3": ["t3"]}
    axes = {name: 1 for names in scaled.values() for name in names}
    before = channels.collect(model, axes, data, context(data, tmp_path))
    made, _ = equalise.equalise(model, found, before, strength)
    after = channels.collect(made, axes, data, context(data, tmp_path))
    told = equalise.ranges(scaled, before, strength)
    assert told.keys() == axes.keys()
    for name, (low, high) in told.items():
        assert (low, high) == pytest.approx((after[name].low.min(), after[name].high.max()), rel=1e-5)
    dead = before | {"t2": ends(0, 0, 0, 0)}
    assert equalise.ranges(scaled, dead, strength).keys() == {"t3"}, "what is not equalised keeps its range"


def test_one_dimensional_convolutions(tmp_path: Path) -> None:
    graph = Graph()
    names = [
        graph.constant(graph.random.normal(size=shape).astype(np.float32)) for shape in ((4, 3, 3), (4,), (2, 4, 3))
    ]
    y = graph.op("Relu", graph.op("Conv", graph.take("x", ["b", 3, 12]), *names[:2]))
    model = graph.model(graph.op("Conv", y, names[2]))
    data = Arrays({"x": np.random.default_rng(0).normal(size=(4, 3, 12)).astype(np.float32)})
    made, count = equalise.equalise(model, [PAIR], {"t1": ends(1, 2, 3, 0.5)}, 1.0)
    assert count == 1
    assert not np.allclose(constant(made, "w0"), constant(model, "w0"))
    assert sqnr(model, made, data) > 110


def test_two_pairs_meet_in_a_depthwise_layer(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 6, 6]), 3, 8, 1)
    x = graph.conv(x, 8, 8, group=8)
    model = graph.model(graph.conv(x, 8, 4, 1, relu=False))
    data = images(6, size=6)
    found = equalise.pairs(model, convolutions(model))
    assert found == [LayerPair("Conv_0", "Conv_2", "t1"), LayerPair("Conv_2", "Conv_4", "t3")]
    known = channels.collect(model, {"t1": 1, "t3": 1}, data, context(data, tmp_path))
    made, count = equalise.equalise(model, found, known, 1.0)
    assert count == 2
    assert sqnr(model, made, data) > 110


def test_channels_without_values_or_with_infinite_ones_are_skipped() -> None:
    model = two()
    for known in (ends(0, 0, 0), ends(1, np.inf, 1), ends(1, np.nan, 1)):
        made, count = equalise.equalise(model, [PAIR], {"t1": known}, 1.0)
        assert count == 0
        assert np.array_equal(constant(made, "w0"), constant(model, "w0"))


def test_a_skipped_pair_does_not_keep_the_next_from_it() -> None:
    graph = Graph()
    x = graph.conv(graph.conv(graph.take("x", ["b", 3, 6, 6]), 3, 3), 3, 3)
    model = graph.model(graph.conv(x, 3, 3))
    found = equalise.pairs(model, convolutions(model))
    assert len(found) == 2
    made, count = equalise.equalise(model, found, {"t1": ends(0, 0, 0), "t3": ends(1, 2, 4)}, 1.0)
    assert count == 1
    assert np.array_equal(constant(made, "w0"), constant(model, "w0"))
    assert not np.array_equal(constant(made, "w2"), constant(model, "w2"))


def test_negative_values_count_too() -> None:
    model = two(between="LeakyRelu", alpha=0.5)
    known = Channels(np.float32([-8, -1, -2]), np.float32([1, 4, 1]))
    made, _ = equalise.equalise(model, [PAIR], {"t1": known}, 1.0)
    assert np.allclose(constant(made, "w1") / constant(model, "w1"), [1, 2, 4], rtol=1e-6)


@pytest.mark.parametrize(("widest", "worth"), [(8.0, False), (8.01, True), (100.0, True), (1.0, False)])
def test_a_channel_eight_times_wider_than_the_median_is_worth_a_trial(widest: float, worth: bool) -> None:
    assert equalise.uneven(ends(1, widest, 1, 0.1, 1)) == worth
    assert equalise.uneven(Channels(-ends(1, widest, 1, 0.1, 1).high, np.zeros(5, np.float32))) == worth


def test_dead_channels_are_uneven_without_a_division_by_zero() -> None:
    assert equalise.uneven(ends(0, 0, 1e-3))
    assert not equalise.uneven(ends(0, 0, 0))
    assert not equalise.uneven(ends(0, 0, 7e-12))


def test_a_bias_that_others_read_is_copied_first() -> None:
    graph = Graph()
    weight = graph.random.normal(size=(4, 4, 1, 1)).astype(np.float32)
    names = [graph.constant(weight) for _ in range(3)]
    bias = graph.constant(np.float32([1, 2, 3, 4]))
    x = graph.op("Relu", graph.op("Conv", graph.take("x", ["b", 4, 3, 3]), names[0], bias))
    y = graph.op("Conv", x, names[1], bias)
    model = graph.model(y)
    data = images(4, channels=4, size=3)
    made, count = equalise.equalise(model, [PAIR], {"t1": ends(1, 2, 4, 8)}, 1.0)
    assert count == 1
    assert sqnr(model, made, data) > 110
    assert constant(made, bias).tolist() == [1, 2, 3, 4]
    assert constant(made, "Conv_0.input2").tolist() == [8, 8, 6, 4]
    copied = made.graph.initializers["Conv_0.input2"]
    assert (copied.dtype, copied.shape) == (ir.DataType.FLOAT, [4])


def test_layers_without_a_bias() -> None:
    graph = Graph()
    names = [graph.constant(graph.random.normal(size=(3, 3, 1, 1)).astype(np.float32)) for _ in range(2)]
    x = graph.op("Relu", graph.op("Conv", graph.take("x", ["b", 3, 3, 3]), names[0]))
    model = graph.model(graph.op("Conv", x, names[1]))
    made, _ = equalise.equalise(model, [PAIR], {"t1": ends(1, 2, 4)}, 1.0)
    assert sqnr(model, made, images(4, size=3)) > 110
    assert set(made.graph.initializers) == {"w0", "w1"}


def found(graph: Graph, *outputs: str, without: str = "") -> list[tuple[str, str, str]]:
    model = graph.model(*outputs)
    names = {node.name or "" for node in model.graph if node.op_type in ("Conv", "Gemm")} - {without}
    choice = choose.Choice(frozenset(names), frozenset(), ())
    return [(pair.first, pair.second, pair.tensor) for pair in equalise.pairs(model, choice)]


def start() -> tuple[Graph, str]:
    graph = Graph()
    return graph, graph.conv(graph.take("x", ["b", 3, 6, 6]), 3, 3)


def test_pairs_reach_through_several_operators_and_none() -> None:
    graph, x = start()
    x = graph.op("MaxPool", x, kernel_shape=[2, 2])
    x = graph.conv(graph.op("LeakyRelu", x), 3, 3, relu=False)
    assert found(graph, graph.conv(x, 3, 3)) == [("Conv_0", "Conv_4", "t3"), ("Conv_4", "Conv_5", "t4")]


def test_no_pair_where_the_tensor_is_read_twice_or_returned() -> None:
    graph, x = start()
    assert found(graph, graph.op("Add", graph.conv(x, 3, 3), x)) == []
    graph, x = start()
    assert found(graph, graph.conv(x, 3, 3), x) == []
    graph, x = start()
    assert found(graph, graph.conv(x, 3, 3), "t0") == []


@pytest.mark.parametrize("between", ["Sigmoid", "Tanh", "HardSwish"])
def test_no_pair_across_operators_that_do_not_scale(between: str) -> None:
    graph, x = start()
    assert found(graph, graph.conv(graph.op(between, x), 3, 3)) == []


def test_no_pair_with_layers_that_were_not_chosen() -> None:
    for without in ("Conv_0", "Conv_2"):
        graph, x = start()
        assert found(graph, graph.conv(x, 3, 3), without=without) == []


def test_no_pair_where_a_weight_is_shared() -> None:
    for shared in (0, 1):
        graph, x = start()
        y = graph.conv(x, 3, 3)
        weight = ["w0", "w2"][shared]
        assert found(graph, graph.op("Add", y, graph.op("ReduceMean", weight, keepdims=0))) == []


def test_no_pair_where_the_tensor_is_another_ones_weight() -> None:
    graph, x = start()
    assert found(graph, graph.op("Conv", graph.take("y", [1, 3, 6, 6]), x)) == []


def test_no_pair_with_a_gemm() -> None:
    graph = Graph()
    x = graph.op("Relu", graph.linear(graph.take("x", ["b", 16]), 16, 16))
    assert found(graph, graph.linear(x, 16, 16)) == []


def six(*, alone: bool = True, between: str = "Clip") -> tuple[ir.Model, choose.Choice]:
    graph, x = start()
    bounds = [graph.constant(np.float32(value)) for value in (0, 6)] if between == "Clip" else []
    x = graph.op(between, x, *bounds)
    y = graph.conv(x, 3, 3)
    model = graph.model(y) if alone else graph.model(y, x)
    return model, convolutions(model)


def test_relu6_pairs_are_skipped_and_named() -> None:
    model, choice = six()
    assert equalise.pairs(model, choice) == []
    assert equalise.clipped(model, choice) == ["Conv_0"]


def test_only_a_clip_is_named_as_the_reason() -> None:
    assert equalise.clipped(*six(between="Relu")) == []
    assert equalise.clipped(*six(between="Sigmoid")) == []
    assert equalise.clipped(*six(alone=False)) == []
    model, _ = six()
    assert equalise.clipped(model, choose.Choice(frozenset({"Conv_3"}), frozenset(), ())) == []
    graph = Graph()
    x = graph.op("Clip", graph.linear(graph.take("x", ["b", 16]), 16, 16))
    model = graph.model(graph.op("Conv", graph.op("Relu", x), graph.constant(np.ones((1, 1, 1, 1), np.float32))))
    assert equalise.clipped(model, choose.Choice(frozenset({"Gemm_0"}), frozenset(), ())) == []


def test_the_constants_documented() -> None:
    assert (equalise.LARGEST, equalise.WIDE) == (64, 8)
