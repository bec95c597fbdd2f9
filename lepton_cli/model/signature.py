"""What a file that is not an ONNX model is instead, by its first bytes."""

from __future__ import annotations

from pathlib import Path

from lepton_cli.errors import ModelError

_PICKLE = "is a Python pickle, not an ONNX model"
_EXPORT = "export it with torch.onnx.export"
_ZIP_HINT = "unpack it, or export the model to ONNX (torch.onnx.export)"
_FETCH = "download the file itself"
#: First bytes -> what the file is, and what to do.
_SIGNATURES: tuple[tuple[bytes, str, str | None], ...] = (
    (b"\x89PNG", "is a PNG image, not a model", None),
    (b"\xff\xd8\xff", "is a JPEG image, not a model", None),
    (b"GIF8", "is a GIF image, not a model", None),
    (b"BM", "is a bitmap image, not a model", None),
    (b"PK\x03\x04", "is a zip archive (perhaps a PyTorch or Keras file), not an ONNX model", _ZIP_HINT),
    (b"PK\x05\x06", "is an empty zip archive, not an ONNX model", None),
    (b"\x80\x02", _PICKLE, _EXPORT),
    (b"\x80\x03", _PICKLE, _EXPORT),
    (b"\x80\x04", _PICKLE, _EXPORT),
    (b"\x80\x05", _PICKLE, _EXPORT),
    (b"\x1f\x8b", "is gzip-compressed, not an ONNX model", "gunzip it first"),
    (b"\x89HDF", "is an HDF5 (Keras) file, not an ONNX model", "export it with tf2onnx"),
    (b"\x93NUMPY", "is a numpy array, not a model", None),
    (b"%PDF", "is a PDF, not a model", None),
    (b"\x7fELF", "is a program or library, not a model", None),
)
#: Flat buffers carry their kind behind the first offset.
_FLAT_BUFFERS = {
    b"TFL3": ("is a TensorFlow Lite model", "convert it with tf2onnx"),
    b"ORTM": ("is a model in onnxruntime's own format", "use the .onnx file it was made from"),
}
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


def foreign(path: Path, data: bytes) -> ModelError | None:
    """The error for a file of another known kind; `None` when it is of no known kind. `data` are its bytes."""
    head = data[:512]
    if head.startswith(b"version https://git-lfs"):
        message = f"{path} is a git-lfs pointer, not a model ({len(data)} bytes)"
        return ModelError("model.lfs-pointer", message, hint="git lfs pull")
    for magic, what, hint in _SIGNATURES:
        if head.startswith(magic):
            return _error(path, data, what, hint)
    if head[4:8] in _FLAT_BUFFERS:
        return _error(path, data, *_FLAT_BUFFERS[head[4:8]])
    if head.lstrip().lower().startswith(_MARKUP):
        return _error(path, data, "is an HTML or XML page, not a model", _FETCH)
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return _error(path, data, "is text, not a model", None)
    return None


def _error(path: Path, data: bytes, what: str, hint: str | None) -> ModelError:
    return ModelError("model.not-onnx", f"{path} {what} ({len(data)} bytes)", hint=hint)
