"""Options of the steps that rewrite a graph into an equal one (`simplify`, `fuse`), free its batch, or make outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from lepton_cli.step import Options
from lepton_cli.tensors import TensorInfo


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


class BatchFree(Options):
    """Let a graph for one sample at a time take any number: shapes that hold the 1 follow the batch.

    Which nodes take one sample only is measured. All is done or nothing: of several samples has to come out what comes
    out of each alone, and of one the same bytes as before.
    """

    step: Literal["batch.free"] = "batch.free"
    name: str = Field(default="batch", min_length=1, description="What the axis is called, where it has no name yet")


class HeadOptions(Options):
    """What the steps that make an output have in common."""

    classes: int | None = Field(default=None, ge=1, description="Classes that the output has scores of, before softmax")
    outputs: int | None = Field(default=None, ge=1, description="Numbers of the output, in place of `classes`")

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if (self.classes is None) == (self.outputs is None):
            raise ValueError("give classes, or outputs for numbers that are no classes")
        return self

    @property
    def width(self) -> int:
        """Numbers a sample."""
        return self.classes or self.outputs or 0


class HeadAdd(HeadOptions):
    """Add an output: a linear layer with small random weights behind a value inside the graph, to be trained.

    The others stay as they are. Of `[samples, channels, height, width]` and `[samples, length, channels]` the layer
    gets the mean over the places.
    """

    step: Literal["head.add"] = "head.add"
    at: str = Field(description="Value inside the graph that it reads, with channels of a known number")
    name: str = Field(min_length=1, description="What the output is called")

    def new_outputs(self, outputs: Sequence[TensorInfo]) -> tuple[str, ...]:
        """The one that is added."""
        return (self.name,)


class HeadReplace(HeadOptions):
    """Give an output another number of classes: its last linear layer anew, with small random weights, to be trained.

    The output keeps its name, and whatever stands between the layer and the output (a Softmax, say) stays.
    """

    step: Literal["head.replace"] = "head.replace"
    output: str | None = Field(default=None, description="Which output; default: the only one of floats")
    at: str = Field(
        default="auto",
        description="auto: the last Gemm, MatMul or Conv before the output; else a value inside the graph: all between "
        "it and the output gives way to a linear layer as `head.add` makes it",
    )

    def new_outputs(self, outputs: Sequence[TensorInfo]) -> tuple[str, ...]:
        """The one that is made anew; none where it is not clear which."""
        floats = [one.name for one in outputs if one.floating]
        return (self.output,) if self.output is not None else tuple(floats[: len(floats) == 1])
