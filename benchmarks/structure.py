"""The shape of the code and what one run costs: lines, imports, sessions, serialisations, clones.

    python benchmarks/structure.py [--repeats 3]

`compress` runs on the bundled CNN with `configs/cnn-prune-int8.yaml`, with an empty cache, in this process; every
session, serialisation and clone of a model is counted. Wall times are the median of the repeats.
"""

from __future__ import annotations

import argparse
import collections
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "sample_models" / "digits_cnn.onnx"
RECIPE = ROOT / "configs" / "cnn-prune-int8.yaml"


def counted(counts: collections.Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, counting its calls."""

    def call(*arguments: Any, **named: Any) -> Any:
        counts[name] += 1
        return function(*arguments, **named)

    return call


def compress() -> tuple[collections.Counter[str], float]:
    """Counts and seconds of one run."""
    import onnx_ir as ir

    from lepton_cli import runtime
    from lepton_cli.commands.compress import compress as run
    from lepton_cli.progress import Silent
    from lepton_cli.recipe.load import load_recipe

    counts: collections.Counter[str] = collections.Counter()
    kept = runtime.Session.__init__, ir.to_proto, ir.Model.clone
    runtime.Session.__init__ = counted(counts, "sessions", kept[0])  # type: ignore[method-assign]
    ir.to_proto = counted(counts, "serialisations", kept[1])
    ir.Model.clone = counted(counts, "clones", kept[2])  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LEPTON_CACHE"] = str(Path(folder, "cache"))
            started = time.perf_counter()
            run(MODEL, load_recipe(RECIPE), Path(folder, "out"), Silent())
            return counts, time.perf_counter() - started
    finally:
        runtime.Session.__init__, ir.to_proto, ir.Model.clone = kept  # type: ignore[method-assign]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    files = sorted((ROOT / "lepton_cli").rglob("*.py"))
    lines = [len(file.read_text().splitlines()) for file in files]
    print(f"lepton_cli: {sum(lines)} lines in {len(files)} files, the longest {max(lines)}")
    runs = [compress() for _ in range(repeats)]
    for name in ("sessions", "serialisations", "clones"):
        print(f"{name}: {statistics.median(counts[name] for counts, _ in runs):.0f}")
    print(f"wall time: {statistics.median(seconds for _, seconds in runs):.1f} s")


if __name__ == "__main__":
    main()
