"""Walking through a model once while its layers are changed one after another.

Running the whole model up to every layer would cost a pass over the data for each. A walk keeps, batch by batch, the
values that cross the current position, many of them on disk, and continues from there: one pass in all.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lepton_cli import runtime
from lepton_cli.graph.edit import captured
from lepton_cli.model import io
from lepton_cli.probe.activations import GIVEN, piece
from lepton_cli.runtime import Values

#: Bytes kept in memory and on disk at most; where more would cross, the walk goes on from an earlier position.
MEMORY, DISK = 128_000_000, 3_000_000_000


class SequentialPass:
    """One walk over one data set. Nodes behind the position may change between visits, nodes before it may not."""

    def __init__(self, batches: Callable[[], Iterable[Values]], expected: int, workdir: Path, threads: int) -> None:
        self._batches = batches
        self._expected = expected
        self._workdir = workdir
        self._folder = Path(tempfile.mkdtemp(dir=workdir))
        self._threads = threads
        #: By batch: the values that cross the position, or where they are.
        self._stored: list[Values | Path] = []
        self._kept: dict[str, np.ndarray] = {}
        self._generation = 0

    def visit(self, model: ir.Model, node: str, needed: Sequence[str]) -> Iterator[Values]:
        """The needed values of every batch; moves the position to `node` when all have been taken."""
        frontier = crossing(model, node)
        known = set(self._kept) if self._stored else {value.name or "" for value in model.graph.inputs}
        asked = [name for name in dict.fromkeys((*needed, *frontier)) if name not in known]
        session = None
        if asked:
            part = piece(model, self._kept, asked)
            session = runtime.Session(io.payload(part, self._workdir), threads=self._threads, spin=False)
        stored: list[Values | Path] = []
        size = 0
        self._generation += 1
        for number, values in enumerate(self._load() if self._stored else self._batches()):
            found = dict(values)
            if session is not None:
                feeds = {info.name: values[info.name.removesuffix(GIVEN)] for info in session.inputs}
                found.update(session.run(feeds, asked))
            chosen = {name: found[name] for name in frontier}
            if number == 0:
                size = sum(array.nbytes for array in chosen.values()) * self._expected
                kept = chosen
            if size <= MEMORY:
                stored.append(chosen)
            elif size <= DISK:
                file = self._folder / f"{self._generation}-{number}.npz"
                np.savez(file, **{f"v{k}": array for k, array in enumerate(chosen.values())})  # type: ignore[arg-type]
                stored.append(file)
            yield {name: found[name] for name in needed}
        if stored:
            for one in self._stored:
                if isinstance(one, Path):
                    one.unlink(missing_ok=True)
            self._stored, self._kept = stored, kept

    def close(self) -> None:
        """Remove what is kept on disk."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _load(self) -> Iterator[Values]:
        for one in self._stored:
            if isinstance(one, dict):
                yield one
                continue
            with np.load(one, allow_pickle=False) as stored:
                yield {name: stored[f"v{k}"] for k, name in enumerate(self._kept)}


def crossing(model: ir.Model, node: str) -> list[str]:
    """Values made before `node` (model inputs included) that it or a later node reads."""
    early = {value.name for value in model.graph.inputs if not value.is_initializer()}
    later = False
    read: dict[str, None] = {}
    for current in model.graph:
        later = later or current.name == node
        if later:
            inputs = (*current.inputs, *captured(current))
            read.update(dict.fromkeys(v.name for v in inputs if v is not None and v.name in early and v.name))
        else:
            early.update(output.name for output in current.outputs)
    return list(read)
