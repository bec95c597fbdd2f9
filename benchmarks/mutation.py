"""Do the tests notice a wrong line? Plants one fault at a time into a copy of the package and runs the module's tests.

    pip install -e '.[cpu,dev,mutation]'
    python benchmarks/mutation.py                                       # a sample over prune and quantize
    python benchmarks/mutation.py --modules prune/gram.py --count 9999  # every mutant of one module

Run it in the repository's root. A module is judged by the test file of its own name alone (`SHARED_TESTS` names the
exceptions); without one its mutants survive. The sample is drawn by a hash of seed, place and operator: a change of one
module leaves the choice in the others alone, nearly.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import os
import queue
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import parso
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.operator import Operator
    from cosmic_ray.plugins import get_operator
except ImportError:
    print("mutation.py needs cosmic-ray: pip install -e '.[mutation]'", file=sys.stderr)
    sys.exit(2)

PACKAGE = "lepton_cli"
DEFAULT = ("prune", "quantize")
#: Test files that judge a module besides the one of its own name, and why.
SHARED_TESTS = {
    "quantize/static.py": ("tests/quantize/test_static_guards.py", "the second half of test_static.py"),
}
#: cosmic-ray's operators, one or two for each sign: all pairs would drown the rest.
CORE = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Mod_Mul", "Pow_Mul", "BitOr_BitAnd", "BitAnd_BitOr")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "Lt_Gt", "LtE_Lt", "LtE_GtE", "Gt_GtE", "Gt_Lt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("GtE_Gt", "GtE_LtE", "Eq_NotEq", "NotEq_Eq")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Is_IsNot", "IsNot_Is")),
    *(f"ReplaceUnaryOperator_Delete_{sign}" for sign in ("USub", "Not", "Invert")),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop"),
)
#: One more or less than this is no fault that a result shows.
LARGE = 1000
#: Names of functions whose confusion is a likely slip.
SWAPPED = {"min": "max", "minimum": "maximum", "argmin": "argmax", "any": "all", "floor": "ceil", "zeros": "ones"}
SWAPPED |= {new: old for old, new in SWAPPED.items()}
#: Of address space for one test run: an endless loop that collects must not take the machine's memory.
MEMORY = 12 * 2**30


class Own(Operator):
    """An operator that changes a node as a whole, in one way for each position."""

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


class DropTranspose(Own):
    """`x.T` becomes `x`."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "trailer" and node.get_code() == ".T":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> None:
        return None


class DropTerm(Own):
    """`a + b` becomes `a`, and so with factors and conditions."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type in {"arith_expr", "term", "and_test", "or_test"}:
            yield from [(sign.start_pos, sign.end_pos) for sign in node.children[1::2]]

    def mutate(self, node: Any, index: int) -> Any:
        del node.children[2 * index + 1 : 2 * index + 3]
        return node


class SwapName(Own):
    """`min` becomes `max`, and so with the other pairs of `SWAPPED`."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "name" and node.value in SWAPPED and not node.is_definition():
            called = node.get_next_leaf().value == "("
            if called and node.get_previous_leaf().value not in {"def", "import"}:
                yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.value = SWAPPED[node.value]
        return node


