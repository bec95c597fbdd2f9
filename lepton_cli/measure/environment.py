"""The machine and the software: what a number depends on besides the model."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

from lepton_cli.errors import MissingExtraError
from lepton_cli.machine import machine, memory, usable_threads
from lepton_cli.measure.results import Environment
from lepton_cli.runtime import onnxruntime
from lepton_cli.version import __version__

#: Where Linux tells each core's frequency governor, and takes another one.
GOVERNORS = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"


def environment() -> Environment:
    """This machine, now."""
    here = machine()
    try:
        providers = tuple(str(name) for name in onnxruntime().get_available_providers())
    except MissingExtraError:
        providers = ()
    return Environment(
        lepton=__version__,
        python=platform.python_version(),
        onnxruntime=version("onnxruntime") or version("onnxruntime-gpu"),
        onnx=version("onnx"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=here.processor,
        instructions=here.instructions,
        cores=here.cores,
        usable_cores=usable_threads(),
        memory=memory(),
        providers=providers,
        warnings=tuple(warnings()),
    )


def version(package: str) -> str | None:
    """Installed version of a package, or `None`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def warnings() -> list[str]:
    """What makes numbers from this machine doubtful."""
    found = []
    if version("onnxruntime") and version("onnxruntime-gpu"):
        found.append("onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: keep one")
    if (now := governor()) not in (None, "performance"):
        found.append(f"the CPU frequency governor is `{now}`, not `performance`")
    if (share := others() or 0.0) > 0.2:
        found.append(f"other work uses {100 * share:.0f} % of this machine")
    return found


def governor() -> str | None:
    """Frequency governor of the first core; `None` where the system does not tell (virtual machines)."""
    try:
        return Path(GOVERNORS.replace("*", "0")).read_text().strip()
    except OSError:
        return None


def others(seconds: float = 0.1) -> float | None:
    """Share of the machine that other processes (or other guests of the host) use, looked at for a moment.

    The load average would count this process's own work of the last minute. `None` where the system does not tell.
    """
    before = _processor_time()
    if before is None:
        return None
    own = time.process_time()
    time.sleep(seconds)
    after = _processor_time()
    if after is None or after[1] <= before[1]:
        return None
    own_ticks = (time.process_time() - own) * os.sysconf("SC_CLK_TCK")
    return float(min(1.0, max(0.0, (after[0] - before[0] - own_ticks) / (after[1] - before[1]))))


def _processor_time() -> tuple[int, int] | None:
    """Busy and total time of all cores since the start, in ticks."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(fields) - fields[3] - fields[4], sum(fields)
