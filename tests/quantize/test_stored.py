"""Weights in 8 bits for any operator that sums: the formula, plain onnxruntime, and files of the promised size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lepton_cli.data.memory import Arrays
from lepton_cli.graph.edit import Editor
from lepton_cli.graph.facts import quantized_nodes, reads_quantized
from lepton_cli.graph.held import holders
from lepton_cli.measure import size
from lepton_cli.model import io
from lepton_cli.quantize import stored
from lepton_cli.quantize.spec import ConvertFp16, QuantizeWeights
from lepton_cli.quantize.store import WeightStore
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context

Case = tuple[str, list[int], dict[int, tuple[int, ...]], dict[int, tuple[int, ...]], dict[str, Any]]

#: Operator, shape of what it is fed, weights by input with their shape, the axes that share a scale, attributes.
CASES: dict[str, Case] = {
    "Conv": ("Conv", [2, 8, 9, 9], {1: (16, 8, 3, 3)}, {1: (1, 2, 3)}, {}),
    "depthwise": ("Conv", [2, 64, 9, 9], {1: (64, 1, 3, 3)}, {1: (1, 2, 3)}, {"group": 64}),
    "ConvTranspose": ("ConvTranspose", [2, 8, 5, 5], {1: (8, 12, 3, 3)}, {1: (0, 2, 3)}, {}),
    "in groups": ("ConvTranspose", [2, 64, 5, 5], {1: (64, 1, 3, 3)}, {1: (1, 2, 3)}, {"group": 64}),
    "LSTM": (
        "LSTM", [5, 2, 24], {1: (2, 64, 24), 2: (2, 64, 16)}, {1: (2,), 2: (2,)},
        {"hidden_size": 16, "direction": "bidirectional"},
    ),
    "GRU": ("GRU", [5, 2, 24], {1: (1, 48, 24), 2: (1, 48, 16)}, {1: (2,), 2: (2,)}, {"hidden_size": 16}),
    "RNN": ("RNN", [5, 2, 24], {1: (1, 32, 24), 2: (1, 32, 32)}, {1: (2,), 2: (2,)}, {"hidden_size": 32}),
    "Einsum": ("Einsum", [2, 5, 24], {1: (24, 4, 8)}, {1: (0,)}, {"equation": "bsd,dhk->bshk"}),
    "batched": ("MatMul", [3, 5, 24], {1: (3, 24, 16)}, {1: (1,)}, {}),
    "weight first": ("MatMul", [24, 7], {0: (40, 24)}, {0: (1,)}, {}),
    "scaled": ("Gemm", [5, 24], {1: (40, 24)}, {1: (1,)}, {"transB": 1, "alpha": 0.5}),
}  # fmt: skip


def built(case: str) -> tuple[ir.Model, Arrays]:
    op, shape, weights, _, attributes = CASES[case]
    graph = Graph()
    x = graph.take("x", ["t", "n", shape[2]] if op in ("LSTM", "GRU", "RNN") else list(shape))
    held = {index: graph.constant(graph.random.normal(size=one).astype(np.float32)) for index, one in weights.items()}
    names = [held.get(index, x) for index in range(max(held) + 1)] if 0 not in held else [held[0], x]
    rows = graph.random.normal(size=shape).astype(np.float32)
    return graph.model(graph.op(op, *names, **attributes)), Arrays({"x": rows})


def stored_by(model: ir.Model, data: Arrays, folder: Path, **options: object) -> ir.Model:
    chosen = QuantizeWeights.model_validate({"step": "quantize.weights", "bits": 8, **options})
    return STEPS["quantize.weights"].apply(model, chosen, context(data, folder, batch=len(data.feeds["x"]))).model


def run(model: ir.Model, feeds: dict[str, np.ndarray], optimised: Path | None = None) -> np.ndarray:
    """Plain onnxruntime with its default options."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = onnxruntime.InferenceSession(io.to_bytes(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def rounded(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """To 127 steps of the greatest value along the axes, from the definition."""
    scale = np.abs(array.astype(float)).max(axis=axes, keepdims=True) / 127
    return (np.rint(array / scale) * scale).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_that_of_the_rounded_weights(case: str, tmp_path: Path) -> None:
    _, _, weights, axes, _ = CASES[case]
    model, data = built(case)
    (node,) = model.graph
    assert stored.places(node) == axes
    made = stored_by(model, data, tmp_path)
    for index in weights:
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        value.const_value = ir.tensor(rounded(value.const_value.numpy(), axes[index]), name=value.name)
    np.testing.assert_allclose(run(made, data.feeds), run(model, data.feeds), rtol=1e-4, atol=1e-4)
    assert io.weight_bytes(made) < 0.42 * io.weight_bytes(model)


def test_onnxruntime_runs_the_float_graph(tmp_path: Path) -> None:
    """Nothing is scaled while running, and the kernels are those of the float model."""
    model, data = built("Conv")
    kinds = []
    for number, one in enumerate((model, stored_by(model, data, tmp_path))):
        path = tmp_path / f"{number}.onnx"
        run(one, data.feeds, path)
        kinds.append([node.op_type for node in ir.load(path).graph if node.op_type != "ReorderOutput"])
    assert kinds[0] == kinds[1]
    assert len(kinds[1]) == 1


def test_what_is_stored_counts_as_the_layer_it_is(tmp_path: Path) -> None:
    model, data = built("LSTM")
    made = stored_by(model, data, tmp_path)
    before, after = (size.measure(None, one) for one in (model, made))
    assert (before.parameters, after.parameters) == (5120, 5120)
    assert [(layer.op, layer.dtype) for layer in after.layers] == [("LSTM", "int8")]
    assert len(quantized_nodes(made)) == 2, "its two multiplications"
    assert [reads_quantized(node) for node in made.graph if node.op_type == "LSTM"] == [True]
    assert holders(made) == []
    cleaned = STEPS["simplify"].apply(made, STEPS["simplify"].options.model_validate({"step": "simplify"}),
                                      context(data, tmp_path))  # fmt: skip
    assert io.weight_bytes(cleaned.model) == io.weight_bytes(made), "and stays in 8 bits"


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    graph = Graph()
    x, kernel = graph.take("x", ["n", 8, 9, 9]), graph.random.normal(size=(8, 8, 3, 3)).astype(np.float32)
    first = graph.op("Conv", x, graph.constant(kernel), pads=[1, 1, 1, 1])
    model = graph.model(graph.op("Conv", first, graph.constant(kernel.copy()), pads=[1, 1, 1, 1]))
    made = stored_by(model, Arrays({"x": np.ones((2, 8, 9, 9), np.float32)}), tmp_path)
    assert io.weight_bytes(made) == kernel.size + 8 * 4


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_other_floats_keep_their_type(kind: str) -> None:
    """Scales are float32 all the same: those of small weights would vanish in float16."""
    array = (np.random.default_rng(0).normal(size=(64, 32)) * 1e-4).astype(kind)
    graph = Graph()
    x = graph.op(
        "MatMul", graph.take("x", ["n", 64], helper.np_dtype_to_tensor_dtype(array.dtype)), graph.constant(array)
    )
    made = graph.model(graph.op("Cast", x, to=TensorProto.FLOAT))
    node = next(node for node in made.graph if node.op_type == "MatMul")
    stored.replace(Editor(made), node, WeightStore(None), {})
    rows = np.eye(64, dtype=kind)
    np.testing.assert_allclose(run(made, {"x": rows}), rounded(array, (0,)), rtol=1e-3, atol=1e-7)


def told(model: ir.Model, bits: int) -> dict[str, str]:
    plan = context(Arrays({"x": np.ones((2, 8, 9, 9), np.float32)}), Path(), dry=True)
    options = QuantizeWeights(bits=8 if bits == 8 else 4)
    return {one.node: one.reason for one in STEPS["quantize.weights"].apply(model, options, plan).decisions}


def test_what_is_not_stored_is_said() -> None:
    graph = Graph()
    kernel = graph.random.normal(size=(8, 8, 3, 3)).astype(np.float32)
    x = graph.op("Conv", graph.take("x", ["n", 8, 9, 9]), graph.constant(kernel))
    x = graph.op("Conv", x, graph.constant(kernel[:4]))
    kernel[0, 0, 0, 0] = np.inf
    x = graph.op("Conv", graph.op("Concat", x, x, axis=1), graph.constant(kernel))
    model = graph.model(graph.op("Add", x, graph.constant(np.ones((64, 8, 3, 3), np.float32))))
    assert told(model, 8) == {
        "Conv_0": "stored in 8 bits, one scale per channel, computed in float",
        "Conv_1": "only 288 values",
        "Conv_3": "its weight holds infinities or NaN, or too few values for each scale",
        "Add_4": "Add stays float: 8 bits are for weights that are summed",
    }
    assert told(model, 4)["Conv_0"] == "4 bits are for MatMul, Gemm, Gather; `bits: 8` takes it"


def test_float16_leaves_stored_weights_alone(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.op(
        "Conv",
        graph.take("x", ["n", 8, 9, 9]),
        graph.constant(graph.random.normal(size=(64, 8, 3, 3)).astype(np.float32) * 1e-4),
    )
    x = graph.op("Reshape", x, graph.constant(np.array([-1, 3136])))
    model = graph.model(graph.op("MatMul", x, graph.constant(graph.random.normal(size=(3136, 4)).astype(np.float32))))
    data = Arrays({"x": graph.random.normal(size=(2, 8, 9, 9)).astype(np.float32)})
    half = stored_by(model, data, tmp_path, include=["Conv*"])
    step = STEPS["convert.fp16"]
    outcome = step.apply(half, ConvertFp16(), context(data, tmp_path))
    held = {
        name: value.const_value.dtype for name, value in outcome.model.graph.initializers.items() if value.const_value
    }
    assert {str(kind) for name, kind in held.items() if name.endswith(".scales")} == {"FLOAT"}
    wanted, found = (run(one, data.feeds) for one in (model, outcome.model))
    assert np.square(found - wanted).sum() < 1e-3 * np.square(wanted).sum()
    full = stored_by(model, data, tmp_path)
    assert step.apply(full, ConvertFp16(), context(data, tmp_path)).changed == 0, "casts would take more than is won"
