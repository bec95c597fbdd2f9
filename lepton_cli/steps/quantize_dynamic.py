"""Quantize weights to int8 and activations on the fly, without calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lepton_cli.steps.base import Context, Outcome
from lepton_cli.steps.base import Params as BaseParams

if TYPE_CHECKING:
    import onnx_ir as ir


class Params(BaseParams):
    """Quantize MatMul and Gemm weights to int8, activations while running; needs no data."""

    step: Literal["quantize.dynamic"]
    target: Literal["auto", "x86-vnni", "x86", "arm", "cuda", "tensorrt"] = Field(
        default="auto", description="Machine the model will run on; auto: this one"
    )
    op_types: tuple[str, ...] = Field(
        default=("MatMul", "Gemm", "Gather", "Attention", "LSTM"),
        description="Operators to quantize (Conv gets slower)",
    )


def apply(model: ir.Model, params: Params, context: Context) -> Outcome:
    """Quantize weights to int8 and activations on the fly, without calibration data."""
    from lepton_cli.quantize.dynamic import quantize

    return quantize(model, params, context)
