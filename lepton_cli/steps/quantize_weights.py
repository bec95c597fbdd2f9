"""Store the weights of big MatMuls in 4 or 8 bits by blocks; activations stay float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lepton_cli.steps.base import Context, Outcome
from lepton_cli.steps.base import Params as BaseParams

if TYPE_CHECKING:
    import onnx_ir as ir


class Params(BaseParams):
    """Store MatMul weights in 4 or 8 bits by blocks (MatMulNBits); activations stay float."""

    step: Literal["quantize.weights"]
    bits: Literal[4, 8] = 4
    block_size: Literal[16, 32, 64, 128, 256] = 32
    method: Literal["rtn", "hqq", "k_quant"] = Field(default="rtn", description="How the values of a block are chosen")
    symmetric: bool = Field(default=True, description="Without zero points")


def apply(model: ir.Model, params: Params, context: Context) -> Outcome:
    """Store the weights of big MatMuls in 4 or 8 bits by blocks; activations stay float."""
    from lepton_cli.quantize.weights import quantize

    return quantize(model, params, context)
