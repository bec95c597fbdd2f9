"""Looking inside a model while it runs on calibration data, one batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lepton_cli import runtime, scratch
from lepton_cli.data.batching import layout
from lepton_cli.data.dataset import Batch, Dataset
from lepton_cli.errors import DataError
from lepton_cli.model import io
from lepton_cli.probe.comparable import comparable
from lepton_cli.runtime import Values

#: Ends the names of inputs that stand for inner values.
GIVEN = "__kept"


def batches(model: ir.Model, data: Dataset, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
    """Batches of about `size` samples (default: the recipe's) of the first `limit`, as the model takes them.

    Where its first input has a fixed batch, that decides, and a last batch too small for it is left out. Raises
    DataError for inputs that contain NaN, unless the model fills in what is missing itself: its outputs have none.
    """
    inputs = io.inputs(model)
    first = next(iter(inputs), None)
    axis = None if first is None else layout(inputs).axes[first.name]
    own = None if first is None or first.shape is None or axis is None else first.shape[axis]
    fixed = own if isinstance(own, int) else None
    session = None
    for batch in data.batches(fixed or size, limit):
        # Other inputs may be states and scalars, whose axes count something else.
        if (
            fixed is not None
            and first is not None
            and axis is not None
            and batch.feeds[first.name].shape[axis] != fixed
        ):
            continue
        if (name := _with_nan(batch.feeds)) is not None:
            session = session or _session(model)
            if _with_nan(session.run(batch.feeds)) is not None:
                raise DataError(
                    "data.nan",
                    f"input `{name}` of `{data.name}` contains NaN in the batch at sample {batch.start}, "
                    "and so do the outputs",
                    where=data.path,
                    hint="use `preprocess: {fill_missing: mean}`, or leave these samples out",
                )
        yield batch


def _with_nan(values: Mapping[str, object]) -> str | None:
    """The first of the values that holds NaN."""
    arrays = ((name, value) for name, value in values.items() if isinstance(value, np.ndarray))
    return next((name for name, array in arrays if array.dtype.kind == "f" and np.isnan(array).any()), None)


def _session(model: ir.Model) -> runtime.Session:
    with scratch.folder() as folder:
        return runtime.Session(io.payload(model, folder), threads=1)


def piece(model: ir.Model, kept: Values, asked: Sequence[str]) -> ir.Model:
    """The part of the model that leads from the kept values to the asked ones."""
    copy = io.clone(model)
    values = {value.name or "": value for value in copy.graph.inputs}
    made = {output.name or "": output for node in copy.graph for output in node.outputs}
    values |= made
    for name, array in kept.items():
        if name in made:
            kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            given = ir.Value(name=name + GIVEN, type=kind, shape=ir.Shape([None] * array.ndim))
            copy.graph.inputs.append(given)
            ir.convenience.replace_all_uses_with(made[name], given, replace_graph_outputs=True)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in dict.fromkeys(asked))
    RemoveUnusedNodesPass()(copy)
    unused = [v for v in copy.graph.inputs if not v.uses() and not v.is_initializer() and not v.is_graph_output()]
    for value in unused:
        copy.graph.inputs.remove(value)
    return copy


class Activations:
    """A model cut down to some of its inner values, ready to run."""

    def __init__(self, model: ir.Model, names: Sequence[str], workdir: Path, threads: int) -> None:
        self._given = {value.name or "" for value in model.graph.inputs}
        #: Those of the names that are computed.
        self.inner = [name for name in dict.fromkeys(names) if name not in self._given]
        self._session: runtime.Session | None = None
        if self.inner:
            short = piece(model, {}, self.inner)
            self._session = runtime.Session(io.payload(short, workdir), threads=threads, spin=False)
            self._inputs = {info.name for info in self._session.inputs}

    def run(self, feeds: Values) -> Values:
        """The values for one batch; model inputs among the names come straight from `feeds`."""
        found = {name: array for name, array in feeds.items() if name in self._given}
        if self._session is not None:
            found.update(self._session.run({k: v for k, v in feeds.items() if k in self._inputs}, self.inner))
        return found


def outputs(model: ir.Model, feeds: Sequence[Values], workdir: Path, threads: int) -> dict[str, NDArray[np.float64]]:
    """Float outputs of the whole model (`comparable`) in float64, all batches joined along axis 0.

    An output whose other sizes differ between batches is a single row.
    """
    session = runtime.Session(io.payload(comparable(model), workdir), threads=threads, spin=False)
    names = [info.name for info in session.outputs if info.dtype.startswith(("float", "bfloat"))]
    rows: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for batch in feeds:
        for name, array in session.run(batch, names).items():
            rows[name].append(np.atleast_1d(np.asarray(array, np.float64)))
    return {
        name: np.concatenate(parts)
        if len({part.shape[1:] for part in parts}) == 1
        else np.concatenate([part.ravel() for part in parts])[None]
        for name, parts in rows.items()
    }
