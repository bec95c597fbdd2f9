"""Looking inside a model while it runs on calibration data, one batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lepton_cli import runtime
from lepton_cli.data.dataset import Dataset
from lepton_cli.model import io

Arrays = dict[str, NDArray[Any]]


def batches(model: ir.Model, data: Dataset, limit: int | None = None, size: int | None = None) -> Iterator[Arrays]:
    """Model inputs from the data set, in batches that fit the model; a last batch too small for it is left out."""
    fixed = next((info.shape[0] for info in io.inputs(model) if info.shape and isinstance(info.shape[0], int)), None)
    for batch in data.batches(fixed or size, limit):
        if fixed is None or all(len(array) == fixed for array in batch.feeds.values()):
            yield batch.feeds


def tapped(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy whose outputs are the inner values `names`, without the nodes that are not needed for them."""
    copy = io.clone(model)
    values = {value.name: value for value in copy.graph.inputs}
    values.update({output.name: output for node in copy.graph for output in node.outputs})
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in dict.fromkeys(names))
    RemoveUnusedNodesPass()(copy)
    return copy


class Tap:
    """A model cut down to some of its inner values, ready to run."""

    def __init__(self, model: ir.Model, names: Sequence[str], workdir: Path, threads: int) -> None:
        self._given = {value.name or "" for value in model.graph.inputs}
        self._names = [name for name in dict.fromkeys(names) if name not in self._given]
        self._session: runtime.Session | None = None
        if self._names:
            short = tapped(model, self._names)
            self._session = runtime.Session(io.payload(short, workdir), threads=threads)
            self._inputs = {info.name for info in self._session.inputs}

    def run(self, feeds: Arrays) -> Arrays:
        """The values for one batch; model inputs among the names come straight from `feeds`."""
        found = {name: array for name, array in feeds.items() if name in self._given}
        if self._session is not None:
            found.update(self._session.run({k: v for k, v in feeds.items() if k in self._inputs}, self._names))
        return found


def outputs(model: ir.Model, feeds: Sequence[Arrays], workdir: Path, threads: int) -> list[NDArray[np.float64]]:
    """Float outputs of the whole model over several batches, each as [samples, values] in float64."""
    session = runtime.Session(io.payload(model, workdir), threads=threads)
    names = [info.name for info in session.outputs if info.dtype.startswith(("float", "bfloat"))]
    rows: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for batch in feeds:
        for name, array in session.run(batch, names).items():
            rows[name].append(np.asarray(array, np.float64).reshape(len(array) if array.ndim else 1, -1))
    return [
        np.concatenate(parts)
        if len({p.shape[1] for p in parts}) == 1
        else np.concatenate([p.ravel() for p in parts])[None]
        for parts in rows.values()
    ]