class SwapMembership(Own):
    """`in` becomes `not in` and the other way round."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if getattr(node.parent, "type", "") == "comparison" and node.get_code(False) in {"in", "not in"}:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(" in" if node.type == "comp_op" else " not in")


class RemoveStatement(Own):
    """A call, a changed variable, an early return or a raise is gone; a function without its last return gives None."""

    KINDS = frozenset({"atom_expr", "return_stmt", "raise_stmt", "yield_expr", "del_stmt"})

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "simple_stmt" and self._counts(node.children[0]):
            yield node.start_pos, node.end_pos

    def _counts(self, node: Any) -> bool:
        if node.type != "expr_stmt":
            return node.type in self.KINDS or (node.type == "keyword" and node.value in {"return", "continue", "raise"})
        target, sign, *value = (child.get_code(False) for child in node.children)
        # Without its first value a name is only unknown.
        again = set(re.findall(r"\w+", target)) & set(re.findall(r"(?<![\w.])\w+", " ".join(value)))
        return len(node.children) > 2 and (sign != "=" or bool(set(".[") & set(target)) or bool(again))

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(f"{node.get_first_leaf().prefix}pass\n")


OWN = {operator.__name__: operator for operator in (DropTranspose, DropTerm, SwapName, SwapMembership, RemoveStatement)}


@dataclass(frozen=True)
class Mutant:
    """The change that an operator makes at its n-th place in a module (relative to the package)."""

    module: str
    line: int
    operator: str
    occurrence: int

    def rank(self, seed: int) -> str:
        return hashlib.sha256(f"{seed} {self.module} {self.operator} {self.occurrence}".encode()).hexdigest()

    def of(self, source: str) -> str:
        return str(mutate_code(source, _operator(self.operator), self.occurrence))

    def diff(self, source: str) -> str:
        where = f"{PACKAGE}/{self.module}:{self.line}"
        before, after = source.splitlines(keepends=True), self.of(source).splitlines(keepends=True)
        return "".join(difflib.unified_diff(before, after, where, f"{where} {self.operator}", n=1))


def _operator(name: str) -> Operator:
    return OWN[name]() if name in OWN else get_operator(f"core/{name}")()


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """All that count, in no particular order."""
    ignored = list(_ignored(ast.parse(source)))
    operators = {name: _operator(name) for name in (*CORE, *OWN)}
    seen: Counter[str] = Counter()
    nodes = [parso.parse(source)]
    while nodes:  # in the order of cosmic-ray's visitor, which counts the places
        node = nodes.pop()
        nodes += reversed(getattr(node, "children", ()))
        for name, operator in operators.items():
            for start, _ in operator.mutation_positions(node):
                occurrence, seen[name] = seen[name], seen[name] + 1
                large = name == "NumberReplacer" and abs(ast.literal_eval(node.value)) >= LARGE
                if not large and not any(first <= start < last for first, last in ignored):
                    yield Mutant(module, start[0], name, occurrence)


def _ignored(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """From where to where a change proves nothing: types, texts, progress, checks of lengths, decorators."""
    for node in ast.walk(tree):
        parts: list[ast.expr | ast.stmt | None] = []
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                parts = [node]
            case ast.FunctionDef() | ast.ClassDef():
                parts = [*node.decorator_list, getattr(node, "returns", None)]
            case ast.arg() | ast.AnnAssign():
                parts = [node.annotation]
            case ast.Raise():
                parts = [node.exc]
            case ast.JoinedStr() | ast.Call(func=ast.Attribute(attr="stage" | "note" | "advance" | "say")):
                parts = [node]
            case ast.keyword(arg="strict"):
                parts = [node.value]
            case ast.BoolOp(values=[*_, before, ast.Constant(value="")]):  # `name or ""` is for the type checker
                yield (
                    (before.end_lineno or 0, before.end_col_offset or 0),
                    (node.end_lineno or 0, node.end_col_offset or 0),
                )
            case ast.Module():
                aliases = (part for part in node.body if isinstance(part, ast.Assign))
                parts = [alias for alias in aliases if isinstance(alias.value, ast.Subscript)]
        for part in parts:
            if part is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno or 0, part.end_col_offset or 0)


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


def sample(modules: Sequence[str], sources: dict[str, str], count: int, seed: int) -> list[Mutant]:
    """The first `count` mutants that are Python, in the order of their hashes; sorted by module."""
    every = sorted((m for name in modules for m in mutants(name, sources[name])), key=lambda m: m.rank(seed))
    taken: list[Mutant] = []
    for mutant in every:
        if len(taken) == count:
            break
        try:
            compile(mutant.of(sources[mutant.module]), mutant.module, "exec")
        except SyntaxError:
            continue
        taken.append(mutant)
    return sorted(taken, key=lambda m: (m.module, m.line, m.operator, m.occurrence))


def tests_of(module: str) -> tuple[str, ...]:
    """Test files that judge a module; none where there are none."""
    own = Path("tests", module).with_name(f"test_{Path(module).name}")
    return tuple(name for name in (str(own), *SHARED_TESTS.get(module, ())[:1]) if Path(name).is_file())


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
        return self.server.stdout.readline().strip() or "lost"

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
        note = "" if name == "total" or tests_of(name) else f" (no tests/{name.replace('/', '/test_')})"
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
        print("\n".join(mutant.diff(sources[mutant.module]) for mutant in wanted))
        return 0
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary:
        return run(wanted, sources, Path(temporary), options)


def run(wanted: Sequence[Mutant], sources: dict[str, str], temporary: Path, options: argparse.Namespace) -> int:
    copies: queue.Queue[Copy] = queue.Queue()
    for number in range(options.jobs):
        copies.put(Copy(temporary / f"{number}" / "lepton", options.python))
    limits: dict[tuple[str, ...], float] = {(): 0.0}
    for files in dict.fromkeys(tests_of(mutant.module) for mutant in wanted):
        if not files:
            continue
        copy = copies.get()
        start = time.monotonic()
        fate = copy.test(files, 600)
        copies.put(copy)
        limits[files] = 3 * (time.monotonic() - start) + 20
        print(f"unchanged: {' '.join(files)}, {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        if fate != "survived":
            print(
                f"{(copy.folder / 'said').read_text()}\nthe tests fail without a fault: {' '.join(files)}",
                file=sys.stderr,
            )
            return 2
    results: list[tuple[Mutant, str]] = []

    def judge(mutant: Mutant) -> str:
        files = tests_of(mutant.module)
        if not files:
            return "survived"
        copy = copies.get()
        try:
            return copy.judge(mutant, sources[mutant.module], files, limits[files])
        finally:
            copies.put(copy)

    diffs = []
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for mutant, fate in zip(wanted, pool.map(judge, wanted), strict=True):
                results.append((mutant, fate))
                said = f"{fate}: {PACKAGE}/{mutant.module}:{mutant.line} {mutant.operator}"
                print(f"{len(results)}/{len(wanted)} {said}", file=sys.stderr, flush=True)
                if fate == "survived":
                    diffs.append(mutant.diff(sources[mutant.module]))
                    if options.survivors:
                        options.survivors.write_text("\n".join(diffs))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print("stopped early", file=sys.stderr)
    print("\n".join([*diffs, table(results)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
