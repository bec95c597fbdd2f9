"""Everything about a machine that makes runs fail or numbers wrong, each with its fix."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import get_clock_info, perf_counter_ns
from typing import Literal

from lepton_cli import plugin, units
from lepton_cli.cache import default_folder
from lepton_cli.errors import LeptonError, MissingExtraError
from lepton_cli.machine import machine, usable_threads
from lepton_cli.measure import environment
from lepton_cli.progress import Progress, Silent

#: Extra that some command or option asks for -> the package that shows it is installed, and what it is for.
_EXTRAS = {
    "images": ("pillow", "image folders"),
    "tables": ("pyarrow", "parquet tables"),
    "text": ("rapidfuzz", "metrics of text, `cer` and `wer`"),
    "tune": ("optuna", "`storage:` of `lepton tune`, shared by several machines"),
    "train": ("torch", "steps that train, such as `distill`"),
    "tools": ("onnxruntime-tools", "`engine: onnxruntime-tools` of the step `fuse`"),
}
_DISK = 5 * 10**9


@dataclasses.dataclass(frozen=True)
class Check:
    """One fact about the machine. `fix` is empty where there is nothing to do."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def checks(
    provider: str | None = None,
    *,
    progress: Progress | None = None,
    noise_seconds: float = 5.0,
    cache: Path | None = None,
) -> list[Check]:
    """All checks. `provider`: one that must start; otherwise every installed one is tried.

    `cache` is the folder for reusable results; without it, the default place is checked. `noise_seconds=0` leaves the
    A/A test out.
    """
    progress = progress or Silent()
    found: list[Check] = []
    with progress.stage("checking", None) as stage:
        for check in _software(provider, cache):
            found.append(check)
            stage.advance()
    if noise_seconds > 0 and not any(c.name == "onnxruntime" and c.status == "fail" for c in found):
        with progress.stage("noise of this machine", None):
            found.append(_noise(noise_seconds))
    return found


def _software(provider: str | None, cache: Path | None) -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield _onnxruntime()
    if environment.version("onnxruntime") or environment.version("onnxruntime-gpu"):
        yield _telemetry()
        yield from _providers(provider)
    yield _cores()
    yield _instructions()
    yield _governor()
    yield _load()
    yield _timer()
    yield from _energy()
    yield _cache(cache)
    yield _disk()
    yield from _extras()


def _onnxruntime() -> Check:
    cpu, gpu = environment.version("onnxruntime"), environment.version("onnxruntime-gpu")
    if cpu and gpu:
        return Check(
            "onnxruntime",
            "fail",
            f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of lepton-cli[cpu] and lepton-cli[gpu]",
        )
    if not cpu and not gpu:
        return Check("onnxruntime", "fail", "not installed", "pip install 'lepton-cli[cpu]' (or 'lepton-cli[gpu]')")
    return Check("onnxruntime", "ok", f"{'onnxruntime' if cpu else 'onnxruntime-gpu'} {cpu or gpu}")


#: Starts onnxruntime the way lepton does, in a process without any setting, and lists what it holds open.
_TELEMETRY_PROBE = """
import json, os, sys
from pathlib import Path
from lepton_cli.runtime import Session, onnxruntime
onnxruntime()
Session(bytes.fromhex(sys.argv[1]))
folder = Path('/proc/self/fd')
links = [os.readlink(link) for link in folder.iterdir() if link.is_symlink()] if folder.exists() else []
print(json.dumps([link for link in links if link.startswith('socket:') or 'onnxruntime.db' in link]))
"""


def _telemetry() -> Check:
    """onnxruntime's telemetry queues its events in a database in the user's cache folder and opens sockets to send
    them: a fresh process with a session has neither when telemetry is off."""
    root = str(Path(environment.__file__).resolve().parents[2])
    inherited = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", _TELEMETRY_PROBE, two_nodes().hex()]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True, env={**inherited, "PYTHONPATH": root}
        )
        held = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        return Check("telemetry", "warn", f"could not be checked: {type(error).__name__}")
    if held:
        found = f"onnxruntime holds {', '.join(held)}"
        fix = "install onnxruntime 1.31 again: this one does not obey ORT_DISABLE_TELEMETRY=1, which lepton sets"
        return Check("telemetry", "fail", found, fix)
    return Check("telemetry", "ok", "off: onnxruntime opens no event database and no socket")


def _providers(wanted: str | None) -> Iterator[Check]:
    """Each provider really started on a model of two nodes that may not fall back to the CPU."""
    import numpy as np

    from lepton_cli.runtime import PROVIDERS, Session, library_error, onnxruntime

    short = {full: name for name, full in PROVIDERS.items()}
    installed = [str(name) for name in onnxruntime().get_available_providers()]
    # onnxruntime lists Azure's remote provider everywhere; it runs nothing here.
    installed += [
        name for name, (package, _) in plugin.PACKAGES.items() if environment.version(package) and name not in installed
    ]
    names = [wanted] if wanted else [short.get(name, name) for name in installed if name != "AzureExecutionProvider"]
    for name in names:
        status: Literal["warn", "fail"] = "fail" if wanted or name == "cpu" else "warn"
        try:
            Session(two_nodes(), provider=name, fallback=False).run({"x": np.ones((2, 8), np.float32)})
        except LeptonError as error:
            cause = error.cause or library_error(PROVIDERS.get(name, name)) or ""
            yield Check(f"provider {name}", status, f"{error.message}: {cause}".rstrip(": "), _provider_fix(name))
        else:
            yield Check(f"provider {name}", "ok", "started and ran two nodes")


