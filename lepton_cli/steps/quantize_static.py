"""Quantize weights and activations to int8 with ranges from calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lepton_cli.steps.base import Context, Outcome
from lepton_cli.steps.base import Params as BaseParams
from lepton_cli.values import Points, Strict

if TYPE_CHECKING:
    import onnx_ir as ir


class AccuracyGuard(Strict):
    """How much accuracy may be lost."""

    max_drop: Points
    fallback: Literal["float", "int16"] = Field(
        default="float",
        description="int16: activations of 16 bits are tried before float; onnxruntime's CPU provider computes both "
        "in float, other runtimes have kernels for it",
    )


class Params(BaseParams):
    """Quantize weights and activations to int8, with ranges from calibration data."""

    step: Literal["quantize.static"]
    target: Literal["auto", "x86-vnni", "x86", "arm", "cuda", "tensorrt"] = Field(
        default="auto", description="Machine the model will run on; auto: this one"
    )
    calibration: Literal["minmax", "percentile", "entropy", "mse"] | None = Field(
        default=None, description="How activation ranges are chosen; default: the one with the least output error"
    )
    activations: Literal["int8", "int16"] = Field(default="int8", description="int16: more exact, slower")
    equalise: bool | None = Field(default=None, description="Cross-layer equalisation; default: where it helps")
    bias_correction: bool | None = Field(default=None, description="Default: where it helps")
    rounding: Literal["nearest", "gptq"] | None = Field(
        default=None, description="Weight rounding; default: the better"
    )
    accuracy_guard: AccuracyGuard | None = Field(
        default=None, description="Return the worst layers to float until the accuracy holds"
    )
    sensitivity: bool = Field(
        default=False, description="Measure the error of every layer alone: a table and a plot in the report"
    )
    speed_guard: bool = Field(default=True, description="Return int8 regions that lose time to float, by measurement")


def apply(model: ir.Model, params: Params, context: Context) -> Outcome:
    """Quantize weights and activations to int8 with ranges from calibration data."""
    from lepton_cli.quantize.static import quantize

    return quantize(model, params, context)
