"""Made-up inputs fit: onnxruntime runs the models on them, and finds the shapes that `settle` foretold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from lepton_cli.data.batching import layout
from lepton_cli.data.synthetic import synthetic
from lepton_cli.graph import feeds, settle, shapes
from lepton_cli.model import io

N = helper.make_node
RANDOM = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32) / 4


def build(nodes: list[Any], inputs: dict[str, Any], outputs: list[str], opset: int = 17, **weights: Any) -> ir.Model:
    """`inputs`: name -> shape, or (shape, type)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, *((one[1], one[0]) if isinstance(one, tuple) else (1, one)))
            for name, one in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def runs(model: ir.Model, batch: int = 2) -> dict[str, tuple[int, ...]]:
    """The shapes of the first made-up feed, which runs; every inner value is of the shape that was foretold."""
    dataset = synthetic(feeds.sized(model), seed=0, samples=4, batch=batch)
    fed = next(iter(dataset.batches())).feeds
    shapes = {name: tuple(array.shape) for name, array in fed.items()}
    foretold, _ = settle.settle(model, shapes)
    proto = io.to_proto(model)
    inner = [name for node in proto.graph.node for name in node.output if name]
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, value in zip(inner, session.run(inner, fed), strict=True):
        assert foretold.get(name) == value.shape
    return shapes


def test_sizes_come_from_the_weights_that_read_them() -> None:
    nodes = [
        N("MatMul", ["a", "w"], ["m"]),
        N("Gemm", ["b", "v"], ["g"], transB=1),
        N("Conv", ["c", "k"], ["o"], group=2),
    ]
    inputs = {"a": ["batch", "t", "f"], "b": ["batch", "columns"], "c": ["batch", "channels", "length"]}
    shapes = runs(build(nodes, inputs, ["m", "g", "o"], w=weight(17, 3), v=weight(5, 13), k=weight(4, 3, 3)))
    assert (shapes["a"][2], shapes["b"], shapes["c"][1]) == (17, (2, 13), 6)


