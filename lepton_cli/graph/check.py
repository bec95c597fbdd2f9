"""Is this file a model lepton can work on? Asked once, at load, for every command.

That onnxruntime loads a file or that the ONNX checker accepts it is not enough: both let through files that crash
later, and both refuse files that are fine. What is checked here is what every later line relies on: unique names,
no dangling or circular inputs, tensors as long as their shape says, nothing read from outside the model's folder.
"""

from __future__ import annotations

import base64
import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from lepton_cli.errors import ModelError
from lepton_cli.graph import external

PROTOBUF_LIMIT = 2**31 - 1
#: Types onnx-ir cannot hold (maps) travel through it in this metadata key, so that tree ensembles round-trip.
TYPE_KEY = "lepton.value_type"

_SIGNATURES = (
    (b"version https://git-lfs", "model.lfs-pointer", "is a git-lfs pointer, not a model", "git lfs pull"),
    (b"\x89PNG", "model.not-onnx", "is a PNG image, not a model", None),
    (b"\xff\xd8\xff", "model.not-onnx", "is a JPEG image, not a model", None),
    (b"GIF8", "model.not-onnx", "is a GIF image, not a model", None),
    (b"BM", "model.not-onnx", "is a bitmap image, not a model", None),
    (b"PK\x03\x04", "model.not-onnx", "is a zip archive (perhaps a PyTorch or Keras file), not an ONNX model",
     "unpack it, or export the model to ONNX (torch.onnx.export)"),
    (b"\x80\x02", "model.not-onnx", "is a Python pickle, not an ONNX model", "export it with torch.onnx.export"),
    (b"\x80\x03", "model.not-onnx", "is a Python pickle, not an ONNX model", "export it with torch.onnx.export"),
    (b"\x80\x04", "model.not-onnx", "is a Python pickle, not an ONNX model", "export it with torch.onnx.export"),
    (b"\x80\x05", "model.not-onnx", "is a Python pickle, not an ONNX model", "export it with torch.onnx.export"),
    (b"\x1f\x8b", "model.not-onnx", "is gzip-compressed, not an ONNX model", "gunzip it first"),
    (b"\x89HDF", "model.not-onnx", "is an HDF5 (Keras) file, not an ONNX model", "export it with tf2onnx"),
    (b"\x93NUMPY", "model.not-onnx", "is a numpy array, not a model", None),
    (b"%PDF", "model.not-onnx", "is a PDF, not a model", None),
)  # fmt: skip


def read(path: Path) -> ir.Model:
    """The validated model in `path`. Raises ModelError with the reason; opens nothing outside its folder."""
    data = _read_bytes(path)
    _check_signature(path, data)
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise _broken(path, "it is truncated or not an ONNX file") from error
    del data
    _check_model(path, proto)
    _strip_unsupported_types(proto)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx-ir raises whatever its parts raise
        raise _broken(path, str(error).splitlines()[0][:200]) from error
    external.bind(model, path.parent)
    return model


