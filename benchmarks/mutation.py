"""Do the tests notice a wrong line? Plants one fault at a time into a copy of the package and runs the module's tests.

    pip install -e '.[cpu,dev,mutation]'
    python benchmarks/mutation.py                                       # a sample over prune and quantize
    python benchmarks/mutation.py --modules prune/gram.py --count 9999  # every mutant of one module

Run it in the repository's root. A module is judged by the test file of its own name alone (`SHARED_TESTS` names the
exceptions); without one its mutants survive. The sample is drawn by a hash of seed, place and operator: a change of one
module leaves most of the others' mutants in it. Stopped early, it tells what it has.
"""

from __future__ import annotations

import argparse
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutation_faults import PACKAGE, Mutant, sample

DEFAULT = ("prune", "quantize", "probe", "timing")
#: Test files that judge a module besides the one of its own name, and why.
SHARED_TESTS = {
    "coupling/layout.py": [
        ("tests/coupling/test_layout_cuts.py", "what a cut changes"),
        ("tests/coupling/test_layout_heads.py", "heads in the axis of the samples"),
    ],
    "coupling/operators.py": [("tests/coupling/test_operators_in_networks.py", "operators beside others")],
    "graph/feeds.py": [("tests/graph/test_feeds_sizes.py", "the sizes alone")],
    **{
        f"graph/{part}.py": [
            (f"tests/graph/test_{other}.py", "parts of one step")
            for other in ("batch", "freeing", "frozen")
            if other != part
        ]
        for part in ("batch", "freeing", "frozen", "one_node", "stacked")
    },
    "probe/linear.py": [("tests/probe/test_linear_found.py", "which layers are found")],
    "probe/rewrites.py": [
        ("tests/probe/test_rewrites_in_steps.py", "errors planted into steps"),
        ("tests/probe/test_rewrites_of_nodes.py", "the second half of test_rewrites.py"),
    ],
    "prune/allocate.py": [("tests/prune/test_allocate_parts.py", "the parts of the search")],
    "prune/recover.py": [("tests/prune/test_recover_aims.py", "what is repaired, and to what end")],
    "quantize/blocks.py": [("tests/quantize/test_weights.py", "blocks are what the step writes")],
    "quantize/qdq.py": [("tests/quantize/test_qdq_between.py", "between int8 layers")],
    "quantize/speed.py": [("tests/quantize/test_speed_remembered.py", "the second half of test_speed.py")],
    "quantize/static.py": [("tests/quantize/test_static_guards.py", "the second half of test_static.py")],
}
#: Of address space for one test run: an endless loop that collects must not take the machine's memory.
MEMORY = 12 * 2**30


def chosen_modules(names: Sequence[str]) -> list[str]:
    """Modules by folder, file or glob, relative to the package."""
    found: set[Path] = set()
    for name in names:
        name = name.removeprefix(f"{PACKAGE}/").rstrip("/")
        here = list(Path(PACKAGE).glob(name)) or [Path(PACKAGE, f"{name}.py")]
        files = [file for path in here for file in (path.rglob("*.py") if path.is_dir() else [path])]
        if not all(file.is_file() for file in files):
            sys.exit(f"no such module: {name}")
        found.update(files)
    return sorted(str(path.relative_to(PACKAGE)) for path in found if path.name != "__init__.py")


def own_test(module: str) -> str:
    return str(Path("tests", module).with_name(f"test_{Path(module).name}"))


def tests_of(module: str) -> tuple[str, ...]:
    """Test files that judge a module; none where there are none."""
    shared = [file for file, _ in SHARED_TESTS.get(module, ())]
    return tuple(file for file in (own_test(module), *shared) if Path(file).is_file())


#: Imports what takes seconds, and forks one pytest for each line of time limit and test files; says its exit code.
SERVER = """
import contextlib, importlib, os, select, signal, sys
for name in ("hypothesis", "numpy", "onnx", "onnx_ir", "onnxruntime", "pydantic", "rich", "typer.testing", "yaml"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
import pytest
for line in sys.stdin:
    limit, *arguments = line.split()
    child = os.fork()
    if not child:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        code = 3
        try:
            code = pytest.main(arguments)
        finally:
            sys.stdout.flush()
            os._exit(code)
    with open(os.pidfd_open(child)) as ended:
        late = not select.select([ended], [], [], float(limit))[0]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print("timeout" if late else "killed" if status else "survived", flush=True)
"""