def test_equal_names_are_one_size_and_so_are_names_that_meet() -> None:
    nodes = [N("Gather", ["table", "ids"], ["e"]), N("Gather", ["kinds", "types"], ["k"]), N("Add", ["e", "k"], ["s"])]
    nodes += [N("Mul", ["s", "positions"], ["y"])]
    inputs = {"ids": (["batch", "n1"], 7), "types": (["batch", "n2"], 7)}
    made = build(nodes, inputs, ["y"], table=weight(4, 6), kinds=weight(2, 6), positions=weight(11, 6))
    shapes = runs(made)
    assert shapes == {"ids": (2, 11), "types": (2, 11)}
    ids, types = (
        next(iter(synthetic(feeds.sized(made), seed=0, samples=9, batch=9).batches())).feeds[k] for k in inputs
    )
    assert ids.max() < 4
    assert types.max() < 2


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_time_first_with_states(op: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    states = ["h", "c"] if op == "LSTM" else ["h"]
    nodes = [N(op, ["x", "w", "r", "", "", *states], ["y", "last"], hidden_size=5)]
    inputs = {"x": [None, None, None], **{state: [1, None, None] for state in states}}
    made = build(nodes, inputs, ["y", "last"], w=weight(1, gates * 5, 9), r=weight(1, gates * 5, 5))
    shapes = runs(made, batch=3)
    assert shapes["x"][1:] == (3, 9)
    assert all(shapes[state] == (1, 3, 5) for state in states)
    assert set(layout(io.inputs(made)).axes.values()) == {1}


@pytest.mark.parametrize("sizes", [("seq", "total", "past"), ("s70", "s53", "s60")])
def test_caches_add_up(sizes: tuple[str, str, str]) -> None:
    """torch's exporter numbers the axes: then the inputs' names tell which is which."""
    seq, total, past = sizes
    nodes = [
        N("Gather", ["table", "input_ids"], ["e"]),
        N("Unsqueeze", ["e", "one"], ["q"]),
        N("Concat", ["past_key", "q"], ["keys"], axis=2),
        N("Transpose", ["keys"], ["t"], perm=[0, 1, 3, 2]),
        N("MatMul", ["q", "t"], ["scores"]),
        N("Cast", ["attention_mask"], ["m"], to=1),
        N("Unsqueeze", ["m", "two"], ["mm"]),
        N("Add", ["scores", "mm"], ["y"]),
    ]
    inputs = {"input_ids": (["batch", seq], 7), "attention_mask": (["batch", total], 7)}
    inputs["past_key"] = ["batch", 1, past, 6]  # type: ignore[assignment]
    made = build(nodes, inputs, ["y"], table=weight(30, 6), one=np.array([1]), two=np.array([1, 2]))
    shapes = runs(made)
    assert shapes["attention_mask"][1] == shapes["input_ids"][1] + shapes["past_key"][2]


def test_indices_stay_below_what_they_point_into_and_a_graph_is_one_sample() -> None:
    nodes = [
        N("Gather", ["edges", "zero"], ["from"], axis=0),
        N("Gather", ["x", "from"], ["sent"], axis=0),
        N("MatMul", ["sent", "w"], ["y"]),
    ]
    inputs = {"x": ["nodes", "f"], "edges": ([2, "count"], 7)}
    made = build(nodes, inputs, ["y"], zero=np.array(0), w=weight(7, 3))
    assert runs(made)["x"][1] == 7
    alike = build([N("Gather", ["x", "source"], ["sent"], axis=0)], {"x": ["n", 3], "source": (["e"], 7)}, ["sent"])
    dataset = synthetic(feeds.sized(alike), seed=0, samples=4, batch=4)
    fed = next(iter(dataset.batches())).feeds
    assert fed["source"].max() < len(fed["x"])
    assert dataset.fixed_batch == 1


def sound() -> ir.Model:
    """One piece of sound, no batch axis: scaled, then given one for a convolution over 20 frames; parts of the rest."""
    nodes = [
        N("Mul", ["x", "scale"], ["scaled"]),
        N("Unsqueeze", ["scaled", "axis"], ["one"]),
        N("Transpose", ["one"], ["nchw"], perm=[0, 3, 1, 2]),
        N("Conv", ["nchw", "w"], ["c"]),
        N("Slice", ["c", "start", "end", "two"], ["y"]),
    ]
    parts = {"start": np.array([0]), "end": np.array([-2]), "two": np.array([2]), "axis": np.array([0])}
    return build(nodes, {"x": ["time", "bands", "f"]}, ["y"], scale=weight(6, 3), w=weight(4, 3, 20, 3), **parts)


def test_what_windows_slide_over_is_large_enough_and_a_piece_is_one_sample() -> None:
    assert runs(sound()) == {"x": (32, 6, 3)}
    assert layout(io.inputs(sound())).alone


def test_an_input_smaller_than_its_window_leaves_shapes_open() -> None:
    """onnx's own inference ends the process at the Slice."""
    found = shapes.infer(sound(), {"x": (3, 6, 3)})
    assert found["nchw"].fixed == (1, 3, 3, 6)
    assert found["c"].fixed is found["y"].fixed is None
    found = shapes.infer(sound(), {"x": (40, 6, 3)})
    assert found["y"].fixed == (1, 4, 19, 4)


def test_indices_stay_below_also_behind_what_takes_them_apart_and_joins_them() -> None:
    """As torch's exporter writes `x[edges[0]]`, and what keeps negative indices from the start of the table."""
    nodes = [
        N("Gather", ["edges", "zero"], ["one"], axis=0),
        N("Split", ["edges"], ["two", "rest"], axis=0, num_outputs=2),
        N("Squeeze", ["two", "axis"], ["flat"]),
        N("Concat", ["one", "flat"], ["both"], axis=0),
        N("Add", ["both", "rows"], ["above"]),
        N("Less", ["both", "zero"], ["negative"]),
        N("Where", ["negative", "above", "both"], ["from"]),
        N("Unsqueeze", ["from", "last"], ["at"]),
        N("GatherND", ["x", "at"], ["y"]),
    ]
    parts = {"zero": np.array(0), "axis": np.array([0]), "last": np.array([-1]), "rows": np.array(5)}
    made = build(nodes, {"x": [5, 3], "edges": ([2, 40], 7)}, ["y"], opset=18, **parts)
    assert [info.rows for info in feeds.sized(made)] == [None, 5]
    assert runs(made, batch=1)["edges"] == (2, 40)


def test_time_first_without_samples_is_one_feed() -> None:
    nodes = [N("Unsqueeze", ["x", "one"], ["b"]), N("GRU", ["b", "w", "r", "", "", "s"], ["y"], hidden_size=4)]
    nodes.insert(0, N("Reshape", ["state", "shape"], ["s"]))
    shape = np.array([1, 1, 4])
    parts = {"one": np.array([1]), "w": weight(1, 12, 6), "r": weight(1, 12, 4), "shape": shape}
    made = build(nodes, {"x": ["time", "f"], "state": [4]}, ["y"], **parts)
    shapes = runs(made)
    assert shapes["x"][0] > 1
    assert shapes["x"][1] == 6
    assert layout(io.inputs(made)).alone


def attention() -> ir.Model:
    """All places of a picture look at all others, as in diffusion models; sizes are computed by the graph."""
    nodes = [
        N("Shape", ["x"], ["size"]),
        N("Gather", ["size", "ends"], ["kept"]),
        N("Concat", ["kept", "rest"], ["flat"], axis=0),
        N("Reshape", ["x", "flat"], ["r"]),
        N("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        N("MatMul", ["t", "r"], ["scores"]),
        N("MatMul", ["r", "scores"], ["mixed"]),
        N("Reshape", ["mixed", "size"], ["y"]),
    ]
    parts = {"ends": np.array([0, 1]), "rest": np.array([-1])}
    return build(nodes, {"x": ["batch", 4, "h", "w"]}, ["y"], **parts)


def test_guesses_have_a_memory_limit() -> None:
    made = attention()
    shapes, _ = settle.settle(made, feeds.default_feeds(made))
    assert 4 * math.prod(shapes["scores"]) <= feeds.MOST_BYTES
    assert shapes["x"][2] == shapes["x"][3] >= 16
    assert runs(made) == {"x": (2, *shapes["x"][1:])}


def test_scores_inside_attention_count_too() -> None:
    """4 heads, 224 x 224 places: 40 GB that no value of the graph shows."""
    nodes = [
        N("Shape", ["x"], ["size"]),
        N("Reshape", ["x", "flat"], ["r"]),
        N("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        N("Attention", ["t", "t", "t"], ["mixed"], q_num_heads=4, kv_num_heads=4),
        N("Transpose", ["mixed"], ["back"], perm=[0, 2, 1]),
        N("Reshape", ["back", "size"], ["y"]),
    ]
    made = build(nodes, {"x": ["batch", 8, "h", "w"]}, ["y"], opset=23, flat=np.array([0, 8, -1]))
    height, width = feeds.default_feeds(made)["x"][2:]
    assert 4 * 4 * (height * width) ** 2 <= feeds.MOST_BYTES
    assert runs(made) == {"x": (2, 8, height, width)}


def test_shapes_that_are_given_decide() -> None:
    made = attention()
    assert feeds.default_feeds(made, 1, None, {"x": (3, 4, 6, 7)}) == {"x": (3, 4, 6, 7)}
    nodes = [N("Add", ["a", "b"], ["y"])]
    two = build(nodes, {"a": ["batch", "n", 3], "b": ["batch", "n", 3]}, ["y"])
    assert feeds.default_feeds(two, 2, None, {"a": (1, 9, 3)}) == {"a": (1, 9, 3), "b": (2, 9, 3)}


def test_nothing_is_run_to_find_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what follows from sizes is computed, never a value that depends on an input."""
    from lepton_cli import runtime

    fed = []
    run = runtime.Session.run
    monkeypatch.setattr(runtime.Session, "run", lambda self, given, *rest: fed.append(given) or run(self, given, *rest))
    shapes, values = settle.settle(attention(), {"x": (1, 4, 5, 6)})
    assert values["flat"].tolist() == [1, 4, -1]
    assert shapes["scores"] == (1, 30, 30)
    assert not any(fed)
