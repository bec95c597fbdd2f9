"""Networks on sequences, graphs and tables, as exporters write them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from tests.corpus.net import FLOAT, INT64, STRING, Feed, Member, Net, normal


def _gates(net: Net, gates: int, inner: int, outer: int) -> list[str]:
    shapes = ((1, gates * outer, inner), (1, gates * outer, outer))
    return [net.weight(*shape, scale=shape[2] ** -0.5) for shape in shapes] + [net.weight(1, 2 * gates * outer)]


def lstm() -> Any:
    """Time first; states go in and come out."""
    net = Net(17)
    x = net.take("x", ["time", "batch", 16])
    states = [net.take(name, [1, "batch", 32]) for name in ("h0", "c0")]
    y, hidden, cell = net.op("LSTM", x, *_gates(net, 4, 16, 32), "", *states, hidden_size=32, outputs=3)
    y = net.projected(net.op("Squeeze", y, net.integers(1)), 32, 8)
    shape: list[int | str] = [1, "batch", 32]
    return net.proto({"y": (y, ["time", "batch", 8]), "hn": (hidden, shape), "cn": (cell, shape)})


def gru() -> Any:
    """Both directions, batch first outside and time first inside, a frozen batch of one."""
    net = Net(17)
    x = net.transpose(net.take("features", [1, "time", 16]), 1, 0, 2)
    held = [net.weight(2, 72, 16, scale=0.25), net.weight(2, 72, 24, scale=0.2), net.weight(2, 144)]
    y = net.op("GRU", x, *held, hidden_size=24, direction="bidirectional", linear_before_reset=1)
    y = net.reshape(net.transpose(y, 2, 0, 1, 3), 1, -1, 48)
    return net.proto({"logits": (net.projected(y, 48, 8), [1, "time", 8])})


def tcn() -> Any:
    """Convolutions ever wider in time; what they add at the end is cut off."""
    net = Net(13)
    x = net.take("signal", ["batch", 8, 32])
    for number, cin in enumerate((8, 24, 24)):
        apart = 2**number
        weight = net.weight(24, cin, 3, scale=(3 * cin) ** -0.5)
        y = net.op("Conv", x, weight, net.weight(24), pads=[2 * apart, 2 * apart], dilations=[apart])
        y = net.op("Relu", net.slice(y, 0, -2 * apart, 2))
        x = y if cin == 8 else net.op("Relu", net.op("Add", x, y))
    last = net.op("Squeeze", net.slice(x, -1, 2**31, 2), net.integers(2))
    return net.proto({"output": (net.linear(last, 24, 4), ["batch", 4])})


def graph_net() -> Any:
    """Messages along edges, summed at the nodes that they reach; no axis is a batch."""
    net = Net(18)
    x = net.take("x", ["nodes", 12])
    edges = net.take("edge_index", [2, "edges"], INT64)
    told = net.take("edge_attr", ["edges", 4])
    start, end = (net.op("Gather", edges, net.whole(i), axis=0) for i in (0, 1))
    x = net.projected(x, 12, 24)
    for _ in range(2):
        both = net.op("Concat", net.op("Gather", x, start), net.op("Gather", x, end), told, axis=1)
        sent = net.projected(net.op("Relu", net.projected(both, 52, 32)), 32, 24)
        place = net.op("Unsqueeze", end, net.integers(1))
        none = net.op("ConstantOfShape", net.op("Shape", x), value=helper.make_tensor("zero", FLOAT, [1], [0.0]))
        met = net.op("ScatterND", none, place, sent, reduction="add")
        x = net.op("Relu", net.projected(net.op("Concat", x, met, axis=1), 48, 24))
    return net.proto({"out": (net.projected(x, 24, 3), ["nodes", 3])})


def _graph_feed(random: np.random.Generator) -> Feed:
    nodes, edges = int(random.integers(5, 9)), int(random.integers(8, 14))
    index = random.integers(0, nodes, (2, edges))
    return {"x": normal(random, nodes, 12), "edge_index": index, "edge_attr": normal(random, edges, 4)}


def denoiser() -> Any:
    """One frame at a time with two layers of states: a gain for every band."""
    net = Net(17)
    frame = net.take("frame", [1, 1, 32])
    states = net.take("states", [2, 1, 24])
    x, after = net.op("Relu", net.projected(frame, 32, 24)), []
    for layer in range(2):
        state = net.slice(states, layer, layer + 1, 0)
        y, last = net.op("GRU", x, *_gates(net, 3, 24, 24), "", state, hidden_size=24, outputs=2)
        x = net.op("Squeeze", y, net.integers(1))
        after.append(last)
    gain = net.op("Sigmoid", net.projected(x, 24, 32))
    outputs = {
        "enhanced": (net.op("Mul", frame, gain), [1, 1, 32]),
        "states_out": (net.op("Concat", *after, axis=0), [2, 1, 24]),
    }
    return net.proto(outputs)  # type: ignore[arg-type]


def table() -> Any:
    """As scikit-learn's pipelines are written: a text column beside numbers, a linear model, scores by class name."""
    net = Net(17)
    text, numbers = net.take("colour", ["rows", 1], STRING), net.take("numbers", ["rows", 5])
    shown = net.op("OneHotEncoder", text, cats_strings=["blue", "green", "red"], zeros=1, domain="ai.onnx.ml")
    scaled = net.op("Scaler", numbers, offset=[0.1] * 5, scale=[1.2] * 5, domain="ai.onnx.ml")
    joined = net.op("Concat", net.reshape(shown, 0, 3), scaled, axis=1)
    x = net.op("Relu", net.projected(joined, 8, 64))
    x = net.projected(x, 64, 3)
    scores = net.op("Softmax", x, axis=1)
    best, names = net.op("ArgMax", scores, axis=1, keepdims=0), net.constant(np.array(["a", "b", "c"], object))
    label = net.op("ArrayFeatureExtractor", names, best, domain="ai.onnx.ml")
    zipped = net.op("ZipMap", scores, classlabels_strings=["a", "b", "c"], domain="ai.onnx.ml")
    proto = net.proto({"label": (net.reshape(label, -1), ["rows"])}, {"label": STRING})
    kind = helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, []))
    proto.graph.output.append(helper.make_value_info(zipped, helper.make_sequence_type_proto(kind)))
    return proto


