"""Any convolutional models through every arm: speed, exactness part by part, size, and kernels left in float.

What `quantization.py --models` does. A model is a process of its own with a time limit, an arm that fails is named with
the reason. Speeds are paired: all arms in turns in one run, then lepton against the fastest other one alone; with one
thread the clock counts the time of the processor, which other processes do not take.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from quantization_arms import CAUSE, context, lepton, prepared, with_onnxruntime, with_onnxruntime_dynamic, with_peer
from quantization_cases import Feeds

from lepton_cli.data.batching import layout
from lepton_cli.data.memory import Arrays
from lepton_cli.data.open import synthetic
from lepton_cli.graph.feeds import sized
from lepton_cli.model import io
from lepton_cli.probe import parts
from lepton_cli.quantize import profiling
from lepton_cli.quantize.prepare import lifted
from lepton_cli.runtime import Session, onnxruntime
from lepton_cli.tensors import TensorInfo
from lepton_cli.timing import compare as timing

#: Samples to calibrate with, and others to judge by.
CALIBRATION, TEST = 32, 16
#: lepton is as fast at this share of the fastest arm's speed, and as exact with so many decibels less.
FAST, EXACT = 0.97, 0.5
#: Beyond this many decibels rounding of float numbers decides.
CEILING = 80.0
OURS = "lepton"


@dataclasses.dataclass
class Arm:
    """A quantized model and what is known of it; `failed`: why there is none."""

    model: ir.Model | None = None
    failed: str = ""
    said: str = ""
    seconds: float = 0.0
    #: Size of the file as a share of the original's; kernels of the optimised graph.
    size: float = 0.0
    int8: int = 0
    in_float: int = 0
    #: Decibels by part of an output, and of each whole output.
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    whole: dict[str, float] = dataclasses.field(default_factory=dict)
    #: Speed over float by batch size.
    speed: dict[int, float] = dataclasses.field(default_factory=dict)


def files(given: Iterable[Path]) -> list[Path]:
    """The files, and those in the folders."""
    return [file for at in given for file in (sorted(at.rglob("*.onnx")) if at.is_dir() else [at])]


def unsuited(model: ir.Model) -> str:
    """Why a model is not compared: no float convolution with weights."""
    if any(node.op_type.endswith(("QuantizeLinear", "Integer")) or node.op_type.startswith("QLinear")
           for node in model.graph.all_nodes()):  # fmt: skip
        return "quantized already"
    held = [
        node.inputs[1].const_value.dtype
        for node in lifted(model).graph.all_nodes()
        if node.op_type in ("Conv", "FusedConv")
        if node.inputs[1] is not None and node.inputs[1].const_value is not None
    ]
    if ir.DataType.FLOAT in held:
        return ""
    return "no float convolution" if not held else "convolutions of another type"


# --- samples ----------------------------------------------------------------------------------------------------------


def samples(model: ir.Model, data: Path | None, pixels: tuple[float, float], count: int) -> Feeds:
    """Feeds with samples on axis 0: arrays of an NPZ, pictures of a folder where an input takes them, else what lepton
    makes up. `pixels`: from black to white."""
    inputs = sized(model)
    if data is not None and data.suffix == ".npz":
        with np.load(data) as arrays:
            return {info.name: arrays[info.name][:count] for info in inputs}
    batches = [part.feeds for part in synthetic(inputs, seed=1, samples=count, batch=1).batches()]
    feeds: Feeds = {info.name: np.concatenate([part[info.name] for part in batches]) if info.shape != ()
                    else batches[0][info.name] for info in inputs}  # fmt: skip
    for info in inputs:
        if data is not None and image(info):
            low, high = (0.0, 255.0) if info.dtype == "uint8" else pixels
            found = read(data, feeds[info.name].shape)
            feeds[info.name] = (found * np.float32((high - low) / 255) + np.float32(low)).astype(info.dtype)
    return feeds


def image(info: TensorInfo) -> bool:
    """Whether an input takes pictures: 1, 3 or 4 channels, first or last, of some height and width."""
    shape = info.shape or ()
    if len(shape) != 4 or not (info.dtype.startswith("float") or info.dtype == "uint8"):
        return False
    sides = [size for size in shape[1:] if isinstance(size, int) and size not in (1, 3, 4)]
    return len(sides) == 2 and min(sides) >= 16 and (shape[1] in (1, 3, 4) or shape[3] in (1, 3, 4))


def read(folder: Path, shape: Sequence[int]) -> NDArray[np.float32]:
    """Pictures of a folder, scaled to the size, as many as the shape says (the first again where there are fewer)."""
    from PIL import Image

    names = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    last = shape[1] not in (1, 3, 4)
    height, width, channels = shape[1:] if last else (*shape[2:], shape[1])
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    found = np.empty((shape[0], height, width, channels), np.float32)
    for number in range(shape[0]):
        picture = Image.open(names[number % len(names)]).convert(mode)
        scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
        found[number] = np.asarray(scaled, np.float32).reshape(height, width, channels)
    return found if last else np.ascontiguousarray(found.transpose(0, 3, 1, 2))


def cut(feeds: Feeds, start: int, stop: int) -> Feeds:
    """Some of the samples; a number that goes with all of them stays."""
    return {name: array[start:stop] if array.ndim else array for name, array in feeds.items()}


# --- arms -------------------------------------------------------------------------------------------------------------


def make(path: Path, data: Arrays, threads: int, folder: Path, peers: Mapping[str, Path], only: str) -> dict[str, Arm]:
    """Every arm's model or why there is none."""
    onnxruntime()
    from onnxruntime.quantization import QuantType

    source = prepared(path, folder)
    kinds = {"onnxruntime U8S8": QuantType.QInt8, "onnxruntime U8U8": QuantType.QUInt8}
    ways: dict[str, Callable[[], tuple[ir.Model, str]]] = {OURS: lambda: lepton("quantize.static", path, data, threads)}
    for name, kind in kinds.items():
        static = {"activation_type": QuantType.QUInt8, "weight_type": kind, "per_channel": True}
        ways[name] = partial(_silent, with_onnxruntime, source, data, folder / f"{name}.onnx", static)
    ways["onnxruntime dynamic"] = partial(_silent, with_onnxruntime_dynamic, source, folder / "dynamic.onnx")
    for tool, python in peers.items():
        ways[tool] = partial(_peer, tool, python, path, data, folder)
    found = {}
    for name, way in ways.items():
        if only and not any(word in name for word in only.split(",")):
            continue
        started = time.perf_counter()
        try:
            model, said = way()
            Session(io.to_bytes(model), threads=threads)  # does it load?
            found[name] = Arm(model, said=said)
        except Exception as error:  # whatever a tool raises is its answer
            found[name] = Arm(failed=" ".join(f"{type(error).__name__}: {error}".split())[:CAUSE])
        found[name].seconds = time.perf_counter() - started
    return found


