"""What the quantization steps say about their work: the parts of a report that they fill. Light: no numpy here.

`sqnr_db`: 10 log10(signal / quantization error) of the outputs, `None` where it is not finite.
`assured_db`: what other samples like those seen hold with 95 % confidence (`probe.distances.Closeness`).
"""

from __future__ import annotations

from pydantic import ConfigDict, Field

from lepton_cli.step import Details
from lepton_cli.values import Strict


class _Named(Strict):
    """For keys of the report that are no names in Python."""

    model_config = ConfigDict(serialize_by_alias=True, populate_by_name=True)


class Sensitivity(Strict):
    """What quantizing this node alone, or these neighbours, does to the outputs.

    `int8_gmacs`, `float_gmacs`: multiply-accumulates in a nanosecond of its kernels, where they were timed.
    """

    node: str
    op: str
    sqnr_db: float | None
    int8_gmacs: float | None = None
    float_gmacs: float | None = None


class Returned(Strict):
    """Layers that went back to float because that is faster, and how much."""

    nodes: tuple[str, ...]
    gain: float


class LayerTime(Strict):
    """Microseconds of a layer's kernels; `None` where none carries its name."""

    node: str
    int8: float | None
    plain: float | None


class Speed(Strict):
    """Speed of int8 relative to float on this machine; `layers`: before any of them were returned to float.

    Where int8 does not pay: `alternatives`, the speeds of other steps and of `float`, and the `verdict` in words.
    """

    speedup: float
    returned: tuple[Returned, ...] = ()
    layers: tuple[LayerTime, ...] = ()
    alternatives: dict[str, float] | None = None
    verdict: str | None = None


class Placement(_Named):
    """Kernels of onnxruntime's optimised graph: those that compute in int8, matrix operators in float, all by name.

    `qdq_left`: conversions that no kernel took in.
    """

    int8: int
    in_float: int = Field(alias="float")
    qdq_left: int
    operators: dict[str, int] = {}


class GuardTrial(_Named):
    """How many groups of layers were tried in float (or in int16), and what was lost then."""

    in_float: int | None = Field(default=None, alias="float")
    int16: int | None = None
    drop: float | None


class Guard(Strict):
    """A limit on what may be lost, the score of the float model, and whether a choice of layers holds it."""

    max_drop: float
    reference: float
    holds: bool
    trials: tuple[GuardTrial, ...] = ()


class EqualiseSkipped(Strict):
    """Nodes whose channels could not be equalised, and why."""

    reason: str
    nodes: tuple[str, ...]


class Saturated(Strict):
    """A layer whose 16-bit sums saturate without VNNI: which share of them, and what that costs."""

    node: str
    share: float
    sqnr_db: float | None


class Portability(_Named):
    """What the file would lose on other machines, in words and by layer."""

    without_vnni: str = Field(alias="x86 without VNNI")
    layers: tuple[Saturated, ...] = ()


class OnTarget(Details):
    """The machine the model is made for, and why that one."""

    target: str = ""
    why: str = ""


class Repaired(Details):
    """What was tried to come closer to the float model (`repairs`: sqnr_db by name), and what was kept.

    Of a repair that the first samples show to be of no use it is that of these samples.
    `equalised`, `smoothed`: how many tensors; `None` where that was not kept.
    """

    repairs: dict[str, float | None] = {}
    equalise_skipped: EqualiseSkipped | None = None
    equalised: int | None = None
    smoothed: int | None = None
    calibration: str | None = None
    rounding: str | None = None


class QuantizeStaticDetails(Repaired, OnTarget):
    """Target, repairs, and what was measured about the quantized model."""

    speed: Speed | None = None
    accuracy_guard: Guard | None = None
    fidelity_guard: Guard | None = None
    sensitivity: tuple[Sensitivity, ...] = ()
    sqnr_db: float | None = None
    assured_db: float | None = None
    placement: Placement | None = None
    portability: Portability | None = None


class QuantizeDynamicDetails(OnTarget):
    """Target, and the repairs tried (`repairs`: sqnr_db by name); `smoothed`: how many tensors."""

    repairs: dict[str, float | None] = {}
    smoothed: int | None = None
    sqnr_db: float | None = None
    assured_db: float | None = None


class QuantizeWeightsDetails(Details):
    """How weights are stored, and the error of every one."""

    bits: int | None = None
    block_size: int | None = None
    method: str = ""
    symmetric: bool | None = None
    sensitivity: tuple[Sensitivity, ...] = ()
    fidelity_guard: Guard | None = None
    sqnr_db: float | None = None
    assured_db: float | None = None


class ConvertFp16Details(Details):
    """How close the outputs are, and how many operators stayed in float32."""

    sqnr_db: float | None = None
    assured_db: float | None = None
    kept: int | None = None
