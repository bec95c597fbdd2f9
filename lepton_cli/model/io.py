"""Loading, hashing, copying and saving models."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from lepton_cli import scratch
from lepton_cli.errors import ModelError
from lepton_cli.garbage import uncollected
from lepton_cli.model import bfloat, check, external, functions, reads
from lepton_cli.tensors import TensorInfo

#: Above this many bytes of weights a model is written with external data: protobuf ends at 2 GiB.
EXTERNAL_ABOVE = 1_800_000_000
#: Weights that are on disk already stay there above this for a session: nobody wants to hold them just to pass them on.
STREAMED_ABOVE = 100_000_000
#: What stands for the path of a model that is in memory.
MEMORY = Path("(memory)")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model read from disk, or from `data` in memory. `files`: the model file and the external data it names.

    `given`: the model as it is stored, where
    `model` is another one because onnxruntime cannot run that; `note` says so.
    """

    model: ir.Model
    path: Path
    sha256: str
    files: tuple[Path, ...]
    data: bytes | None = None
    given: ir.Model | None = None

    @functools.cached_property
    def payload(self) -> bytes | Path:
        """What `runtime.Session` takes; a file, where it has to be written, that lives as long as this object."""
        if self.given is None:
            return self.stored
        if not _too_large(self.model):
            return to_bytes(self.model)
        stack = contextlib.ExitStack()
        folder = stack.enter_context(scratch.folder())
        weakref.finalize(self, stack.close)
        return payload(self.model, folder)

    @property
    def stored(self) -> bytes | Path:
        """What was read."""
        return self.path if self.data is None else self.data

    @property
    def note(self) -> str:
        """What is to be said of `model`; empty where it is what was read."""
        return "" if self.given is None else bfloat.NOTE

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file.stat().st_size for file in self.files) if self.data is None else len(self.data)


def load(path: Path) -> LoadedModel:
    """Read and validate a model; weights in external files stay on disk until used. Raises ModelError."""
    model = check.read(path)
    files = (path, *check.external_files(model, path))
    model = functions.written_out(model)
    name_nodes(model)
    return _runnable(LoadedModel(model, path, hash_files(files), files))


def read(data: bytes) -> LoadedModel:
    """Validate a serialised model; it has no files. Raises ModelError."""
    model = check.parse(MEMORY, data)
    if check.external_files(model, MEMORY):
        raise ModelError(
            "model.external-data",
            "the model's weights are in files, and it does not say in which folder",
            hint="give the path of the model, or load it with its weights: onnx.load(path)",
        )
    model = functions.written_out(model)
    name_nodes(model)
    return _runnable(LoadedModel(model, MEMORY, hashlib.sha256(data).hexdigest(), (), data))


def _runnable(loaded: LoadedModel) -> LoadedModel:
    if not bfloat.computes(loaded.model):
        return loaded
    return dataclasses.replace(loaded, model=bfloat.as_float32(loaded.model), given=loaded.model)


def reopened(model: ir.Model, workdir: Path) -> LoadedModel:
    """The model as it reads back when it is saved: in memory, or in `workdir` when its weights are too large.

    The model itself is not changed, and shares nothing with the result.
    """
    data = payload(model, workdir)
    return read(data) if isinstance(data, bytes) else load(data)


def hash_files(files: tuple[Path, ...]) -> str:
    """SHA-256 over the contents of the files, in order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def fingerprint(model: ir.Model) -> str:
    """SHA-256 of a model with its weights; large ones are read piece by piece."""
    if weight_bytes(model) < EXTERNAL_ABOVE:
        return hashlib.sha256(to_bytes(model)).hexdigest()
    digest = hashlib.sha256(repr(model).encode())
    for graph in model.graphs():
        for value in graph.initializers.values():
            for block in external.blocks(value.const_value) if value.const_value is not None else ():
                digest.update(block)
    return digest.hexdigest()


@uncollected()
def clone(model: ir.Model) -> ir.Model:
    """A copy to edit: nodes and values are new, weight tensors (immutable) are shared."""
    return model.clone()


def name_nodes(model: ir.Model) -> None:
    """Give every unnamed or ambiguously named node a unique, stable name: globs and reports refer to names."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    for node in model.graph.all_nodes():
        name = node.name or ""
        if not name or name in taken:
            base = name or node.op_type
            number = numbers.get(base, 0)
            while (candidate := f"{base}_{number}") in taken:
                number += 1
            numbers[base] = number + 1
            node.name = name = candidate
        taken.add(name)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, subgraphs included."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def _too_large(model: ir.Model) -> bool:
    """Whether a session gets its weights in a file: beyond protobuf's limit, or large and not in memory yet."""
    size = weight_bytes(model)
    if size >= EXTERNAL_ABOVE:
        return True
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return size > STREAMED_ABOVE and any(isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)) for tensor in tensors)