def _silent(way: Callable[..., ir.Model], *arguments: Any) -> tuple[ir.Model, str]:
    return way(*arguments), ""


def _peer(tool: str, python: Path, path: Path, data: Arrays, folder: Path) -> tuple[ir.Model, str]:
    made = with_peer(tool, python, path, data, folder / f"{tool}.onnx", transformer=False)
    if made is None:
        raise RuntimeError("see above")
    return made, ""


# --- judged -----------------------------------------------------------------------------------------------------------


def run(model: ir.Model, feeds: Sequence[Feeds], threads: int) -> list[Feeds]:
    """Outputs, feed by feed."""
    session = Session(io.to_bytes(model), threads=threads)
    return [dict(session.run(feed)) for feed in feeds]


def exactness(model: ir.Model, wanted: Sequence[Feeds], found: Sequence[Feeds]) -> tuple[dict[str, float], ...]:
    """Decibels by part of every float output, and by output."""
    try:
        ways = parts.segments(model)
    except Exception:  # shapes that are not known: columns have to do
        ways = {}
    by_part: dict[str, float] = {}
    by_output: dict[str, float] = {}
    for name in wanted[0]:
        if not np.issubdtype(wanted[0][name].dtype, np.floating):
            continue
        division, signal, noise = parts.Division(ways.get(name, ())), 0.0, 0.0
        for one, other in zip(wanted, found, strict=True):
            exact = np.nan_to_num(one[name].astype(np.float64), posinf=0, neginf=0)
            same = one[name].shape == other[name].shape
            error = exact - (np.nan_to_num(other[name].astype(np.float64), posinf=0, neginf=0) if same else 0.0)
            division.add(exact, error, samples=len(exact) if exact.ndim else 1)
            signal, noise = signal + float(np.square(exact).sum()), noise + float(np.square(error).sum())
        by_output[name] = decibel(signal, noise)
        by_part |= {f"{name}{part.where}": decibel(part.signal, part.noise) for part in division.parts()}
    return by_part, by_output


def decibel(signal: float, noise: float) -> float:
    """Signal over noise, at most `CEILING`."""
    if not signal or not noise:
        return CEILING if noise <= 0 else -CEILING
    return min(CEILING, 10 * math.log10(signal / noise))


