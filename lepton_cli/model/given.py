"""A model as a caller from Python has it: a path, protobuf, or onnx-ir. What is in memory stays there if it can."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir

from lepton_cli.errors import ModelError, UsageError, cause_of
from lepton_cli.model import io

Model = ir.Model | onnx.ModelProto | str | os.PathLike[str]


def load(model: Model, workdir: Path) -> io.LoadedModel:
    """Read and validate a model; the one given is never changed.

    Weights beyond protobuf's limit, and large ones that are on disk already, are written into `workdir`. Raises
    ModelError, and UsageError for what is no model at all.
    """
    if isinstance(model, (str, os.PathLike)):
        return io.load(Path(model))
    if not isinstance(model, (ir.Model, onnx.ModelProto)):
        raise UsageError(
            "usage.model",
            f"a {type(model).__name__} is not a model",
            hint="give a path, an onnx.ModelProto or an onnx_ir.Model",
        )
    try:
        if isinstance(model, onnx.ModelProto):
            # What protobuf can hold is checked as a file would be; onnx-ir lets more pass.
            small = model.ByteSize() < io.EXTERNAL_ABOVE
            return io.read(model.SerializeToString(deterministic=True)) if small else _reopened(model, workdir)
        return io.reopened(model, workdir)
    except (ModelError, MemoryError, OSError):
        raise
    except Exception as error:  # protobuf and onnx-ir raise whatever their parts raise
        cause = cause_of(f"{type(error).__name__}: {error}")
        raise ModelError("model.broken", "the model in memory cannot be serialised", cause=cause) from error


def _reopened(model: onnx.ModelProto, workdir: Path) -> io.LoadedModel:
    return io.reopened(ir.from_proto(model), workdir)
