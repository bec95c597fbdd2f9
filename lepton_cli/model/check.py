"""Is this file a model lepton can work on? Asked once, at load, for every command.

That onnxruntime loads a file or that the ONNX checker accepts it is not enough: both let through files that crash
later, and both refuse files that are fine. What is checked here is what every later line relies on: unique names,
no dangling or circular inputs, tensors as long as their shape says, nothing read from outside the model's folder.
"""

from __future__ import annotations

import base64
import difflib
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from lepton_cli.errors import ModelError, cause_of
from lepton_cli.model import signature, sparse
from lepton_cli.model.stored import broken
from lepton_cli.model.structure import Structure

PROTOBUF_LIMIT = 2**31 - 1
#: Types onnx-ir cannot hold (maps) travel through it in this metadata key, so that tree ensembles round-trip.
TYPE_KEY = "lepton.value_type"
_UPGRADE = "pip install --upgrade onnx"


def read(path: Path) -> ir.Model:
    """The validated model in `path`, its nodes in the order they run. Raises ModelError with the reason.

    Opens nothing outside the model's folder, and weights in external files not at all.
    """
    return parse(path, _read_bytes(path))


def parse(path: Path, data: bytes) -> ir.Model:
    """The validated model in the content of a file; `path` says where its external data lie, and which model it is."""
    proto = _parse(path, data)
    _check_header(path, proto)
    if (damaged := _not_text(proto)) is not None:
        raise broken(path, f"{damaged} is not UTF-8 text")
    sparse.write_out(path, proto)
    structure = Structure(path, proto)
    structure.check()
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        _forget_negative_dimensions(value.type)
    strip_map_types(proto)
    try:
        model = ir.from_proto(proto)
        if not structure.sorted:
            model.graph.sort()
            for function in model.functions.values():
                function.sort()
    except Exception as error:  # onnx-ir raises whatever its parts raise
        raise broken(path, _root_cause(error)) from error
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = path.parent
    return model


def external_files(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """External data files named by the model, in order of first use."""
    names: dict[Path, None] = {}
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            names[path.parent / tensor.location] = None
    return tuple(names)


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor that the model holds: initializers and attributes, those of subgraphs and functions too."""
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
    for node in nodes(model):
        yield from (attribute.as_tensor() for attribute in node.attributes.values() if holds_tensor(attribute))


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, those of subgraphs and functions too."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def holds_tensor(attribute: ir.Attr) -> bool:
    """Whether `attribute.as_tensor()` works."""
    return attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError("model.not-a-file", f"{path} is a folder, not a model", hint="name the .onnx file in it")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError("model.not-a-file", f"{path} is not a regular file")
        if status.st_size == 0:
            raise broken(path, "it is empty (0 bytes)")
        if status.st_size > PROTOBUF_LIMIT:
            raise broken(path, "it is above 2 GiB, which protobuf cannot hold", "save its weights as external data")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError("model.missing", f"{path} does not exist", hint=_nearest(path)) from error
    except OSError as error:
        raise ModelError("model.unreadable", f"{path} cannot be read", cause=error.strerror or str(error)) from error
    except ValueError as error:  # a null character in the name
        raise ModelError("model.missing", f"{str(path)!r} is not the name of a file", cause=str(error)) from error


def _nearest(path: Path) -> str | None:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".onnx"]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else None


def _parse(path: Path, data: bytes) -> onnx.ModelProto:
    """The message in the file. What the file is instead is asked only when it is none: names are free bytes too."""
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise signature.foreign(path, data) or broken(path, "it is truncated or not an ONNX file") from error
    if not proto.HasField("graph") or proto.ir_version <= 0:
        raise signature.foreign(path, data) or broken(path, "it holds no graph")
    unknown = sorted({field.field_number for field in UnknownFieldSet(proto)})
    if unknown:
        raise broken(
            path, f"it holds bytes that are no part of a model (field {unknown[0]}): damaged, or of a newer format"
        )
    return proto


def _check_header(path: Path, proto: onnx.ModelProto) -> None:
    if proto.ir_version > onnx.IR_VERSION:
        cause = f"IR version {proto.ir_version} is newer than {onnx.IR_VERSION}, the newest known here"
        raise broken(path, cause, _UPGRADE)
    opsets: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if opsets.setdefault(domain, entry.version) != entry.version:
            raise broken(path, f"it names two versions of operator set `{domain or 'ai.onnx'}`")
        if entry.version <= 0:
            raise broken(path, f"operator set `{domain or 'ai.onnx'}` has the impossible version {entry.version}")
    newest = onnx.defs.onnx_opset_version()
    if opsets.get("", 0) > newest:
        raise broken(path, f"opset {opsets['']} is newer than {newest}, the newest known here", _UPGRADE)
    if not opsets:
        raise broken(path, "it names no operator set version")
    if not proto.graph.output:
        raise broken(path, "its graph has no outputs")


def _not_text(message: Message, where: str = "model") -> str | None:
    """The first string that is no text, which could be read but never written again. Weights are not touched."""
    if isinstance(message, onnx.TensorProto):
        return f"`{where}.name`" if isinstance(message.name, bytes) else None
    for field, value in message.ListFields():
        if field.type not in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING):
            continue
        name = f"{where}.{field.name}"
        for part in (value,) if isinstance(value, (Message, str, bytes)) else value:
            found = _not_text(part, name) if isinstance(part, Message) else f"`{name}`" * isinstance(part, bytes)
            if found:
                return found
    return None


def _forget_negative_dimensions(kind: onnx.TypeProto) -> None:
    """Some exporters write -1 for a dimension that may be anything."""
    if kind.HasField("sequence_type"):
        _forget_negative_dimensions(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        _forget_negative_dimensions(kind.optional_type.elem_type)
    for dimension in kind.tensor_type.shape.dim if kind.HasField("tensor_type") else ():
        if dimension.HasField("dim_value") and dimension.dim_value < 0:
            dimension.Clear()


def strip_map_types(proto: onnx.ModelProto) -> None:
    """Move map types (outputs of classifiers) out of onnx-ir's way, in place; `io.to_proto` puts them back."""
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
    return bool(kind.HasField("map_type"))


def _root_cause(error: BaseException) -> str:
    """onnx-ir wraps what went wrong once for every level of the file."""
    while error.__cause__ is not None:
        error = error.__cause__
    return cause_of(error)
