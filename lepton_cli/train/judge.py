"""What onnxruntime says of a trained model on the samples kept apart, in shares of right answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from lepton_cli.data.dataset import Batch
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Context


def agreement(original: ir.Model, made: ir.Model, kept: Sequence[Batch], context: Context) -> float | None:
    """Share of the samples that both put into the same class; `None` where the first output is none of classes, be it a
    number for each or the class itself."""
    name = io.outputs(made)[0].name
    first, second = ([_classes(one) for one in _outputs(model, name, kept, context)] for model in (original, made))
    if any(np.shape(one) != (batch.count,) for one, batch in zip(first, kept, strict=True)):
        return None
    return float(np.mean(np.concatenate([a == b for a, b in zip(first, second, strict=True)])))


def accuracy(
    made: ir.Model, output: str, axis: int, labels: str, kept: Sequence[Batch], context: Context
) -> float | None:
    """Share of right classes, which are on this axis of the output or the output itself; `None` where it is a value
    inside."""
    if output not in {info.name for info in io.outputs(made)}:
        return None
    found = [_classes(one, axis) for one in _outputs(made, output, kept, context)]
    right = [np.asarray(one == batch.labels[labels]) for one, batch in zip(found, kept, strict=True)]
    return float(np.mean(np.concatenate([one.ravel() for one in right])))


def _classes(found: Any, axis: int | None = None) -> Any:
    """The largest number's place on the axis (`None`: there is no other but that of the samples); whole numbers and
    labels are classes already."""
    if not isinstance(found, np.ndarray):
        return None
    if found.dtype.kind != "f":
        return found
    if axis is None:
        return found.argmax(1) if found.ndim == 2 and found.shape[1] > 1 else None
    return found.argmax(axis)


def _outputs(model: ir.Model, name: str, kept: Sequence[Batch], context: Context) -> list[Any]:
    session = Session(io.payload(model, context.workdir), threads=context.threads, spin=False)
    return [session.run(batch.feeds, [name])[name] for batch in kept]
