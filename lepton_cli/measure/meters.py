"""What counts joules: the processor's own meter (RAPL, as Linux shows it) and an NVIDIA device's (NVML).

RAPL is under /sys/class/powercap. NVML's total since the driver was loaded (`nvmlDeviceGetTotalEnergyConsumption`,
Volta and later) moves ten times a second or so, RAPL's once a millisecond.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lepton_cli.measure import nvml
from lepton_cli.measure.nvml import Unreadable as Unreadable
from lepton_cli.runtime import PROVIDERS

POWERCAP = Path("/sys/class/powercap")
_MICRO, _MILLI = 1e-6, 1e-3


class Counter(Protocol):
    """Counts joules, and begins again at zero after `range` of them."""

    @property
    def name(self) -> str: ...

    @property
    def range(self) -> float: ...

    def read(self) -> float:
        """Joules since some moment. Raises Unreadable."""


@dataclasses.dataclass(frozen=True)
class Domain:
    """A counter of the processor: its name, its file, and the value in joules after which it begins again at zero."""

    name: str
    file: Path
    range: float

    def read(self) -> float:
        """Joules since some moment. Raises Unreadable."""
        try:
            return int(self.file.read_text()) * _MICRO
        except PermissionError:
            folders = self.file.parent.parent / "intel-rapl:*"
            raise Unreadable(
                f"only root may read {self.file}: sudo chmod a+r {folders}/energy_uj (until the next start)"
            ) from None
        except (OSError, ValueError) as error:
            raise Unreadable(f"{self.file} cannot be read: {error}") from None


@dataclasses.dataclass(frozen=True)
class DeviceCounter:
    """All that an NVIDIA device uses, its memory included."""

    device: nvml.Device
    range: float = math.inf

    @property
    def name(self) -> str:
        return self.device.name

    def read(self) -> float:
        """Joules since the driver was loaded. Raises Unreadable."""
        return self.device.millijoules() * _MILLI


class Meter:
    """Several counters together, as one reading that only grows."""

    def __init__(self, domains: Sequence[Counter]) -> None:
        self.domains = tuple(domains)
        self._last = [domain.read() for domain in domains]
        self._total = 0.0

    def read(self) -> float:
        """Joules since the meter was made. Counters that began again at zero are carried on. Raises Unreadable."""
        for index, domain in enumerate(self.domains):
            now = domain.read()
            step = now - self._last[index]
            self._total += step if step >= 0 else step + domain.range
            self._last[index] = now
        return self._total


def of(provider: str) -> Meter | None:
    """What counts the joules of a provider; `None` where nothing does. Raises Unreadable where it cannot be read."""
    if (full := PROVIDERS.get(provider, provider)) == PROVIDERS["cpu"]:
        return processor()
    if not nvml.runs(full):
        return None
    device = nvml.first()
    return None if device is None else Meter([DeviceCounter(device)])


def processor(root: Path = POWERCAP) -> Meter | None:
    """The processor's meter: every processor package with its memory. `None` where the system exposes none.

    A package's `core` and `uncore` are part of it, and `psys` is the whole board: counting them would count twice.
    Raises Unreadable.
    """
    found: list[Counter] = []
    for folder in sorted(root.glob("intel-rapl:*")):
        name = _text(folder / "name")
        if name is None or not (name.startswith("package") or name == "dram"):
            continue
        file = folder / "max_energy_range_uj"
        limit = _text(file) or ""
        if not limit.isdecimal():
            raise Unreadable(f"{file} does not say where the counter begins again")
        found.append(Domain(name, folder / "energy_uj", int(limit) * _MICRO))
    return Meter(found) if found else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
