"""NVIDIA's management library: what a device uses of energy and memory. Through nvidia-ml-py, of the `gpu` extra."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any


class Unreadable(Exception):
    """The machine has a meter that cannot be read, or no longer. The message says why, and what to do."""


def runs(provider: str) -> bool:
    """Whether an execution provider (onnxruntime's name) computes on an NVIDIA device."""
    return provider.startswith(("CUDA", "Tensorrt", "NvTensorRT"))


@dataclasses.dataclass(frozen=True)
class Device:
    """One device. All that it does is counted, whoever causes it."""

    name: str
    handle: Any

    def millijoules(self) -> int:
        """Since the driver was loaded. Raises Unreadable."""
        return int(_asked("nvmlDeviceGetTotalEnergyConsumption", self.handle))

    def memory(self) -> int:
        """Bytes in use. Raises Unreadable."""
        return int(_asked("nvmlDeviceGetMemoryInfo", self.handle).used)


def first() -> Device | None:
    """The device that onnxruntime calls 0; `None` where there is no driver. Raises Unreadable."""
    library = _library()
    if library is None:
        return None
    # CUDA counts among the devices that it may see, NVML among all.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not visible or visible == "-1":
        return None
    known = visible.isdecimal()
    handle = (
        _asked("nvmlDeviceGetHandleByIndex", int(visible)) if known else _asked("nvmlDeviceGetHandleByUUID", visible)
    )
    return Device(str(_asked("nvmlDeviceGetName", handle)), handle)


@functools.cache
def _library() -> Any | None:
    """The library, started; `None` without a driver. Raises Unreadable where the Python package is missing."""
    try:
        import pynvml
    except ImportError:
        raise Unreadable("reading an NVIDIA device needs nvidia-ml-py: pip install 'lepton-cli[gpu]'") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _asked(name: str, *arguments: object) -> Any:
    library = _library()
    assert library is not None, "a device is found through it"
    try:
        return getattr(library, name)(*arguments)
    except library.NVMLError as error:
        raise Unreadable(f"the NVIDIA driver does not tell ({name}): {error}") from None
