"""Fuse attention, LayerNorm and GELU of transformers into onnxruntime's operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lepton_cli.steps.base import Context, Outcome
from lepton_cli.steps.base import Params as BaseParams

if TYPE_CHECKING:
    import onnx_ir as ir


class Params(BaseParams):
    """Fuse attention, LayerNorm and GELU into onnxruntime's own operators (transformers)."""

    step: Literal["fuse"]
    model_type: Literal["auto", "bert", "gpt2", "vit", "t5", "bart", "clip", "unet", "vae", "phi"] = "auto"
    engine: Literal["onnxruntime", "onnxruntime-tools"] = Field(
        default="onnxruntime", description="onnxruntime-tools: for old graphs (opset <= 12), needs the `tools` extra"
    )
    heads: int | None = Field(default=None, ge=1, description="Attention heads; default: read from the graph")
    hidden_size: int | None = Field(default=None, ge=1, description="Default: read from the graph")


def apply(model: ir.Model, params: Params, context: Context) -> Outcome:
    """Fuse attention, LayerNorm and GELU of transformers into onnxruntime's operators."""
    raise AssertionError
