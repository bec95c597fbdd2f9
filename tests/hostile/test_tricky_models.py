"""Legal but unusual models: every step transforms them rightly or leaves them, and the pipeline's checks agree."""

# ruff: noqa: E501 - graphs in text read best as one line each

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lepton_cli import runtime
from lepton_cli.cache import Cache
from lepton_cli.commands import runner
from lepton_cli.data.open import synthetic
from lepton_cli.errors import LeptonError, StepError
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.step import Context
from lepton_cli.steps import STEPS
from tests.hostile.models import FLOAT, mlp, model, parse, tensor, weights

STEP_OPTIONS: list[dict[str, object]] = [
    {"step": "simplify"},
    {"step": "prune.channels", "target": {"params": "70 %"}, "if_possible": True},
    {"step": "prune.weights", "sparsity": "50 %", "if_possible": True},
    {"step": "quantize.dynamic", "if_possible": True},
    {"step": "quantize.static", "if_possible": True},
    {"step": "quantize.weights", "if_possible": True},
    {"step": "convert.fp16", "if_possible": True},
]


def _opset(version: int) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        proto = mlp()
        proto.opset_import[0].version = version
        return proto

    return make


def _shared_weight() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "a"), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "w"], ["y"], "b")]  # fmt: skip
    return model(nodes, {"x": (FLOAT, ["n", 16])}, {"y": (FLOAT, ["n", 16])}, [tensor("w", weights(16, 16))])


def _weights_as_inputs() -> onnx.ModelProto:
    proto = mlp()
    proto.ir_version = 3
    for held in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(held.name, held.data_type, list(held.dims)))
    return proto


def _constant_weights() -> onnx.ModelProto:
    proto = mlp()
    constants = [helper.make_node("Constant", [], [held.name], value=held) for held in proto.graph.initializer]
    nodes = [*constants, *proto.graph.node]
    del proto.graph.initializer[:]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _identities() -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", ["x"], ["i0"]), helper.make_node("Identity", ["i0"], ["i1"]),
             helper.make_node("Identity", ["w"], ["v"]), helper.make_node("MatMul", ["i1", "v"], ["m"]),
             helper.make_node("Identity", ["m"], ["y"])]  # fmt: skip
    return model(nodes, {"x": (FLOAT, ["n", 16])}, {"y": (FLOAT, ["n", 8])}, [tensor("w", weights(16, 8))])


def _names(*names: str) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        proto = mlp()
        for node, name in zip(proto.graph.node, names, strict=True):
            node.name = name
        return proto

    return make


def _unicode() -> onnx.ModelProto:
    text = mlp().SerializeToString()
    proto = onnx.ModelProto.FromString(text)
    new = {"x": "вход/☃", "y": "результат", "h": "隐藏", "w1": "poids à l'été"}
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = new.get(value.name, value.name)
    return proto


def _if(captured: bool) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        out = [helper.make_tensor_value_info("o", FLOAT, None)]
        own = [] if captured else [tensor("v", weights(16, 8))]
        branches = {
            name: helper.make_graph([helper.make_node(op, ["h", "v"], ["o"], f"{name}_mm"), ], name, [], out, own)
            for name, op in (("then_branch", "MatMul"), ("else_branch", "MatMul"))
        }  # fmt: skip
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "first"), helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
                 helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
                 helper.make_node("If", ["c"], ["y"], "if", **branches)]  # fmt: skip
        held = [tensor("w", weights(16, 16)), *([tensor("v", weights(16, 8))] if captured else [])]
        return model(nodes, {"x": (FLOAT, ["n", 16])}, {"y": (FLOAT, ["n", 8])}, held)

    return make


def _function() -> onnx.ModelProto:
    body = [helper.make_node("MatMul", ["a", "b"], ["m"]), helper.make_node("Relu", ["m"], ["o"])]
    nodes = [
        helper.make_node("Layer", ["x", "w"], ["h"], domain="my"),
        helper.make_node("Layer", ["h", "w"], ["y"], domain="my"),
    ]
    proto = model(
        nodes, {"x": (FLOAT, ["n", 16])}, {"y": (FLOAT, ["n", 16])}, [tensor("w", weights(16, 16))], domains=("my",)
    )
    proto.functions.append(helper.make_function("my", "Layer", ["a", "b"], ["o"], body, [helper.make_opsetid("", 17)]))
    return proto


def _double() -> onnx.ModelProto:
    kind = TensorProto.DOUBLE
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "m")]
    return model(
        nodes, {"x": (kind, ["n", 16])}, {"y": (kind, ["n", 8])}, [tensor("w", weights(16, 8, dtype="float64"))]
    )


