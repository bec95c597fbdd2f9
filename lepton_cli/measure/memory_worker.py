"""The process whose memory is measured: reads a job from stdin, runs the model, prints its peak as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from lepton_cli.errors import LeptonError
from lepton_cli.measure import nvml
from lepton_cli.measure.arms import feeds_for
from lepton_cli.runtime import PROVIDERS, Session, onnxruntime


def peak() -> int:
    """Highest resident memory of this process so far, in bytes."""
    try:
        # `ru_maxrss` starts with the parent's memory after a fork; the kernel's own high-water mark does not.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value if sys.platform == "darwin" else value * 1024


def device_memory() -> int | None:
    """Memory in use on the first NVIDIA device, in bytes; `None` when its driver cannot tell."""
    try:
        device = nvml.first()
        return None if device is None else device.memory()
    except nvml.Unreadable:
        return None


def main() -> int:
    """Load, run, report."""
    job = json.load(sys.stdin)
    with np.load(job["feeds"], allow_pickle=False) as stored:
        feeds = {name: stored[f"feed{i}"] for i, name in enumerate(job["names"])}
    onnxruntime()
    on_device = nvml.runs(PROVIDERS.get(job["provider"], job["provider"]))
    device_before = device_memory() if on_device else None
    baseline = peak()
    try:
        session = Session(Path(job["model"]), provider=job["provider"], threads=job["threads"])
        own = feeds_for(session, feeds)
        for _ in range(job["runs"]):
            session.run(own)
    except LeptonError as error:
        print(json.dumps({"error": f"{error.message}: {error.cause}"}))
        return 1
    device_after = device_memory() if device_before is not None else None
    device = None if device_before is None or device_after is None else max(0, device_after - device_before)
    print(json.dumps({"baseline": baseline, "peak": peak(), "device": device}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