@uncollected()
def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as one message that holds all of its weights as raw bytes, whatever file and field they lie in.

    Value types that onnx-ir cannot hold are put back.
    """
    proto = ir.to_proto(_in_memory(model, _scattered))
    if proto.ir_version < 4 and {t.name for t in proto.graph.initializer} - {v.name for v in proto.graph.input}:
        proto.ir_version = 4  # until then every initializer had to be an input too
    for value in (*proto.graph.output, *proto.graph.value_info):
        for entry in [entry for entry in value.metadata_props if entry.key == check.TYPE_KEY]:
            value.type.ParseFromString(base64.b64decode(entry.value))
            value.metadata_props.remove(entry)
    for node in proto.graph.node:  # tensors in attributes need no names, and passes rename them at will
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
    # onnx-ir describes every initializer a second time; no reader needs that.
    initializers = {tensor.name for tensor in proto.graph.initializer}
    described = [info for info in proto.graph.value_info if info.name not in initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(described)
    return proto


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """What a writer that takes `to_proto` made of it; shares its weights. Raises whatever onnx-ir raises."""
    check.strip_map_types(proto)
    model: ir.Model = ir.from_proto(proto)
    return model


def held(model: ir.Model, folder: Path) -> ir.Model:
    """The model, or a copy with weights in memory that lie in `folder`, which is about to be removed."""
    inside = folder.resolve()
    return _in_memory(
        model,
        lambda tensor: isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).resolve().is_relative_to(inside),
    )


def stamped(model: ir.Model, metadata: Mapping[str, str]) -> ir.Model:
    """A copy with more `metadata_props`."""
    copy = clone(model)
    copy.metadata_props.update(metadata)
    return copy


def to_bytes(model: ir.Model) -> bytes:
    """The model as one protobuf message; equal models give equal bytes, wherever their weights lie."""
    return bytes(to_proto(model).SerializeToString(deterministic=True))


def _in_memory(model: ir.Model, which: Callable[[ir.TensorProtocol], bool]) -> ir.Model:
    """The model, or a copy in which these tensors are plain arrays. Files stay mapped for others."""
    if not any(which(tensor) for tensor in check.tensors(model)):
        return model
    copy = clone(model)
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and which(value.const_value):
                value.const_value = _array(value.const_value)
    for node in check.nodes(copy):
        for name, attribute in list(node.attributes.items()):
            if check.holds_tensor(attribute) and which(attribute.as_tensor()):
                node.attributes[name] = ir.AttrTensor(name, _array(attribute.as_tensor()))
    return copy


def _scattered(tensor: ir.TensorProtocol) -> bool:
    """Whether the values lie in another file, or one by one in a field of their type: tools read raw bytes best."""
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        return tensor.dtype != ir.DataType.STRING and not tensor.raw.HasField("raw_data")
    return isinstance(tensor, ir.ExternalTensor)


def _array(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def payload(model: ir.Model, workdir: Path) -> bytes | Path:
    """What `runtime.Session` takes: bytes, or a file in `workdir` when the weights exceed protobuf's limit."""
    if not _too_large(model):
        return to_bytes(model)
    folder = Path(tempfile.mkdtemp(dir=workdir))
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    return folder / "model.onnx"


def inputs(model: ir.Model) -> tuple[TensorInfo, ...]:
    """Inputs a caller must feed (initializers that are also inputs are left out)."""
    return tuple(
        dataclasses.replace(_info(value), rows=reads.rows(value, reads.held), batch_axis=reads.batch_axis(value))
        for value in model.graph.inputs
        if not value.is_initializer()
    )


def outputs(model: ir.Model) -> tuple[TensorInfo, ...]:
    """The model's outputs."""
    return tuple(_info(value) for value in model.graph.outputs)


def _info(value: ir.Value) -> TensorInfo:
    dtype = (
        "unknown" if value.dtype is None else str(value.dtype.numpy()) if value.dtype != ir.DataType.STRING else "str"
    )
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return TensorInfo(value.name or "", dtype, shape)


def save(model: ir.Model, path: Path, *, metadata: dict[str, str] | None = None) -> tuple[Path, ...]:
    """Write atomically: a temporary file beside the target, then a rename. Returns the files written.

    Models above 1.8 GB get one external data file `NAME.onnx.data`; where the weights lay before makes no difference.
    `metadata` goes into the model's `metadata_props`.
    """
    copy = stamped(model, metadata or {})
    if weight_bytes(model) >= EXTERNAL_ABOVE:
        return _save_external(copy, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(to_bytes(copy))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return (path,)


def _save_external(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Weights first, then the file that names them: a reader never sees a model without its data."""
    data = path.with_name(path.name + ".data")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".lepton-") as folder:
        ir.save(model, Path(folder) / path.name, external_data=data.name)
        (Path(folder) / data.name).replace(data)
        (Path(folder) / path.name).replace(path)
    return (path, data)