def _half() -> onnx.ModelProto:
    kind = TensorProto.FLOAT16
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "m")]
    return model(
        nodes, {"x": (kind, ["n", 16])}, {"y": (kind, ["n", 8])}, [tensor("w", weights(16, 8, dtype="float16"))]
    )


def _bfloat() -> onnx.ModelProto:
    held = helper.make_tensor("w", TensorProto.BFLOAT16, [16, 8], weights(16, 8).ravel().tolist())
    nodes = [helper.make_node("Cast", ["w"], ["v"], to=FLOAT), helper.make_node("MatMul", ["x", "v"], ["y"], "m")]
    return model(nodes, {"x": (FLOAT, ["n", 16])}, {"y": (FLOAT, ["n", 8])}, [held])


def _quantized() -> onnx.ModelProto:
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
             helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]), helper.make_node("MatMul", ["d", "v"], ["y"], "m")]  # fmt: skip
    held = [tensor("s", np.float32(0.05)), tensor("z", np.int8(0)), tensor("w", (weights(16, 8) * 90).astype(np.int8))]
    return model(nodes, {"x": (FLOAT, ["n", 16])}, {"y": (FLOAT, ["n", 8])}, held)


def _int4() -> onnx.ModelProto:
    held = helper.make_tensor("w", TensorProto.INT4, [16, 8], [i % 15 - 7 for i in range(128)])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"], "m"),
    ]
    return model(
        nodes, {"x": (FLOAT, ["n", 16])}, {"y": (FLOAT, ["n", 8])}, [held, tensor("s", np.float32(0.1))], 21, 10
    )


def _strings() -> onnx.ModelProto:
    nodes = [helper.make_node("StringNormalizer", ["x"], ["y"])]
    return model(nodes, {"x": (TensorProto.STRING, ["n"])}, {"y": (TensorProto.STRING, ["n"])})


def _conv(batch: int | str, **edit: object) -> onnx.ModelProto:
    """Conv, BatchNorm, Relu, Conv, mean over the image."""
    held = {"w1": weights(8, 3, 3, 3), "scale": np.ones(8, np.float32), "shift": weights(8), "mean": weights(8, seed=2),
            "var": np.ones(8, np.float32), "w2": weights(4, 8, 3, 3, seed=3), **edit}  # fmt: skip
    nodes = [helper.make_node("Conv", ["x", "w1"], ["c"], "conv1", pads=[1, 1, 1, 1]),
             helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], "norm"),
             helper.make_node("Relu", ["n"], ["r"], "relu"), helper.make_node("Conv", ["r", "w2"], ["d"], "conv2"),
             helper.make_node("GlobalAveragePool", ["d"], ["y"], "pool")]  # fmt: skip
    held_tensors = [tensor(name, np.asarray(array)) for name, array in held.items()]
    return model(nodes, {"x": (FLOAT, [batch, 3, 8, 8])}, {"y": (FLOAT, [batch, 4, 1, 1])}, held_tensors)


def _with(name: str, value: float, where: object) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        array = {"w1": weights(8, 3, 3, 3), "var": np.ones(8, np.float32), "scale": np.ones(8, np.float32)}[name]
        array[where] = value
        return _conv("n", **{name: array})

    return make


