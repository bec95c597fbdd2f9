"""Files that are no model, or a broken one: one ModelError, exit code 2, and nothing else happens."""

from __future__ import annotations

import io as byte_io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from lepton_cli.errors import ExitCode, ModelError
from lepton_cli.model import io
from tests.conftest import Lepton
from tests.hostile.models import FLOAT, edited, mlp, model, parse, tensor, weights


def _archive() -> bytes:
    stream = byte_io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.pkl", "weights")
    return stream.getvalue()


def _text(content: str) -> bytes:
    return content.encode()


FOREIGN: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "model.broken", "empty"),
    "lfs pointer": (
        _text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 133\n"),
        "model.lfs-pointer",
        "git-lfs pointer",
    ),
    "html": (_text("<!DOCTYPE html><html><body>404</body></html>"), "model.not-onnx", "HTML"),
    "html with blanks": (_text("\n\n  <HTML>\n"), "model.not-onnx", "HTML"),
    "xml": (_text('<?xml version="1.0"?><Error/>'), "model.not-onnx", "XML"),
    "text": (_text("hello, world\n"), "model.not-onnx", "text"),
    "json": (_text('{"error": "not found"}'), "model.not-onnx", "text"),
    "zip": (_archive(), "model.not-onnx", "zip"),
    "pickle": (pickle.dumps({"w": [1.0]}, protocol=2), "model.not-onnx", "pickle"),
    "pickle 4": (pickle.dumps({"w": [1.0]}, protocol=4), "model.not-onnx", "pickle"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "model.not-onnx", "PNG"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(40), "model.not-onnx", "JPEG"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "model.not-onnx", "gzip"),
    "numpy": (b"\x93NUMPY\x01\x00" + bytes(40), "model.not-onnx", "numpy"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "model.not-onnx", "HDF5"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(40), "model.not-onnx", "TensorFlow Lite"),
    "ort": (b"\x1c\x00\x00\x00ORTM" + bytes(40), "model.not-onnx", "onnxruntime"),
    "elf": (b"\x7fELF\x02\x01" + bytes(40), "model.not-onnx", "program"),
    "random": (np.random.default_rng(0).bytes(5000), "model.broken", "ONNX"),
    "zeros": (bytes(1000), "model.broken", "ONNX"),
    "truncated": (mlp().SerializeToString()[:-100], "model.broken", "truncated"),
    "half": (mlp().SerializeToString()[: len(mlp().SerializeToString()) // 2], "model.broken", "truncated"),
    "trailing bytes": (mlp().SerializeToString() + b"\xfa\x07\x04junk", "model.broken", "no part of a model"),
    "trailing zeros": (mlp().SerializeToString() + bytes(7), "model.broken", "truncated"),
    "two models": (mlp().SerializeToString() * 2, "model.broken", "two inputs"),
    "only a graph": (mlp().graph.SerializeToString(), "model.broken", ""),
    "a tensor": (tensor("w", weights(4)).SerializeToString(), "model.broken", ""),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_are_no_model(name: str, tmp_path: Path) -> None:
    content, code, words = FOREIGN[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        io.load(path)
    assert caught.value.code == code
    assert words in f"{caught.value.message} {caught.value.cause}"
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["model.onnx"]


def _edit(edit: Callable[[onnx.ModelProto], object]) -> Callable[[], bytes]:
    return lambda: edited(edit)


def _set_tensor(index: int, **fields: object) -> Callable[[], bytes]:
    def edit(proto: onnx.ModelProto) -> None:
        held = proto.graph.initializer[index]
        for name, value in fields.items():
            if name == "dims":
                del held.dims[:]
                held.dims.extend(value)  # type: ignore[arg-type]
            else:
                setattr(held, name, value)

    return _edit(edit)


def _node(name: str = "extra", **fields: object) -> Callable[[], bytes]:
    def edit(proto: onnx.ModelProto) -> None:
        values = {"op": "Relu", "inputs": ["x"], "outputs": ["z"], **fields}
        proto.graph.node.append(helper.make_node(values["op"], values["inputs"], values["outputs"], name))  # type: ignore[arg-type]

    return _edit(edit)


def _counted(op: str, inputs: list[str], outputs: list[str], **attributes: int) -> Callable[[], bytes]:
    """Onnx's shape inference ends the process on these."""

    def edit(proto: onnx.ModelProto) -> None:
        proto.opset_import[0].version = 18
        proto.graph.initializer.append(tensor("i", np.zeros((2, 1), np.int64)))
        proto.graph.node.append(helper.make_node(op, inputs, outputs, **attributes))

    return _edit(edit)


def _typed(kind: int, field: str, values: list[object], dims: list[int]) -> Callable[[], bytes]:
    def edit(proto: onnx.ModelProto) -> None:
        held = TensorProto(name="t", data_type=kind, dims=dims)
        getattr(held, field).extend(values)
        proto.graph.initializer.append(held)

    return _edit(edit)


def _recursive_function(body: str, second: str = "") -> Callable[[], bytes]:
    def make() -> bytes:
        functions = [
            helper.make_function("my", "f", ["a"], ["b"], [helper.make_node(body, ["a"], ["b"], domain="my")],
                                 [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)])
        ]  # fmt: skip
        if second:
            functions.append(
                helper.make_function("my", body, ["a"], ["b"], [helper.make_node(second, ["a"], ["b"], domain="my")],
                                     [helper.make_opsetid("my", 1)])
            )  # fmt: skip
        proto = model(
            [helper.make_node("f", ["x"], ["y"], domain="my")],
            {"x": (FLOAT, [2])},
            {"y": (FLOAT, [2])},
            domains=("my",),
        )
        proto.functions.extend(functions)
        return proto.SerializeToString()

    return make


def _laughs() -> bytes:
    """Each function calls the one before it ten times: 10^20 nodes."""
    proto = model(
        [helper.make_node("f19", ["x"], ["y"], domain="my")], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}, domains=("my",)
    )
    for number in range(20):
        inner, domain = ("Relu", "") if number == 0 else (f"f{number - 1}", "my")
        names = ["a", *(f"t{i}" for i in range(9)), "b"]
        nodes = [helper.make_node(inner, [names[i]], [names[i + 1]], domain=domain) for i in range(10)]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
        proto.functions.append(helper.make_function("my", f"f{number}", ["a"], ["b"], nodes, imports))
    return proto.SerializeToString()


def _nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on, written byte by byte: protobuf would not build it."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2, *length, size]) + content

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return b"\x08\x08" + field(7, graph)


def _header(**fields: int) -> Callable[[], bytes]:
    return _edit(lambda proto: [setattr(proto, name, value) for name, value in fields.items()])


def _opset(version: int, domain: str = "") -> Callable[[], bytes]:
    return _edit(lambda proto: setattr(proto.opset_import[0], "version", version))


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "IR version 0": (_header(ir_version=0), "no graph"),
    "IR version of the future": (_header(ir_version=99), "newer than"),
    "IR version negative": (_header(ir_version=-1), "no graph"),
    "opset of the future": (_opset(999), "newer than"),
    "opset 0": (_opset(0), "impossible version"),
    "opset negative": (_opset(-3), "impossible version"),
    "no opset": (_edit(lambda p: p.ClearField("opset_import")), "no operator set"),
    "two opsets": (_edit(lambda p: p.opset_import.append(helper.make_opsetid("ai.onnx", 12))), "two versions"),
    "no outputs": (_edit(lambda p: p.graph.ClearField("output")), "no outputs"),
    "duplicate initializers": (_edit(lambda p: p.graph.initializer.append(p.graph.initializer[0])), "two initializers"),
    "duplicate inputs": (_edit(lambda p: p.graph.input.append(p.graph.input[0])), "two inputs"),
    "duplicate outputs": (_edit(lambda p: p.graph.output.append(p.graph.output[0])), "listed twice"),
    "unnamed initializer": (_set_tensor(0, name=""), "no name"),
    "unnamed input": (_edit(lambda p: setattr(p.graph.input[0], "name", "")), "no name"),
    "value produced twice": (_node(outputs=["h"]), "produced twice"),
    "node overwrites an input": (_node(outputs=["x"]), "produced twice"),
    "node overwrites a weight": (_node(outputs=["w1"]), "produced twice"),
    "dangling input": (_node(inputs=["nowhere"]), "nothing produces"),
    "dangling output": (_edit(lambda p: setattr(p.graph.output[0], "name", "nowhere")), "produced by no node"),
    "a node that reads itself": (_node(inputs=["z"]), "cycle"),
    "cycle": (
        _edit(
            lambda p: p.graph.node.extend(
                [helper.make_node("Relu", ["q"], ["z"]), helper.make_node("Relu", ["z"], ["q"])]
            )
        ),
        "cycle",
    ),
    "raw data too short": (_set_tensor(0, raw_data=b"abc"), "holds 3 bytes"),
    "raw data too long": (_set_tensor(0, raw_data=bytes(8 * 16 * 4 + 1)), "holds 513 bytes"),
    "no data": (_set_tensor(0, raw_data=b""), "holds 0 bytes"),
    "too few typed values": (_typed(FLOAT, "float_data", [1.0], [2]), "holds 1 elements"),
    "too many typed values": (_typed(TensorProto.INT64, "int64_data", [1, 2, 3], [2]), "holds 3 elements"),
    "values in the wrong field": (_typed(FLOAT, "int32_data", [1, 2], [2]), "holds 0 elements"),
    "too few strings": (_typed(TensorProto.STRING, "string_data", [b"a"], [2]), "holds 1 elements"),
    "too few 4-bit values": (_typed(TensorProto.INT4, "int32_data", [1], [4]), "holds 1 elements"),
    "negative dimension": (_set_tensor(0, dims=[-8, 16]), "impossible shape"),
    "two negative dimensions": (_set_tensor(0, dims=[-8, -16]), "impossible shape"),
    "overflowing shape": (_set_tensor(0, dims=[2**31, 2**31, 2**31]), "impossible shape"),
    "product that wraps to the right size": (_set_tensor(0, dims=[2**33, 2**31, 1]), "impossible shape"),
    "huge shape without data": (_set_tensor(0, dims=[2**40], raw_data=b""), "holds 0 bytes"),
    "unknown element type": (_set_tensor(0, data_type=99), "unknown type"),
    "undefined element type": (_set_tensor(0, data_type=0), "unknown type"),
    "input of unknown type": (_edit(lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", 77)), ""),
    "too few inputs": (_node(op="Gemm"), "has 1 inputs"),
    "too many inputs": (_node(inputs=["x", "x"]), "has 2 inputs"),
    "no node outputs": (_node(outputs=[]), "has 0 outputs"),
    "missing attribute": (_node(op="Cast"), "lacks the attribute"),
    "more outputs than it says": (_counted("Split", ["x"], ["z", "v"], num_outputs=1), "2 outputs and the attribute"),
    "fewer outputs than it says": (_counted("Split", ["x"], ["z", "v"], num_outputs=3), "`num_outputs` 3"),
    "a negative count": (_counted("GatherND", ["x", "i"], ["z"], batch_dims=-2), "`batch_dims` -2"),
    "attribute twice": (
        _edit(lambda p: p.graph.node[0].attribute.extend([helper.make_attribute("alpha", 1.0)] * 2)),
        "two attributes",
    ),
    "sparse initializer": (
        _edit(
            lambda p: p.graph.sparse_initializer.append(
                helper.make_sparse_tensor(
                    helper.make_tensor("s", FLOAT, [1], [1.0]),
                    helper.make_tensor("i", TensorProto.INT64, [1], [4]),
                    [4],
                )
            )
        ),
        "positions",
    ),
    "constant with short data": (
        _edit(
            lambda p: p.graph.node.append(
                helper.make_node("Constant", [], ["z"], value=TensorProto(data_type=FLOAT, dims=[9], raw_data=b"abcd"))
            )
        ),
        "holds 4 bytes",
    ),
    "function that calls itself": (_recursive_function("f"), "calls itself"),
    "functions that call each other": (_recursive_function("g", "f"), "calls itself"),
    "functions that unfold without end": (_laughs, "unfold to"),
    "recursion bomb": (lambda: _nested(5000), "truncated"),
    "subgraph reads what does not exist": (
        lambda: parse(
            "g (bool c, float[2] x) => (float[2] y) {"
            " y = If (c) <then_branch = a () => (float[2] t) { t = Relu(nowhere) },"
            " else_branch = b () => (float[2] z) { z = Neg(x) }> }"
        ).SerializeToString(),
        "nothing produces",
    ),
    "subgraph passes on an outer value": (
        lambda: parse(
            "g (bool c, float[2] x) => (float[2] y) { t = Relu(x)"
            " y = If (c) <then_branch = a () => (float[2] t) {},"
            " else_branch = b () => (float[2] z) { z = Neg(x) }> }"
        ).SerializeToString(),
        "produced by no node",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models(name: str, tmp_path: Path) -> None:
    make, words = BROKEN[name]
    content = make()
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        io.load(path)
    assert caught.value.code == "model.broken"
    assert words in str(caught.value.cause)
    assert len(str(caught.value.cause)) < 300
    assert path.read_bytes() == content


def test_unknown_operator_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_node(op="Frobnicate")())
    with pytest.raises(ModelError, match="Frobnicate") as caught:
        io.load(path)
    assert caught.value.code == "model.unknown-operator"


def test_places_that_are_no_file(tmp_path: Path) -> None:
    folder, loop, fifo, dangling = (
        tmp_path / name for name in ("folder.onnx", "loop.onnx", "fifo.onnx", "dangling.onnx")
    )
    folder.mkdir()
    loop.symlink_to(loop)
    os.mkfifo(fifo)
    dangling.symlink_to(tmp_path / "gone")
    expected = {
        folder: "model.not-a-file",
        loop: "model.unreadable",
        fifo: "model.not-a-file",
        dangling: "model.missing",
        Path("/dev/zero"): "model.not-a-file",
        tmp_path / "absent.onnx": "model.missing",
        tmp_path / ("x" * 300): "model.unreadable",
        tmp_path / "null\0byte": "model.missing",
    }
    for path, code in expected.items():
        with pytest.raises(ModelError) as caught:
            io.load(path)
        assert caught.value.code == code, path
        assert caught.value.exit_code == ExitCode.CANNOT_START


def test_a_missing_model_is_compared_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "resnet20.onnx").write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        io.load(tmp_path / "resnet2.onnx")
    assert caught.value.hint is not None
    assert "resnet20.onnx" in caught.value.hint


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        io.load(path)


@pytest.mark.parametrize("text", [b"second", b"act"])
def test_names_that_are_no_text(tmp_path: Path, text: bytes) -> None:
    content = mlp().SerializeToString()
    assert text in content
    (tmp_path / "model.onnx").write_bytes(content.replace(text, b"\x80" * len(text)))
    with pytest.raises(ModelError) as caught:
        io.load(tmp_path / "model.onnx")
    assert "not UTF-8" in str(caught.value.cause)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_models_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes overwritten, removed or doubled: a model or a ModelError, never another exception."""
    content = bytearray(mlp().SerializeToString())
    start = data.draw(st.integers(0, len(content) - 1))
    piece = data.draw(st.binary(max_size=8))
    length = data.draw(st.integers(0, 8))
    content[start : start + length] = piece
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content)
    try:
        loaded = io.load(path)
    except ModelError:
        return
    io.to_bytes(io.clone(loaded.model))


def test_the_command_line_says_one_thing_and_writes_nothing(tmp_path: Path, lepton: Lepton) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nname: x\nsteps: [{step: simplify}]\n")
    broken = tmp_path / "model.onnx"
    broken.write_bytes(BROKEN["cycle"][0]())
    before = sorted(os.listdir(tmp_path))
    for command in (
        ["inspect", broken],
        ["plan", broken, "-r", recipe],
        ["compress", broken, "-r", recipe, "-o", "out"],
    ):
        done = lepton(*command)
        assert done.returncode == ExitCode.CANNOT_START, done.stderr
        assert "error[model.broken]" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert sorted(os.listdir(tmp_path)) == before
