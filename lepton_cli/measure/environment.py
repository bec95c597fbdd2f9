"""The machine and the software: what a number depends on besides the model."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import lepton_cli
from lepton_cli.errors import MissingExtraError
from lepton_cli.measure.results import Environment
from lepton_cli.runtime import onnxruntime, usable_threads

#: Instruction sets that decide how fast integers are, by their names in /proc/cpuinfo (x86 flags, ARM features).
INSTRUCTIONS = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "avx512_fp16": "avx512_fp16",
    "asimd": "neon",
    "asimddp": "neon_dotprod",
    "i8mm": "i8mm",
    "sve": "sve",
}
#: The same on macOS, by sysctl name.
_SYSCTL = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.neon": "neon",
    "hw.optional.arm.FEAT_DotProd": "neon_dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}


def environment() -> Environment:
    """This machine, now."""
    try:
        providers = tuple(str(name) for name in onnxruntime().get_available_providers())
    except MissingExtraError:
        providers = ()
    return Environment(
        lepton=lepton_cli.__version__,
        python=platform.python_version(),
        onnxruntime=version("onnxruntime") or version("onnxruntime-gpu"),
        onnx=version("onnx"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        instructions=instructions(),
        cores=os.cpu_count() or 1,
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


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """First value of every key of /proc/cpuinfo; empty elsewhere than on Linux."""
    found: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return found
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            found.setdefault(key.strip(), value.strip())
    return found


def cpu_name() -> str:
    """Model name of the processor, with family, model and stepping where the name alone says little."""
    info = _cpuinfo()
    name = info.get("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()
    if "cpu family" in info and "model" in info:
        return f"{name} (family {info['cpu family']}, model {info['model']}, stepping {info.get('stepping', '?')})"
    return name


def instructions() -> tuple[str, ...]:
    """Instruction sets of this processor that matter to int8 and fp16, in the order of `INSTRUCTIONS`."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    if flags:
        return tuple(name for flag, name in INSTRUCTIONS.items() if flag in flags)
    return tuple(name for key, name in _SYSCTL.items() if _sysctl(key) == "1")


def _sysctl(name: str) -> str:
    if platform.system() != "Darwin":
        return ""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def memory() -> int:
    """Memory this process may use: the machine's, cut by the container's limit; 0 when unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):
            continue
    return total


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
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
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