def external_files(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """External data files named by the model, in order of first use."""
    names: dict[Path, None] = {}
    for tensor in _ir_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            names[path.parent / tensor.location] = None
    return tuple(names)


def _ir_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            for attribute in node.attributes.values():
                if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()


def _read_bytes(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelError("model.not-a-file", f"{path} is a folder, not a model", hint="name the .onnx file in it")
        if not stat.S_ISREG(mode):
            raise ModelError("model.not-a-file", f"{path} is not a regular file")
        size = path.stat().st_size
        if size == 0:
            raise _broken(path, "it is empty (0 bytes)")
        if size > PROTOBUF_LIMIT:
            raise _broken(path, "it is above 2 GiB, which protobuf cannot hold", "save its weights as external data")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError("model.missing", f"{path} does not exist", hint=_nearest(path)) from error
    except OSError as error:
        raise ModelError("model.unreadable", f"{path} cannot be read", cause=error.strerror or str(error)) from error


def _nearest(path: Path) -> str | None:
    import difflib

    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".onnx"]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else None


def _broken(path: Path, cause: str, hint: str | None = None) -> ModelError:
    return ModelError("model.broken", f"{path} is not a usable ONNX model", cause=cause, hint=hint)


def _check_signature(path: Path, data: bytes) -> None:
    head = data[:512]
    for magic, code, what, hint in _SIGNATURES:
        if head.startswith(magic):
            raise ModelError(code, f"{path} {what} ({len(data)} bytes)", hint=hint)
    if data[4:8] == b"TFL3":
        raise ModelError("model.not-onnx", f"{path} is a TensorFlow Lite model", hint="convert it with tf2onnx")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelError("model.not-onnx", f"{path} is an HTML or XML page, not a model", hint="download the file itself")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        raise ModelError("model.not-onnx", f"{path} is text, not a model")


def _check_model(path: Path, proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph") or proto.ir_version <= 0:
        raise _broken(path, "it holds no graph")
    if proto.ir_version > onnx.IR_VERSION:
        raise _broken(path, f"IR version {proto.ir_version} is newer than {onnx.IR_VERSION}, the newest known here",
                      "pip install --upgrade onnx")  # fmt: skip
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    version = opsets.get("", opsets.get("ai.onnx", 0))
    if version > onnx.defs.onnx_opset_version():
        raise _broken(path, f"opset {version} is newer than {onnx.defs.onnx_opset_version()}, the newest known here",
                      "pip install --upgrade onnx")  # fmt: skip
    if not opsets or (version <= 0 and not any(opsets.values())):
        raise _broken(path, "it names no operator set version")
    if not proto.graph.output:
        raise _broken(path, "its graph has no outputs")
    functions = {(function.domain, function.name) for function in proto.functions}
    _check_graph(path, proto.graph, frozenset(), functions, path.parent.resolve())


def _check_graph(
    path: Path, graph: onnx.GraphProto, outer: frozenset[str], functions: set[tuple[str, str]], folder: Path
) -> None:
    known = set(outer)
    own: set[str] = set()
    for value in graph.input:
        if not value.name or value.name in own:
            raise _broken(path, f"two inputs of the graph are named `{value.name}`")
        own.add(value.name)
    initializers: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in initializers:
            raise _broken(path, f"two initializers are named `{tensor.name}`")
        initializers.add(tensor.name)
        _check_tensor(path, tensor, folder)
    own |= initializers | {tensor.values.name for tensor in graph.sparse_initializer}
    producers = _producers(path, graph, own)
    known |= own
    _check_order(path, graph, known, producers)
    known |= set(producers)
    seen: set[str] = set()
    for value in graph.output:
        if value.name not in known:
            raise _broken(path, f"output `{value.name}` is produced by no node")
        if value.name in seen:
            raise _broken(path, f"output `{value.name}` is listed twice")
        seen.add(value.name)
    for node in graph.node:
        _check_node(path, node, frozenset(known), functions, folder)


def _producers(path: Path, graph: onnx.GraphProto, own: set[str]) -> dict[str, int]:
    producers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name and (name in producers or name in own):
                raise _broken(path, f"`{name}` is produced twice, again by node `{node.name or node.op_type}`")
            if name:
                producers[name] = index
    return producers


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Names a subgraph takes from outside."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    needed = {value.name for value in graph.output}
    for node in graph.node:
        needed |= set(node.input) | set().union(*(_captured(sub) for sub in _subgraphs(node)))
        own |= set(node.output)
    return needed - own - {""}


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for attribute in node.attribute for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ()))]