def timed(models: Sequence[ir.Model], feeds: Feeds, threads: int, seconds: float) -> timing.Rounds:
    """All models in turns."""

    def opener(model: ir.Model) -> timing.Opener:
        session = Session(io.to_bytes(model), threads=threads)
        return lambda: timing.Warm(session.caller(feeds))

    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    rule = timing.StopRule(0.01, seconds, fewest=5, share=0, setup=0, runs=10)
    return timing.compare([opener(model) for model in models], rule, np.random.default_rng(0), clock=clock)


def measure(path: Path, options: Any) -> dict[str, Any]:
    """All that is found about one model."""
    model = io.load(path).model
    if reason := unsuited(model):
        return {"model": path.stem, "left": reason}
    where = layout(sized(model))
    if where.alone:
        return {"model": path.stem, "left": "its inputs have no axis of samples"}
    if any(where.axes.values()):
        return {"model": path.stem, "left": "an input has its samples on another axis than the first"}
    first = io.inputs(model)[0].shape or ()
    fixed = first[0] if first and isinstance(first[0], int) else None
    size = fixed or 1
    judged = TEST if size == 1 else max(1, TEST // size) * size
    needed = CALIBRATION // size * size + judged
    batches = [b for b in options.batch if fixed in (None, b)] or [size]
    feeds = samples(model, options.data, tuple(options.pixels), max(needed, *batches))
    calibration, test = cut(feeds, 0, needed - judged), cut(feeds, needed - judged, needed)
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder = Path(temporary)
        data = Arrays(calibration)
        made = make(path, data, options.threads, folder, dict(options.peer), options.arms)
        pieces = [cut(test, at, at + size) for at in range(0, judged, size)]
        wanted = run(model, pieces, options.threads)
        original = len(io.to_bytes(model))
        for arm in made.values():
            if arm.model is None:
                continue
            try:
                arm.parts, arm.whole = exactness(model, wanted, run(arm.model, pieces, options.threads))
                placed = profiling.placement(arm.model, context(model, data, options.threads, folder))
                arm.size, arm.int8, arm.in_float = len(io.to_bytes(arm.model)) / original, placed.int8, placed.in_float
            except Exception as error:
                arm.model, arm.failed = None, " ".join(f"{type(error).__name__}: {error}".split())[:CAUSE]
        if options.keep:
            for name, arm in made.items():
                if arm.model is not None:
                    (options.keep / f"{path.stem}-{name}.onnx").write_bytes(io.to_bytes(arm.model))
        ready = {name: arm for name, arm in made.items() if arm.model is not None}
        heads = {}
        for batch in batches:
            found = timed([model, *(arm.model for arm in ready.values() if arm.model)], cut(feeds, 0, batch),
                          options.threads, options.seconds)  # fmt: skip
            for number, arm in enumerate(ready.values(), 1):
                arm.speed[batch] = 1 / found.ratio(number).value
            heads[batch] = against(model, ready, batch, cut(feeds, 0, batch), options)
    told = {name: {key: value for key, value in vars(arm).items() if key != "model"} for name, arm in made.items()}
    return {"model": path.stem, "arms": told, "against": heads}


def against(model: ir.Model, arms: Mapping[str, Arm], batch: int, feeds: Feeds, options: Any) -> dict[str, Any]:
    """Speed of lepton's arm over the fastest other one, float among them, with its interval."""
    others = {"float": model, **{name: arm.model for name, arm in arms.items() if name != OURS and arm.model}}
    fastest = max(others, key=lambda name: 1.0 if name == "float" else arms[name].speed[batch])
    ours = arms[OURS].model if OURS in arms else None
    if ours is None:
        return {"fastest": fastest, "ratio": 0.0, "low": 0.0, "high": 0.0}
    found = timed([others[fastest], ours], feeds, options.threads, options.seconds).ratio(1)
    return {"fastest": fastest, "ratio": 1 / found.value, "low": 1 / found.high, "high": 1 / found.low}


# --- told -------------------------------------------------------------------------------------------------------------


def fast(row: Mapping[str, Any]) -> bool:
    """At least as fast as the fastest other arm at every batch size."""
    return all(head["ratio"] >= FAST for head in row["against"].values())


def behind(row: Mapping[str, Any]) -> list[str]:
    """Parts of which another static quantization, or one that is no slower, is more exact."""
    arms, said = row["arms"], []
    own = arms[OURS]
    if own["failed"]:
        return [own["failed"]]
    for other, arm in arms.items():
        if other == OURS or arm["failed"]:
            continue
        slower = any(arm["speed"][batch] < FAST * own["speed"][batch] for batch in arm["speed"])
        if other == "onnxruntime dynamic" and slower:
            continue  # convolutions in float: exact, and no gain
        for part, value in arm["parts"].items():
            mine = own["parts"].get(part, -CEILING)
            if mine < value - EXACT:
                said.append(f"{part}: {mine:.1f} against {value:.1f} of {other}")
    return said


def worst(arm: Mapping[str, Any], key: str = "parts") -> str:
    """Decibels of the worst part, or of the worst output."""
    return "failed" if arm["failed"] else f"{min(arm[key].values(), default=CEILING):.1f} dB"


def show(row: Mapping[str, Any]) -> None:
    """One model's lines."""
    if "left" in row:
        print(f"\n{row['model']}: {row['left']}", flush=True)
        return
    print(f"\n### {row['model']}\n")
    print("| arm | speed over float | worst part | worst output | size | int8, float kernels | s |")
    print("|---|---|---|---|---|---|---|")
    for name, arm in row["arms"].items():
        if arm["failed"]:
            print(f"| {name} | failed: {arm['failed']} | | | | | {arm['seconds']:.0f} |")
            continue
        speeds = ", ".join(f"{value:.2f}x (batch {batch})" for batch, value in arm["speed"].items())
        print(
            f"| {name} | {speeds} | {worst(arm)} | {worst(arm, 'whole')} | {arm['size']:.2f} "
            f"| {arm['int8']}, {arm['in_float']} | {arm['seconds']:.0f} |"
        )
    print()
    for batch, head in row["against"].items():
        found = f"{head['ratio']:.3f} ({head['low']:.3f} to {head['high']:.3f})"
        print(f"lepton / {head['fastest']} at batch {batch}: {found}")
    print(row["arms"][OURS]["said"])
    for text in behind(row)[:6]:
        print(f"less exact: {text}")
    sys.stdout.flush()


def summary(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of all models, and the counts."""
    whole = [row for row in rows if "left" not in row]
    print("\n| model | batch | lepton | fastest other arm | lepton / it | worst part | of the best other static |")
    print("|---|---|---|---|---|---|---|")
    for row in whole:
        arms = row["arms"]
        own = arms[OURS]
        rest = [arm for name, arm in arms.items() if name not in (OURS, "onnxruntime dynamic") and not arm["failed"]]
        best = max(rest, key=lambda arm: min(arm["parts"].values(), default=CEILING), default=None)
        for batch, head in row["against"].items():
            other = head["fastest"]
            theirs = 1.0 if other == "float" else arms[other]["speed"][batch]
            mine = "failed" if own["failed"] else f"{own['speed'][batch]:.2f}x"
            print(
                f"| {row['model']} | {batch} | {mine} | {other} {theirs:.2f}x | {head['ratio']:.2f} "
                f"| {worst(own)} | {worst(best) if best else '-'} |"
            )
    print(
        f"\nlepton at least as fast (within 3 %) on {sum(map(fast, whole))} of {len(whole)}, "
        f"as exact (within {EXACT} dB, every part) on {sum(not behind(row) for row in whole)} of {len(whole)}"
    )


def compare(options: Any) -> None:
    """Every model in a process of its own, then the table."""
    if options.worker:
        options.json.write_text(json.dumps(measure(options.models[0], options), default=str))
        return
    rows = []
    for path in files(options.models):
        row = _guarded(path, options)
        rows.append(_with_numbers(row))
        show(rows[-1])
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    summary(rows)


def _with_numbers(row: dict[str, Any]) -> dict[str, Any]:
    """Batch sizes as numbers again."""
    for arm in row.get("arms", {}).values():
        arm["speed"] = {int(batch): value for batch, value in arm["speed"].items()}
    row["against"] = {int(batch): value for batch, value in row.get("against", {}).items()}
    return row


def _guarded(path: Path, options: Any) -> dict[str, Any]:
    """One model in a process, within its time."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        found = Path(folder) / "row.json"
        command = [sys.executable, str(Path(__file__).with_name("quantization.py").resolve()), *sys.argv[1:]]
        command += ["--worker", "--models", str(path.resolve()), "--json", str(found)]
        with subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process:
            try:
                out, _ = process.communicate(timeout=options.limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return {"model": path.stem, "left": f"not done after {options.limit:.0f} s"}
        if process.returncode or not found.exists():
            lines = out.strip().splitlines() or ["no word"]
            return {"model": path.stem, "left": f"failed ({process.returncode}): {lines[-1][:CAUSE]}"}
        row: dict[str, Any] = json.loads(found.read_text())
        return row
