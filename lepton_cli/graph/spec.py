"""Options of the steps that rewrite a graph into an equal one: `simplify` and `fuse`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lepton_cli.step import Options


class Simplify(Options):
    """Fold constants and BatchNorm, join operators, remove what is dead or held twice; outputs stay the same.

    Only standard operators are written: the result runs on every machine the original ran on. What onnxruntime fused is
    written as standard operators again, unless `fuse` made attention of it.
    """

    cleaning: ClassVar[bool] = True

    step: Literal["simplify"] = "simplify"
    fold_batch_norm: bool = Field(
        default=True,
        description="Fold BatchNormalization into the layer before it; `false` keeps it for re-estimation when pruning",
    )


class Fuse(Options):
    """Fuse attention, LayerNorm and GELU into onnxruntime's own operators (transformers).

    The result runs in onnxruntime only. Fusing before `quantize.dynamic` usually makes transformers fastest.
    """

    cleaning: ClassVar[bool] = True

    step: Literal["fuse"] = "fuse"
    model_type: Literal["auto", "bert", "gpt2", "vit", "t5", "bart", "clip", "unet", "vae", "phi"] = "auto"
    engine: Literal["onnxruntime", "onnxruntime-tools"] = Field(
        default="onnxruntime", description="onnxruntime-tools: for old graphs (opset <= 12), needs the `tools` extra"
    )
    heads: int | None = Field(default=None, ge=1, description="Attention heads; default: read from the graph")
    hidden_size: int | None = Field(default=None, ge=1, description="Default: read from the graph")
