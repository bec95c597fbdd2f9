"""What int8 means on each machine: data types, symmetry, operators. Standard library only.

The table follows what onnxruntime's kernels can use: x86 multiplies uint8 by int8 (VNNI without overflow, older
instruction sets through a 16-bit sum that saturates), ARM and TensorRT want symmetric int8 for both, and the CUDA
provider has no int8 convolution at all.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from lepton_cli.machine import machine

TargetName = Literal["auto", "x86-vnni", "x86", "arm", "cuda", "tensorrt"]


@dataclasses.dataclass(frozen=True)
class Target:
    """How to quantize for one kind of machine, and why."""

    name: str
    why: str
    #: Type of 8-bit activations; weights are always symmetric int8.
    activation: Literal["uint8", "int8"]
    symmetric_activations: bool
    #: 7-bit weights: the sum of two uint8 x int8 products then fits 16 bits.
    reduce_range: bool
    #: False where the provider has no int8 kernels: fp16 pays there instead.
    int8_kernels: bool = True
    #: Whether MatMul and Gemm may keep float outputs (a fused kernel exists for that).
    float_outputs: bool = True


TARGETS: dict[str, Target] = {
    "x86-vnni": Target("x86-vnni", "VNNI multiplies uint8 by int8 without overflow", "uint8", False, False),
    "x86": Target("x86", "without VNNI uint8 x int8 saturates at 16 bits, so weights use 7 bits", "uint8", False, True),
    "arm": Target("arm", "ARM dot products take int8 for both", "int8", True, False),
    "cuda": Target(
        "cuda",
        "the CUDA provider has no int8 convolution: fp16 is what pays there",
        "int8",
        True,
        False,
        int8_kernels=False,
    ),
    "tensorrt": Target(
        "tensorrt",
        "TensorRT takes symmetric int8 for both and fuses by itself",
        "int8",
        True,
        False,
        float_outputs=False,
    ),
}


def resolve(name: TargetName, provider: str = "cpu") -> Target:
    """The target of that name; `auto` is this machine (or the GPU provider the recipe measures on)."""
    if name != "auto":
        return TARGETS[name]
    if provider in ("cuda", "tensorrt"):
        return _because(TARGETS[provider], f"auto: measured on provider `{provider}`")
    here = machine()
    if here.kind == "arm":
        return _because(TARGETS["arm"], "auto: this machine is ARM")
    if here.vnni:
        return _because(TARGETS["x86-vnni"], f"auto: this machine has {', '.join(here.vnni)}")
    return _because(TARGETS["x86"], "auto: this machine has no VNNI")


def _because(target: Target, reason: str) -> Target:
    return dataclasses.replace(target, why=f"{reason}; {target.why}")


def runs_here(target: Target) -> str | None:
    """Why results on this machine do not speak for `target`; `None` when they do."""
    if target.name in ("cuda", "tensorrt"):
        return f"target `{target.name}` is not the CPU the model was measured on"
    here = machine()
    if (target.name == "arm") != (here.kind == "arm"):
        return f"this machine is {here.kind}, not {target.name}: its speed cannot be measured here"
    if target.name == "x86-vnni" and not here.vnni:
        return "this machine has no VNNI: uint8 x int8 sums saturate here, and the model is slower than on the target"
    return None
