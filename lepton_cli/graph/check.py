"""Is this file a model lepton can work on? Asked once, at load, for every command."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from lepton_cli.errors import ModelError


def read(path: Path) -> ir.Model:
    """The validated model in `path`. Raises ModelError with the reason."""
    try:
        return ir.load(path)
    except Exception as error:
        raise ModelError("model.broken", f"{path} is not a usable ONNX model", cause=str(error)[:300]) from error


def external_files(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """External data files named by the model, in order of first use."""
    names: dict[Path, None] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                names[path.parent / value.const_value.location] = None
    return tuple(names)
