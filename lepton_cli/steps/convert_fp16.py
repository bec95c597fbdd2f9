"""Store and compute in float16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lepton_cli.steps.base import Context, Outcome
from lepton_cli.steps.base import Params as BaseParams

if TYPE_CHECKING:
    import onnx_ir as ir


class Params(BaseParams):
    """Convert float32 to float16: half the size; fast on GPUs, not on most CPUs."""

    step: Literal["convert.fp16"]
    keep_io: bool = Field(default=True, description="Inputs and outputs stay float32")


def apply(model: ir.Model, params: Params, context: Context) -> Outcome:
    """Store and compute in float16."""
    from lepton_cli.quantize.fp16 import convert

    return convert(model, params, context)
