"""One network in all the ways in which files hold it: every step makes the same of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import lepton_cli as lepton
from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Options
from lepton_cli.steps import STEPS
from lepton_cli.train.spec import TrainingOptions
from tests.hostile.models import model, tensor
from tests.quantize.builders import Graph

Disguise = Callable[[onnx.ModelProto], onnx.ModelProto]

DATA = Arrays({"x": np.random.default_rng(1).normal(0, 1, (32, 3, 8, 8)).astype(np.float32)})
CHOSEN: dict[str, Options] = {
    "simplify": lepton.Simplify(),
    "fuse": lepton.Fuse(model_type="bert", if_possible=True),
    "batch.free": lepton.BatchFree(),
    "head.add": lepton.HeadAdd(at="x", name="kind", classes=3),
    "head.replace": lepton.HeadReplace(classes=3),
    "prune.channels": lepton.PruneChannels(target={"params": "70 %"}),
    "prune.weights": lepton.PruneWeights(sparsity="50 %"),
    "quantize.static": lepton.QuantizeStatic(speed_guard=False),
    "quantize.dynamic": lepton.QuantizeDynamic(),
    "quantize.weights": lepton.QuantizeWeights(bits=8),
    "convert.fp16": lepton.ConvertFp16(),
}


def network() -> onnx.ModelProto:
    """A convolution, a Gemm and a MatMul; weights that float16 and bfloat16 hold exactly."""
    graph = Graph()
    x = graph.conv(graph.take("x", ["n", 3, 8, 8]), 3, 16)
    x = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    x = graph.op("Relu", graph.linear(x, 16, 256))
    proto = ir.to_proto(graph.model(graph.linear(x, 256, 64, gemm=False)))
    for held in proto.graph.initializer:
        array = numpy_helper.to_array(held).astype(np.float16).astype(ml_dtypes.bfloat16).astype(np.float32)
        held.CopyFrom(numpy_helper.from_array(array, held.name))
    return proto


def _typed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Values one by one in `float_data`."""
    for held in proto.graph.initializer:
        array = numpy_helper.to_array(held)
        held.CopyFrom(helper.make_tensor(held.name, TensorProto.FLOAT, array.shape, array.ravel().tolist()))
    return proto


def _inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Initializers that are inputs too, in a version that does not ask for it."""
    for held in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(held.name, held.data_type, held.dims))
    return proto


def _old(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same where the version asks for it."""
    proto.ir_version = 3
    return _inputs(proto)


def _bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """No word on what nodes return."""
    del proto.graph.value_info[:]
    return proto


def _behind(op: str) -> Disguise:
    """Weights that a node brings into the shape and type in which they are used."""

    def disguise(proto: onnx.ModelProto) -> onnx.ModelProto:
        nodes = []
        for held in proto.graph.initializer:
            array, name, attributes = numpy_helper.to_array(held), held.name, {}
            if op == "Transpose":
                array, attributes = array.T, {"perm": list(reversed(range(array.ndim)))}
            if op == "Cast":
                array, attributes = array.astype(np.float16), {"to": TensorProto.FLOAT}
            if op == "Constant":
                nodes.append(helper.make_node(op, [], [name], f"{name}.made", value=numpy_helper.from_array(array)))
                continue
            held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), f"{name}.stored"))
            nodes.append(helper.make_node(op, [held.name], [name], f"{name}.made", **attributes))
        if op == "Constant":
            del proto.graph.initializer[:]
        nodes += proto.graph.node
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        return proto

    return disguise


def _function(opset: int) -> Disguise:
    """All nodes in a function, in this version of the operators."""

    def disguise(proto: onnx.ModelProto) -> onnx.ModelProto:
        names = ["x", *(held.name for held in proto.graph.initializer)]
        outputs = [value.name for value in proto.graph.output]
        imports = [helper.make_opsetid("", opset)]
        proto.functions.append(helper.make_function("own", "Net", names, outputs, list(proto.graph.node), imports))
        proto.opset_import.append(helper.make_opsetid("own", 1))
        del proto.graph.node[:]
        proto.graph.node.append(helper.make_node("Net", names, outputs, "net", domain="own"))
        return proto

    return disguise


