"""Size and structure of a model: files, gzip, parameters, non-zeros, bytes by type and by layer, waste.

Parameters are the elements of weight tensors: floats, and quantized integers with their int32 biases. Scales, zero
points, shape constants (int64) and settings such as clip limits are not parameters, though their bytes count.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import onnx_ir as ir

from lepton_cli import scratch
from lepton_cli.graph.cost import multiplies
from lepton_cli.machine import usable_threads
from lepton_cli.measure import weights
from lepton_cli.measure.results import Layer, Size
from lepton_cli.model import io
from lepton_cli.model.check import external_files
from lepton_cli.model.external import blocks

_BLOCK = 1 << 20
#: Bytes of a piece that is compressed for itself: the window of gzip is 32 kB.
_PIECE = 16 * _BLOCK
_MOST_THREADS = 8
#: Bytes of gzip's header and checksum.
_GZIP_FRAME = 18


def measure(
    path: Path | bytes | None, model: ir.Model, *, macs: Mapping[str, int] | None = None, compress: bool = True
) -> Size:
    """Size of a model on disk or in memory, or of its serialised form when that is `None`. `macs`: node name -> MACs,
    unknown where it is empty and the model multiplies all the same.

    `compress=False` leaves the gzip size out (0): compressing takes half a minute for every gigabyte.
    """
    if path is None:
        with scratch.folder() as folder:
            payload = io.payload(model, folder)
            if isinstance(payload, bytes):
                return _size([len(payload)], _gzip([payload]) if compress else 0, model, macs)
            return _on_disk(payload, ir.load(payload), macs, compress)
    if isinstance(path, bytes):
        return _size([len(path)], _gzip([path]) if compress else 0, model, macs)
    return _on_disk(path, model, macs, compress)


def _on_disk(path: Path, model: ir.Model, macs: Mapping[str, int] | None, compress: bool = True) -> Size:
    files = (path, *(file for file in external_files(model, path) if file.is_file()))
    return _size([file.stat().st_size for file in files], _gzip(_blocks(files)) if compress else 0, model, macs)


def _size(files: list[int], gzip: int, model: ir.Model, macs: Mapping[str, int] | None) -> Size:
    found = list(weights.find(model))
    by_dtype: dict[str, int] = defaultdict(int)
    for tensor in weights.tensors(model):
        by_dtype[weights.dtype_name(tensor)] += tensor.nbytes
    return Size(
        file=sum(files),
        external=sum(files[1:]),
        gzip=gzip,
        parameters=sum(weight.parameters for weight in found),
        nonzeros=sum(weight.nonzeros for weight in found),
        macs=sum(macs.values()) if macs or (macs is not None and not _multiplies(model)) else None,
        nodes=sum(1 for _ in model.graph.all_nodes()),
        by_dtype=dict(sorted(by_dtype.items())),
        duplicated=_duplicated(model),
        layers=tuple(_layers(found, macs or {})),
    )


def _multiplies(model: ir.Model) -> bool:
    return any(multiplies(node) for node in model.graph.all_nodes())


def _layers(found: Iterable[weights.Weight], macs: Mapping[str, int]) -> Iterator[Layer]:
    """Weights by the node that computes with them, in graph order."""
    nodes: dict[str, list[weights.Weight]] = defaultdict(list)
    for weight in found:
        nodes[weight.node].append(weight)
    for node, own in nodes.items():
        main = max(own, key=lambda weight: weight.parameters)
        yield Layer(
            node=node,
            op=main.op,
            dtype=main.dtype,
            parameters=sum(weight.parameters for weight in own),
            bytes=sum(weight.bytes for weight in own),
            macs=macs.get(node),
            weight_shape=main.shape,
        )


def _duplicated(model: ir.Model) -> int:
    """Bytes of initializers whose content an earlier one already holds; below 64 bytes it is not worth a word."""
    seen: set[tuple[str, tuple[int, ...], bytes]] = set()
    wasted = 0
    for tensor in weights.tensors(model):
        if tensor.nbytes < 64 or tensor.dtype == ir.DataType.STRING:
            continue
        content = hashlib.blake2b(digest_size=16)
        for block in blocks(tensor):
            content.update(block)
        key = (weights.dtype_name(tensor), tuple(tensor.shape.numpy()), content.digest())
        if key in seen:
            wasted += tensor.nbytes
        seen.add(key)
    return wasted


def _blocks(files: Iterable[Path]) -> Iterator[bytes]:
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                yield block


def _gzip(blocks: Iterable[bytes]) -> int:
    """Bytes after `gzip -6`, counted without keeping them. Pieces are compressed beside each other, as `pigz` does."""
    total, waiting = _GZIP_FRAME, deque[Future[int]]()
    with ThreadPoolExecutor(min(usable_threads(), _MOST_THREADS)) as pool:
        for piece in _pieces(blocks):
            waiting.append(pool.submit(_deflated, piece))
            if len(waiting) > _MOST_THREADS:
                total += waiting.popleft().result()
        return total + sum(one.result() for one in waiting)


def _pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for block in blocks:
        for start in range(0, len(block), _BLOCK):
            held += block[start : start + _BLOCK]
            if len(held) >= _PIECE:
                yield bytes(held)
                held.clear()
    yield bytes(held)


def _deflated(piece: bytes) -> int:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return len(compressor.compress(piece)) + len(compressor.flush())
