"""Execution providers that are packages of their own, beside onnxruntime: OpenVINO's (`onnxruntime-ep-openvino`)."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from typing import Any

#: onnxruntime's name of a provider -> the package that brings it (its module has `_` for `-`), and what it runs on.
PACKAGES = {"OpenVINOExecutionProvider": ("onnxruntime-ep-openvino", "Intel's processors")}


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A provider's package: the CPU devices that it offers here, or why there are none."""

    devices: tuple[Any, ...] = ()
    missing: str = ""
    #: What to do about it.
    fix: str = ""


@functools.cache
def load(ort: Any, full: str) -> Plugin | None:
    """The plugin of a provider, known to onnxruntime from then on; `None` where no package is known to bring it."""
    if full not in PACKAGES:
        return None
    package, runs_on = PACKAGES[full]
    try:
        module = importlib.import_module(package.replace("-", "_"))
        ort.register_execution_provider_library(full, module.get_library_path())
        devices = tuple(device for device in ort.get_ep_devices() if device.ep_name == full and _is_cpu(ort, device))
    except ImportError:
        return Plugin(missing=f"`{package}` is not installed", fix=f"pip install {package} brings it for {runs_on}")
    except Exception as error:  # onnxruntime raises a dozen unrelated types, the system's loader others
        return Plugin(missing=f"`{package}` cannot be loaded: {' '.join(str(error).split())}")
    return Plugin(devices, "" if devices else f"`{package}` offers no CPU here: it takes {runs_on} alone")


def settings(full: str, threads: int) -> dict[str, str]:
    """Options of the provider for so many threads: plugins do not go by the session's."""
    if full == "OpenVINOExecutionProvider":
        return {"load_config": json.dumps({"CPU": {"INFERENCE_NUM_THREADS": str(threads)}})}
    return {}


def _is_cpu(ort: Any, device: Any) -> bool:
    """Not a GPU or NPU, and no device that chooses among them."""
    kind, name = device.device.type, device.ep_metadata.get("ov_device", "CPU")
    return bool(kind == ort.OrtHardwareDeviceType.CPU and name == "CPU")