def _classifier(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Its second output are dictionaries, as scikit-learn's classifiers give them: a type that onnx-ir cannot hold."""
    classes = {"classlabels_int64s": list(range(64))}
    proto.graph.node.append(
        helper.make_node("ZipMap", [proto.graph.output[0].name], ["maps"], "zip", domain="ai.onnx.ml", **classes)
    )
    of_floats = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    proto.graph.output.append(helper.make_value_info("maps", helper.make_sequence_type_proto(of_floats)))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return proto


def _bfloat(proto: onnx.ModelProto) -> onnx.ModelProto:
    for held in proto.graph.initializer:
        array = numpy_helper.to_array(held).astype(ml_dtypes.bfloat16)
        held.CopyFrom(helper.make_tensor(held.name, TensorProto.BFLOAT16, array.shape, array.tobytes(), raw=True))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    return _bare(proto)


DISGUISES: dict[str, Disguise] = {
    "bfloat16": _bfloat,
    "external bfloat16": _bfloat,
    "external": lambda proto: proto,
    "external constants": _behind("Constant"),
    "float_data": _typed,
    "no types": _bare,
    "inputs": _inputs,
    "inputs, IR version 3": _old,
    **{f"behind {op}": _behind(op) for op in ("Constant", "Identity", "Transpose", "Cast")},
    "ZipMap": _classifier,
    "function": _function(17),
    "function of another version": _function(15),
}
#: Those that change nothing but where the bytes lie.
SAME_BYTES = ("external", "float_data")


def _saved(name: str, folder: Path) -> Path:
    proto, path = DISGUISES[name](network()), folder / "model.onnx"
    external = name.startswith("external")
    options = {"save_as_external_data": True, "size_threshold": 0, "convert_attribute": True} if external else {}
    onnx.save(proto, path, **options)
    return path


def _outputs(model: ir.Model) -> np.ndarray:
    return next(iter(Session(io.to_bytes(model), threads=1).run({"x": DATA.feeds["x"]}).values()))


@pytest.fixture(scope="module")
def plain() -> Callable[[str], ir.Model]:
    """What a step makes of the network as it is; made once."""
    made: dict[str, ir.Model] = {}

    def of(step: str) -> ir.Model:
        if step not in made:
            made[step] = lepton.apply(network(), CHOSEN[step], data=DATA).model
        return made[step]

    return of


def test_every_step_is_tried() -> None:
    """Those that train need data in a file."""
    assert list(CHOSEN) == [name for name, step in STEPS.items() if not issubclass(step.options, TrainingOptions)]


@pytest.mark.parametrize("step", CHOSEN)
@pytest.mark.parametrize("name", DISGUISES)
def test_every_step_makes_the_same_of_every_file(
    name: str, step: str, plain: Callable[[str], ir.Model], tmp_path: Path
) -> None:
    made, wanted = lepton.apply(_saved(name, tmp_path), CHOSEN[step], data=DATA).model, plain(step)
    assert [str(info.dtype) for info in (*io.inputs(made), *io.outputs(made))][:2] == ["float32", "float32"]
    if name in SAME_BYTES:
        assert io.to_bytes(made) == io.to_bytes(wanted)
    else:
        np.testing.assert_allclose(_outputs(made), _outputs(wanted), rtol=1e-5, atol=1e-5)
        if step not in (
            "fuse",
            "simplify",
            "batch.free",
            "head.add",
            "head.replace",
        ):  # those leave weights as they are
            assert io.weight_bytes(made) == io.weight_bytes(wanted)


@pytest.mark.parametrize("name", [name for name in DISGUISES if not name.endswith("bfloat16")])
def test_the_disguises_are_the_same_network(name: str, tmp_path: Path) -> None:
    """onnxruntime itself says so, of the file as it is."""
    feeds = {"x": DATA.feeds["x"]}
    found, wanted = (
        next(iter(Session(model, threads=1).run(feeds).values()))
        for model in (_saved(name, tmp_path), network().SerializeToString())
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_attention_is_fused_in_external_files_too(samples: Path, tmp_path: Path) -> None:
    proto = onnx.load(samples / "digits_vit.onnx")
    onnx.save(proto, tmp_path / "vit.onnx", save_as_external_data=True, size_threshold=0)
    step = lepton.Fuse(model_type="bert")
    data = Arrays({"image": np.random.default_rng(0).random((4, 1, 8, 8), np.float32)})
    one, two = (lepton.apply(path, step, data=data) for path in (samples / "digits_vit.onnx", tmp_path / "vit.onnx"))
    assert one.steps[0].changed == two.steps[0].changed > 0
    assert io.to_bytes(one.model) == io.to_bytes(two.model)


@pytest.mark.parametrize("limit", [0, 1000])
def test_large_files_inline_and_external_make_the_same_files(
    limit: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Above the size from which weights stay on disk, and above that from which they are written there."""
    monkeypatch.setattr(io, "STREAMED_ABOVE", 0)
    if limit:
        monkeypatch.setattr(io, "EXTERNAL_ABOVE", limit)
    (tmp_path / "out").mkdir()
    written = []
    for loaded in (io.load(_saved("external", tmp_path)), io.read(network().SerializeToString())):
        files = io.save(loaded.model, tmp_path / "out" / "same.onnx")
        written.append({file.name: file.read_bytes() for file in files})
    assert len(written[0]) == (2 if limit else 1)
    assert written[0] == written[1]


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("step", [name for name in CHOSEN if name != "convert.fp16"])
def test_float16_models_go_through_every_step(step: str, keep_io: bool, tmp_path: Path) -> None:
    """The same interface, and outputs as close to the given model's as the step brings those of the float32 one."""
    given = lepton.apply(network(), lepton.ConvertFp16(keep_io=keep_io), data=DATA).model
    made = lepton.apply(given, CHOSEN[step], data=DATA)
    assert io.inputs(made.model)[0].dtype == ("float32" if keep_io else "float16")
    wanted, found = _outputs(given).astype(np.float64), _outputs(made.model).astype(np.float64)
    if step == "prune.weights":  # half of random weights are no small loss
        assert made.steps[0].changed == 3
    elif step == "head.replace":
        assert found.shape == (32, 3)
    else:
        assert np.square(found - wanted).sum() < 1e-4 * np.square(wanted).sum(), "40 dB"
    if step.startswith("quantize"):
        assert io.weight_bytes(made.model) < 0.7 * io.weight_bytes(given)


def test_float16_is_converted_once(tmp_path: Path) -> None:
    given = lepton.apply(network(), lepton.ConvertFp16(), data=DATA).model
    with pytest.raises(lepton.LeptonError) as caught:
        lepton.apply(given, lepton.ConvertFp16(), data=DATA)
    assert caught.value.cause == "nothing in float32 to convert"


@pytest.mark.parametrize("step", ["prune.channels", "convert.fp16", "quantize.static", "quantize.weights"])
def test_quantized_operators_are_refused(step: str) -> None:
    """As onnxruntime's QOperator format has them, and its optimiser makes of others."""
    floats = {"x": (TensorProto.FLOAT, ["n", 8])}
    held = {"s": np.float32(0.1), "z": np.uint8(128), "zw": np.int8(0), "w": np.ones((8, 8), np.int8)}
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize")
    product = helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "s", "zw", "s", "z"], ["p"], "product")
    back = helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"], "back")
    initializers = [tensor(name, array) for name, array in held.items()]
    proto = model([quantize, product, back], floats, {"y": (TensorProto.FLOAT, None)}, initializers)
    with pytest.raises(lepton.LeptonError) as caught:
        lepton.apply(proto, CHOSEN[step], data=Arrays({"x": np.ones((4, 8), np.float32)}))
    assert caught.value.code == "model.already-quantized"
    assert caught.value.exit_code == 2


def test_a_bfloat16_model_is_measured_as_it_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_bfloat(network()), path)
    recipe = {"version": 1, "steps": [{"step": "convert.fp16"}], "evaluate": {"latency": False}}
    report = lepton.compress(path, recipe, data=DATA).report
    sizes = {one.name: one.size for one in report.variants}
    assert sizes["original"].file == path.stat().st_size
    assert sizes["original"].by_dtype["bfloat16"] == sizes["compressed"].by_dtype["float16"]
    assert any(warning.startswith("bfloat16 became float32") for warning in report.warnings)
