"""The machine that this process runs on: processor, instruction sets, cores. Probed once. Standard library only."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Literal

#: Instruction sets that decide how fast integers are, by Linux's names (x86 flags, ARM features), as people say them.
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
#: Instruction sets that multiply uint8 by int8 without overflow.
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@dataclasses.dataclass(frozen=True)
class Machine:
    """What decides how fast a model runs here; part of the key of everything that was measured."""

    #: Name of the processor, with family, model and stepping where the name alone says little.
    processor: str
    kind: Literal["x86", "arm"]
    #: Instruction sets of `INSTRUCTIONS`, in its order.
    instructions: tuple[str, ...]
    cores: int

    @property
    def vnni(self) -> tuple[str, ...]:
        """Instruction sets that multiply uint8 by int8 without overflow."""
        return tuple(sorted(_VNNI & set(self.instructions)))

    @property
    def vector_block(self) -> int:
        """Channels that onnxruntime's CPU convolutions compute together: 16 with AVX-512, else 8."""
        return 16 if "avx512f" in self.instructions else 8


@functools.cache
def machine() -> Machine:
    """This machine."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return Machine(
        processor=_processor(info),
        kind="arm" if platform.machine().lower() in ("aarch64", "arm64", "armv7l") else "x86",
        instructions=tuple(name for flag, name in INSTRUCTIONS.items() if flag in flags)
        if flags
        else tuple(name for key, name in _SYSCTL.items() if _sysctl(key) == "1"),
        cores=os.cpu_count() or 1,
    )


def usable_threads() -> int:
    """Threads this process may really use: its CPU affinity, cut by the container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, round(quota)) if quota else cores)


def memory() -> int:
    """Bytes of memory this process may use: the machine's, cut by the container's limit; 0 when unknown."""
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


def _processor(info: dict[str, str]) -> str:
    name = info.get("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()
    if "cpu family" in info and "model" in info:
        return f"{name} (family {info['cpu family']}, model {info['model']}, stepping {info.get('stepping', '?')})"
    return f"{name} ({info['CPU part']})" if "CPU part" in info else name


def _sysctl(name: str) -> str:
    if platform.system() != "Darwin":
        return ""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cgroup_quota() -> float | None:
    """Cores granted by cgroup v2 or v1, or `None` without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_v1 = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_v1 = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return limit_v1 / period_v1 if limit_v1 > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