class Copy:
    """A copy of package and tests, where one mutant at a time lives."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        for name in (PACKAGE, "tests", "sample_models", "configs"):
            shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        shutil.copy("pyproject.toml", folder)
        subprocess.run([python, "-m", "compileall", "-q", PACKAGE, "tests"], cwd=folder, check=True)
        settings = {"PYTHONPATH": str(folder), "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "scratch" / "hypothesis")}
        settings |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.server = subprocess.Popen(
            [python, "-c", SERVER],
            cwd=folder,
            env={**os.environ, **settings, "ORT_DISABLE_TELEMETRY": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def test(self, files: Sequence[str], limit: float) -> str:
        """What becomes of the code as it is: `survived`, `killed`, or `timeout` after so many seconds."""
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        (self.folder / "scratch").mkdir()
        options = "-x -q -p no:cacheprovider --assert=plain --hypothesis-seed=0 --basetemp=scratch/tmp"
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(limit, options, *files, file=self.server.stdin, flush=True)
        fate = self.server.stdout.readline().strip()
        if not fate:
            raise RuntimeError("the process that runs the tests has ended")
        return fate

    def close(self) -> None:
        with self.server:  # closes its input, which ends it
            pass

    def judge(self, mutant: Mutant, source: str, files: Sequence[str], limit: float) -> str:
        path = self.folder / PACKAGE / mutant.module
        path.write_text(mutant.of(source))
        # Python trusts a compiled file of the same second and size.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()
        try:
            return self.test(files, limit)
        finally:
            path.write_text(source)


def table(results: Sequence[tuple[Mutant, str]]) -> str:
    lines = ["| module | mutants | killed | survived | timeouts | share |", "|---|---|---|---|---|---|"]
    names = sorted({mutant.module for mutant, _ in results})
    for name in [*names, "total"]:
        fates = Counter(fate for mutant, fate in results if name in (mutant.module, "total"))
        killed, count = fates["killed"] + fates["timeout"], max(fates.total(), 1)
        note = "" if name == "total" or tests_of(name) else f" (no {own_test(name)})"
        lines.append(
            f"| {name}{note} | {fates.total()} | {fates['killed']} | {fates['survived']} | {fates['timeout']} |"
            f" {killed / count:.0%} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", default=DEFAULT, help="folders, files or globs of lepton_cli")
    parser.add_argument("--count", type=int, default=300, help="size of the sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="show the mutants, test nothing")
    parser.add_argument("--survivors", type=Path, help="write their diffs here too, as they are found")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs the tests")
    options = parser.parse_args()
    modules = chosen_modules(options.modules)
    sources = {name: Path(PACKAGE, name).read_text() for name in modules}
    wanted = sample(modules, sources, options.count, options.seed)
    if options.list:
        print("\n".join(mutant.diff(sources[mutant.module]) for mutant in sorted(wanted)))
        return 0
    os.nice(max(0, 5 - os.nice(0)))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary:
        try:
            return run(wanted, sources, Path(temporary), options)
        except KeyboardInterrupt:
            return 130


def run(wanted: Sequence[Mutant], sources: dict[str, str], temporary: Path, options: argparse.Namespace) -> int:
    every = [Copy(temporary / f"{number}" / "lepton", options.python) for number in range(options.jobs)]
    try:
        limits = unchanged(every[0], sorted({tests_of(mutant.module) for mutant in wanted} - {()}))
        return 2 if limits is None else judged(wanted, sources, every, limits, options)
    finally:
        for copy in every:
            copy.close()


def unchanged(copy: Copy, every: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], float] | None:
    """Time limits by test files, from a run without a fault; None when one fails."""
    limits = {}
    for files in every:
        start = time.monotonic()
        fate = copy.test(files, 600)
        took = time.monotonic() - start
        limits[files] = 3 * took + 20
        print(f"unchanged: {' '.join(files)}, {took:.1f} s", file=sys.stderr, flush=True)
        if fate != "survived":
            print((copy.folder / "said").read_text(), "the tests fail without a fault", sep="\n", file=sys.stderr)
            return None
    return limits


def judged(
    wanted: Sequence[Mutant],
    sources: dict[str, str],
    every: Sequence[Copy],
    limits: dict[tuple[str, ...], float],
    options: argparse.Namespace,
) -> int:
    """Every mutant through its tests, told as it goes; then the survivors and the table."""
    free: queue.Queue[Copy] = queue.Queue()
    for copy in every:
        free.put(copy)

    def judge(mutant: Mutant) -> str:
        files = tests_of(mutant.module)
        if not files:
            return "survived"
        copy = free.get()
        try:
            return copy.judge(mutant, sources[mutant.module], files, limits[files])
        finally:
            free.put(copy)

    results: list[tuple[Mutant, str]] = []
    diffs: dict[Mutant, str] = {}
    with ThreadPoolExecutor(len(every)) as pool:
        try:
            for mutant, fate in zip(wanted, pool.map(judge, wanted), strict=True):
                results.append((mutant, fate))
                said = f"{fate}: {PACKAGE}/{mutant.module}:{mutant.line} {mutant.operator}"
                print(f"{len(results)}/{len(wanted)} {said}", file=sys.stderr, flush=True)
                if fate == "survived":
                    diffs[mutant] = mutant.diff(sources[mutant.module])
                    if options.survivors:
                        options.survivors.write_text("\n".join(diffs.values()))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print("stopped early", file=sys.stderr)
    print("\n".join([*(diffs[mutant] for mutant in sorted(diffs)), table(results)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