def _provider_fix(name: str) -> str:
    if name in ("cuda", "tensorrt"):
        return (
            "needs an NVIDIA driver and lepton-cli[gpu] instead of lepton-cli[cpu]; "
            "the CUDA and cuDNN libraries come with pip install 'onnxruntime-gpu[cuda,cudnn]'"
            + ("; TensorRT is installed by itself, as NVIDIA describes" if name == "tensorrt" else "")
        )
    if name == "openvino":
        return "pip install onnxruntime-ep-openvino (for Intel's processors), or leave it out of `providers`"
    return "install an onnxruntime build that has it, or leave it out of `providers`"


def _cores() -> Check:
    usable, cores = usable_threads(), machine().cores
    found = f"{usable} of {cores} usable" + (" (affinity or container quota)" if usable < cores else "")
    return Check("cores", "ok", found)


def _instructions() -> Check:
    from lepton_cli.quantize import targets

    target = targets.resolve("auto")
    names = ", ".join(machine().instructions) or "none known"
    found = f"{names}; `target: auto` chooses {target.name}"
    if target.name == "x86":
        return Check("instructions", "warn", found, "int8 gains little without VNNI: weights use 7 bits here")
    return Check("instructions", "ok", found)


def _governor() -> Check:
    now = environment.governor()
    if now is None:
        return Check("governor", "ok", "not told by this system (a virtual machine, perhaps)")
    if now != "performance":
        return Check("governor", "warn", now, f"echo performance | sudo tee {environment.GOVERNORS}   while measuring")
    return Check("governor", "ok", now)


def _load() -> Check:
    share = environment.others(0.5)
    if share is None:
        return Check("load", "ok", "not told by this system")
    found = f"other work uses {100 * share:.0f} % of this machine"
    if share > 0.2:
        return Check("load", "warn", found, "stop other work while measuring")
    return Check("load", "ok", found)


def _timer() -> Check:
    """Smallest step that the clock really makes."""
    steps = []
    for _ in range(200):
        before = perf_counter_ns()
        while (after := perf_counter_ns()) == before:
            pass
        steps.append(after - before)
    smallest = min(steps)
    found = f"{get_clock_info('perf_counter').implementation}, steps of {smallest} ns"
    if smallest > 1000:
        return Check("timer", "warn", found, "times below 0.1 ms are coarse here")
    return Check("timer", "ok", found)


def _energy() -> Iterator[Check]:
    """Whether joules can be read: an option, so a machine without a meter is not a fault."""
    from lepton_cli.measure import meters, nvml
    from lepton_cli.runtime import onnxruntime

    installed = environment.version("onnxruntime-gpu") is not None
    devices = [name for name in onnxruntime().get_available_providers() if nvml.runs(name)] if installed else []
    for provider in ("cpu", *devices[:1]):
        what = "energy" if provider == "cpu" else "energy of the device"
        try:
            meter = meters.of(provider)
        except meters.Unreadable as error:
            said, _, fix = str(error).partition(": ")
            yield Check(what, "warn", said, fix)
            continue
        if meter is None:
            yield Check(what, "ok", "no meter here (virtual machines have none): energy is not measured")
        else:
            yield Check(what, "ok", f"the meter counts {', '.join(domain.name for domain in meter.domains)}")


def _cache(folder: Path | None) -> Check:
    folder = folder or default_folder()
    if folder is None:
        return Check("cache", "ok", "switched off (LEPTON_CACHE is empty)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        return Check("cache", "warn", f"{folder} cannot be written: {reason}", "export LEPTON_CACHE=/a/writable/folder")
    return Check("cache", "ok", str(folder))


def _disk() -> Check:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    found = f"{units.format_size(free)} free in {folder}"
    if free < _DISK:
        return Check("disk", "warn", found, "export TMPDIR=/a/folder/with/room   large models are written there")
    return Check("disk", "ok", found)


def _extras() -> Iterator[Check]:
    for extra, (package, purpose) in _EXTRAS.items():
        if version := environment.version(package):
            yield Check(f"extra {extra}", "ok", f"{package} {version}")
        else:
            found = f"not installed, only needed for {purpose}"
            yield Check(f"extra {extra}", "ok", found, f"pip install 'lepton-cli[{extra}]'")


def _noise(seconds: float) -> Check:
    """The same model against itself: what difference this machine cannot tell from none."""
    import numpy as np

    from lepton_cli.measure.latency import compare
    from lepton_cli.measure.spec import LatencySpec

    model = layers(8, 512)
    feeds = {"x": np.ones((8, 512), np.float32)}
    spec = LatencySpec(precision=units.Share(0.0), time=units.Seconds(seconds))
    try:
        change = compare({"one": model, "again": model}, lambda batch: feeds, spec).changes[0]
    except (LeptonError, MissingExtraError) as error:
        return Check("noise", "fail", error.message)
    smallest = max(abs(change.low - 1), abs(change.high - 1))
    found = (
        f"A/A ratio {change.ratio:.4f} [{change.low:.4f}, {change.high:.4f}] in {seconds:.0f} s: "
        f"differences below {100 * smallest:.2g} % cannot be decided here"
    )
    if smallest > 0.03:
        return Check("noise", "warn", found, "stop other work, or measure longer (`time:` in `latency`)")
    return Check("noise", "ok", found)


def two_nodes() -> bytes:
    """A model of MatMul and Relu, 8 wide."""
    return layers(1, 8)


def layers(count: int, width: int) -> bytes:
    """A model of `count` MatMul and Relu pairs on input `x` [N, width]."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32) / np.float32(width**0.5)
    nodes = []
    for index in range(count):
        source, target = "x" if index == 0 else f"h{index}", "y" if index == count - 1 else f"h{index + 1}"
        nodes.append(helper.make_node("MatMul", [source, "w"], [f"m{index}"], f"matmul_{index}"))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [target], f"relu_{index}"))
    graph = helper.make_graph(
        nodes,
        "doctor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
