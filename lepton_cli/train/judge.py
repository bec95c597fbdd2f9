"""What onnxruntime says of a trained model on the samples kept apart, in shares of right answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lepton_cli.data.dataset import Array, Batch
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Context


def agreement(original: ir.Model, made: ir.Model, kept: Sequence[Batch], context: Context) -> float | None:
    """Share of the samples that both put into the same class; `None` where the first output is none of classes."""
    name = io.outputs(made)[0].name
    first, second = (_outputs(model, name, kept, context) for model in (original, made))
    if any(one.ndim != 2 or one.shape[1] < 2 for one in first):
        return None
    return float(np.mean(np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(first, second, strict=True)])))


def accuracy(
    made: ir.Model, output: str, axis: int, labels: str, kept: Sequence[Batch], context: Context
) -> float | None:
    """Share of right classes, which are on this axis of the output; `None` where it is a value inside."""
    if output not in {info.name for info in io.outputs(made)}:
        return None
    found = _outputs(made, output, kept, context)
    right = [one.argmax(axis) == batch.labels[labels] for one, batch in zip(found, kept, strict=True)]
    return float(np.mean(np.concatenate([one.ravel() for one in right])))


def _outputs(model: ir.Model, name: str, kept: Sequence[Batch], context: Context) -> list[Array]:
    session = Session(io.payload(model, context.workdir), threads=context.threads, spin=False)
    return [session.run(batch.feeds, [name])[name] for batch in kept]