def _text(graph: str, **header: object) -> Callable[[], onnx.ModelProto]:
    return lambda: parse(graph, **header)  # type: ignore[arg-type]


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"opset {version}": _opset(version) for version in (7, 9, 11, 13, 15, 18, 20, 21, 22)},
    "shared weight": _shared_weight,
    "initializers as inputs": _weights_as_inputs,
    "constants as weights": _constant_weights,
    "identity chains": _identities,
    "empty names": _names("", "", ""),
    "duplicate names": _names("a", "a", "a"),
    "names that look generated": _names("Gemm_0", "", "Gemm_0"),
    "names with glob characters": _names("a[0]/*", "?", "!x"),
    "unicode names": _unicode,
    "subgraph holds weights": _if(captured=False),
    "subgraph captures weights": _if(captured=True),
    "function": _function,
    "double": _double,
    "float16": _half,
    "bfloat16": _bfloat,
    "quantized": _quantized,
    "int4": _int4,
    "strings": _strings,
    "fixed batch": lambda: _conv(4),
    "dynamic batch": lambda: _conv("n"),
    "NaN weight": _with("w1", np.nan, (0, 0, 0, 0)),
    "infinite weight": _with("w1", np.inf, (0, 0, 0, 0)),
    "huge weight": _with("w1", 1e30, (0, 0, 0, 0)),
    "denormal weights": _with("w1", 1e-42, slice(None)),
    "zero weights": _with("w1", 0.0, slice(None)),
    "dead channel": _with("scale", 0.0, 0),
    "zero variance": _with("var", 0.0, slice(0, 2)),
    "negative variance": _with("var", -0.5, slice(0, 1)),
    "scalars": _text("g (float x) => (float y) { t = Exp(x) y = Neg(t) }"),
    "zero-size tensors": _text(
        "g (float[n, 4] x) => (float[n, 4] y) <float[0, 4] e = {}> { y = Concat<axis = 0>(x, e) }"
    ),
    "input is output": _text("g (float[n, 4] x) => (float[n, 4] x) {}"),
    "weight is output": _text("g (float[n, 2] x) => (float[n, 2] y, float[2] w) <float[2] w = {1, 2}> { y = Add(x, w) }"),
    "constant is output": _text(
        "g (float[n, 2] x) => (float[n, 2] y, float[2] w) { w = Constant<value = float[2] {1, 2}>() y = Add(x, w) }"
    ),
    "no inputs": _text("g () => (float[2] y) { w = Constant<value = float[2] {1, 2}>() y = Neg(w) }"),
    "unused input": _text("g (float[n, 2] x, float[n, 2] u) => (float[n, 2] y) { y = Neg(x) }"),
    "optional inputs": _text(
        "g (float[1, 3, 8, 8] x) => (float[1, 3, 16, 16] y) <float[4] s = {1, 1, 2, 2}> { y = Resize(x, , s) }"
    ),
    "sequences": _text(
        "g (float[2, 4] x) => (float[a, b] y) { s = SequenceConstruct(x, x) y = ConcatFromSequence<axis = 0>(s) }"
    ),
    "sequence output": _text("g (float[4, 4] x) => (seq(float[2, 4]) y) { y = SplitToSequence<axis = 0>(x) }"),
    "unsorted nodes": _text("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(z) z = Neg(x) }"),
    "random": _text("g (float[2, 4] x) => (float[2, 4] y) { r = RandomNormalLike<seed = 1.0>(x) z = Mul(x, r) y = Sub(z, z) }"),
    "wrong stored shapes": _text("g (float[n, 4] x) => (float[n, 4] y) <float[7, 7] h> { h = Relu(x) y = Neg(h) }"),
    "huge constant of shape": _text(
        "g (float[1] x) => (float[n] y) { s = Constant<value = int64[1] {20000000}>()"
        " b = ConstantOfShape(s) m = ReduceMax<keepdims = 1>(b) y = Add(x, m) }"
    ),
    "not named dimension": _text("g (float[?, 4] x) => (float[?, 4] y) { y = Relu(x) }"),
}  # fmt: skip


def _context(loaded: io.LoadedModel, folder: Path) -> Context:
    check = synthetic(io.inputs(loaded.model), seed=0, samples=4, batch=2)
    return Context(
        calibration=check, evaluation=None, training=None, base=Path(), check=check, original=loaded.model, score=None, provider="cpu", batch=1, threads=1,
        seed=0, progress=Silent(), workdir=folder, cache=Cache(None),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy on NaN and infinity
@pytest.mark.parametrize("name", MODELS)
def test_every_step_transforms_or_leaves(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODELS[name]().SerializeToString())
    content = path.read_bytes()
    loaded = io.load(path)
    before = io.to_bytes(loaded.model)
    context = _context(loaded, tmp_path)
    reference = runner.reference(loaded.model, context)
    for options in STEP_OPTIONS:
        params = STEPS[str(options["step"])].options.model_validate(options)
        try:
            made, record = runner.run_step(reference, params, 0, context, None)
        except LeptonError as error:
            refused = f"{options['step']}: [{error.code}] {error.cause}"
            if error.code == "step.unforeseen" or (isinstance(error, StepError) and options["step"] == "simplify"):
                pytest.fail(refused)
            continue
        left_out = [warning for warning in record.warnings if warning.startswith("left out")]
        defects = ("failed on this model", "cannot run the model", "made an invalid model")
        assert not any(defect in warning for warning in left_out for defect in defects), left_out
        assert not left_out or options["step"] not in ("simplify", "fuse"), left_out
        assert record.changed or len(io.to_bytes(made.model)) <= len(before) + 1024
        _save_and_run(made.model, context, tmp_path)
        assert io.to_bytes(loaded.model) == before, f"{options['step']} changed its input"
    assert path.read_bytes() == content


def _save_and_run(result: onnx.ModelProto, context: Context, folder: Path) -> None:
    """What is written loads again, and runs with the same feeds."""
    (file,) = io.save(result, folder / "result.onnx")  # type: ignore[arg-type]
    again = io.load(file)
    assert io.to_bytes(again.model) == io.to_bytes(io.load(file).model)
    feeds = next(iter(context.check.batches(limit=2))).feeds
    runtime.Session(file, threads=1).run(feeds)
