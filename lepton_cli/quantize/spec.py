"""Options of the quantization steps: `quantize.static`, `.dynamic`, `.weights` and `convert.fp16`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lepton_cli.quantize.effort import Name
from lepton_cli.step import Lossy
from lepton_cli.train.spec import TrainingOptions
from lepton_cli.values import Points, Strict


class AccuracyGuard(Strict):
    """How much accuracy may be lost."""

    max_drop: Points
    fallback: Literal["float", "int16"] = Field(
        default="float",
        description="int16: activations of 16 bits are tried before float; onnxruntime's CPU provider computes both "
        "in float, other runtimes have kernels for it",
    )


class QuantizeStatic(Lossy):
    """Quantize weights and activations to int8, with ranges from calibration data."""

    needs_data: ClassVar[bool] = True
    for_machine: ClassVar[bool] = True

    step: Literal["quantize.static"] = "quantize.static"
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
    effort: Name = Field(
        default="normal",
        description="How long to search: quick takes what is found at once, thorough tries every layer alone",
    )
    sensitivity: bool = Field(
        default=False, description="Measure the error of every layer alone: a table and a plot in the report"
    )
    prefer: Literal["balance", "speed", "size"] = Field(
        default="balance",
        description="What may leave layers in float besides accuracy, and what `least_gain` counts: speed: time alone; "
        "balance: a greater share of the time saved than of bytes added, and either gain; size: nothing, and bytes "
        "alone",
    )
    speed_guard: bool = Field(default=True, description="Return int8 regions that lose time to float, by measurement")
    fidelity_guard: bool = Field(
        default=True,
        description="Return the worst layers to float until all parts of the outputs have 20 dB; false: insist on int8",
    )

    @model_validator(mode="after")
    def _measured(self) -> QuantizeStatic:
        if self.prefer == "speed" and not self.speed_guard:
            raise ValueError("prefer: speed needs the speed_guard, which measures it")
        return self


class QuantizeAware(TrainingOptions):
    """Train codes and scales of a quantized model until it answers as the float model does (extra `train`)."""

    step: Literal["quantize.aware"] = "quantize.aware"
    weight_bits: Literal[4, 8] = Field(
        default=8, description="4: weights are stored in 4 bits and computed with in 8, as fast as before"
    )
    eight_bits: tuple[str, ...] | Literal["auto"] = Field(
        default="auto",
        description="Globs on names of layers whose weights keep 8 bits; auto: those at inputs and outputs of the "
        "model with at most a tenth of all weights, and depthwise convolutions",
    )


class QuantizeDynamic(Lossy):
    """Quantize MatMul and Gemm weights to int8, activations while running; needs no data."""

    for_machine: ClassVar[bool] = True

    step: Literal["quantize.dynamic"] = "quantize.dynamic"
    target: Literal["auto", "x86-vnni", "x86", "arm", "cuda", "tensorrt"] = Field(
        default="auto", description="Machine the model will run on; auto: this one"
    )
    op_types: tuple[str, ...] = Field(
        default=("MatMul", "Gemm", "Gather", "Attention", "LSTM"),
        description="Operators to quantize (Conv gets slower)",
    )


class QuantizeWeights(Lossy):
    """Store MatMul weights in 4 or 8 bits by blocks (MatMulNBits), in 8 all others too; activations stay float."""

    step: Literal["quantize.weights"] = "quantize.weights"
    bits: Literal[4, 8] = Field(
        default=4, description="8: weights of other operators (Conv, LSTM) too, stored so and computed in float"
    )
    block_size: Literal[16, 32, 64, 128, 256] = 32
    method: Literal["rtn", "k_quant"] = Field(
        default="rtn",
        description="How scales and zero points are chosen: from the ends of a block, or searched for the least error",
    )
    symmetric: bool = Field(default=True, description="Blocks without zero points")
    fidelity_guard: bool = Field(
        default=True,
        description="With 8 bits and calibration data: return the worst weights to float until all parts of the "
        "outputs have 20 dB; false: insist",
    )

    @field_validator("method", mode="before")
    @classmethod
    def _without_hqq(cls, method: object) -> object:
        if method == "hqq":
            raise ValueError(
                "hqq needs zero points that are no whole numbers, with which onnxruntime multiplies 26 times slower "
                "(rounded, they are those of rtn): use k_quant"
            )
        return method


class ConvertFp16(Lossy):
    """Convert float32 to float16: half the size; fast on GPUs, not on most CPUs."""

    step: Literal["convert.fp16"] = "convert.fp16"
    keep_io: bool = Field(default=True, description="Inputs and outputs stay float32")
    repair: bool = Field(
        default=True,
        description="What leaves float16's range or costs much accuracy stays float32; false: nothing does",
    )

    @property
    def changes_types(self) -> bool:
        return not self.keep_io