def _table_feed(random: np.random.Generator) -> Feed:
    return {"colour": random.choice(["blue", "green", "red"], (4, 1)).astype(object), "numbers": normal(random, 4, 5)}


def forest() -> Any:
    """Trees: nothing that a step could work on."""
    net = Net(17)
    x = net.take("features", ["rows", 4])
    trees, count = 200, 7
    places = np.arange(count)
    modes = ["BRANCH_LEQ"] * 3 + ["LEAF"] * 4
    leaves = [(tree, node) for tree in range(trees) for node in range(3, 7)]
    made = net.op(
        "TreeEnsembleRegressor",
        x,
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=np.repeat(np.arange(trees), count).tolist(),
        nodes_nodeids=np.tile(places, trees).tolist(),
        nodes_featureids=np.tile(places % 4, trees).tolist(),
        nodes_values=net.random.normal(0, 1, trees * count).tolist(),
        nodes_modes=modes * trees,
        nodes_truenodeids=np.tile(np.where(places < 3, 2 * places + 1, 0), trees).tolist(),
        nodes_falsenodeids=np.tile(np.where(places < 3, 2 * places + 2, 0), trees).tolist(),
        target_treeids=[tree for tree, _ in leaves],
        target_nodeids=[node for _, node in leaves],
        target_ids=[0] * len(leaves),
        target_weights=net.random.normal(0, 1, len(leaves)).tolist(),
    )
    return net.proto({"variable": (made, ["rows", 1])})


def _states(random: np.random.Generator) -> Feed:
    return {"x": normal(random, 7, 1, 16), "h0": normal(random, 1, 1, 32), "c0": normal(random, 1, 1, 32)}


def _frame(random: np.random.Generator) -> Feed:
    return {"frame": normal(random, 1, 1, 32), "states": normal(random, 2, 1, 24)}


SEQUENCES: dict[str, Member] = {
    "lstm, time first": Member(lstm, _states),
    "gru": Member(gru, lambda random: {"features": normal(random, 1, 9, 16)}),
    "tcn": Member(tcn, lambda random: {"signal": normal(random, 1, 8, 32)}),
    "graph net": Member(graph_net, _graph_feed),
    "denoiser": Member(denoiser, _frame),
    "table": Member(table, _table_feed),
    "forest": Member(forest, lambda random: {"features": normal(random, 4, 4)}),
}