def _check_order(path: Path, graph: onnx.GraphProto, known: set[str], producers: dict[str, int]) -> None:
    """Every input is known or produced, and there is an order to run the nodes in (Kahn's algorithm, linear time)."""
    users: dict[int, list[int]] = {}
    waiting = [0] * len(graph.node)
    for index, node in enumerate(graph.node):
        needed = {name for name in node.input if name} | set().union(*(_captured(sub) for sub in _subgraphs(node)))
        for name in needed - known:
            if name not in producers:
                raise _broken(path, f"node `{node.name or node.op_type}` reads `{name}`, which nothing produces")
            users.setdefault(producers[name], []).append(index)
            waiting[index] += 1
    ready = [index for index, count in enumerate(waiting) if count == 0]
    done = 0
    while ready:
        done += 1
        for user in users.get(ready.pop(), ()):
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    if done < len(graph.node):
        node = graph.node[next(index for index, count in enumerate(waiting) if count)]
        raise _broken(path, f"its nodes form a cycle through `{node.name or node.op_type}`")


def _check_node(
    path: Path, node: onnx.NodeProto, known: frozenset[str], functions: set[tuple[str, str]], folder: Path
) -> None:
    standard = node.domain in ("", "ai.onnx")
    if standard and not onnx.defs.has(node.op_type) and (node.domain, node.op_type) not in functions:
        raise ModelError(
            "model.unknown-operator",
            f"{path}: node `{node.name or node.output[0] if node.output else node.name}` uses operator "
            f"`{node.op_type}`, which ONNX does not know",
        )
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _check_tensor(path, attribute.t, folder)
        for tensor in attribute.tensors:
            _check_tensor(path, tensor, folder)
    for graph in _subgraphs(node):
        _check_graph(path, graph, known, functions, folder)


_TYPED_FIELDS = {
    onnx.TensorProto.FLOAT: ("float_data", 1), onnx.TensorProto.COMPLEX64: ("float_data", 2),
    onnx.TensorProto.DOUBLE: ("double_data", 1), onnx.TensorProto.COMPLEX128: ("double_data", 2),
    onnx.TensorProto.INT64: ("int64_data", 1),
    onnx.TensorProto.UINT32: ("uint64_data", 1), onnx.TensorProto.UINT64: ("uint64_data", 1),
    onnx.TensorProto.STRING: ("string_data", 1),
}  # fmt: skip


def _check_tensor(path: Path, tensor: onnx.TensorProto, folder: Path) -> None:
    """The tensor holds as many bytes as its shape and type say. Nothing is allocated or read."""
    name = tensor.name or "(unnamed)"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise _broken(path, f"tensor `{name}` has the unknown type {tensor.data_type}")
    if any(d < 0 for d in tensor.dims) or prod(tensor.dims) >= 2**48:
        raise _broken(path, f"tensor `{name}` has the impossible shape {list(tensor.dims)[:8]}")
    elements = prod(tensor.dims)
    expected = 0 if dtype == ir.DataType.STRING else -(-elements * dtype.bitwidth // 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        external.check(path, tensor, expected, folder)
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != expected:
            raise _broken(path, f"tensor `{name}` holds {len(tensor.raw_data)} bytes, its shape needs {expected}")
    else:
        field, per_element = _TYPED_FIELDS.get(tensor.data_type, ("int32_data", 1))
        held = len(getattr(tensor, field))
        packed = -(-elements * dtype.bitwidth // 8) if dtype.bitwidth < 8 else elements
        if held not in (elements * per_element, packed * per_element):
            raise _broken(path, f"tensor `{name}` holds {held} elements, its shape needs {elements}")


def _strip_unsupported_types(proto: onnx.ModelProto) -> None:
    """Move map types (outputs of classifiers) out of onnx-ir's way; `io.to_proto` puts them back."""
    for value in (*proto.graph.output, *proto.graph.value_info):
        if _has_map(value.type):
            entry = value.metadata_props.add()
            entry.key, entry.value = TYPE_KEY, base64.b64encode(value.type.SerializeToString()).decode()
            value.ClearField("type")


def _has_map(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _has_map(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return _has_map(kind.optional_type.elem_type)
    return kind.HasField("map_type")
