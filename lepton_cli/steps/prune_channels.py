"""Remove whole channels, heads and branches, so that the model really gets smaller and faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from lepton_cli import units
from lepton_cli.steps.base import Context, Outcome
from lepton_cli.steps.base import Params as BaseParams
from lepton_cli.values import Percent, Strict

if TYPE_CHECKING:
    import onnx_ir as ir


#: Samples that models which are only timed are calibrated with.
_FEW = 16


class Target(Strict):
    """What may remain, as shares of the original (60 %: 1.67 times fewer); where several are given, all hold."""

    macs: Percent | None = None
    params: Percent | None = None
    size: Percent | None = None
    latency: Percent | None = Field(default=None, description="Measured on the recipe's first provider and batch")

    @model_validator(mode="after")
    def _shares(self) -> Target:
        if not self.shares:
            raise ValueError("give macs, params, size or latency")
        for name, share in self.shares.items():
            if not 0 < share <= 1:
                raise ValueError(f"{name} must be above 0 % and at most 100 %")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Share by metric."""
        given = {name: getattr(self, name) for name in ("macs", "params", "size", "latency")}
        return {name: float(share) for name, share in given.items() if share is not None}


class Params(BaseParams):
    """Remove whole channels, heads and residual branches, and repair what is left without training."""

    step: Literal["prune.channels"]
    target: Target = Field(
        default=Target(macs=units.Share(0.6)), description="What remains of the original; several all hold"
    )
    timed_as: Literal["float", "int8", "dynamic"] = Field(
        default="float",
        description="Precision that `target.latency` is a share in, on both sides: what a later step quantizes to "
        "(`int8`: quantize.static, `dynamic`: quantize.dynamic) is fast at other widths",
    )
    importance: Literal["l1", "l2", "zscore", "bn_scale", "activation", "hessian"] | None = Field(
        default=None, description="Ranking of channels; default: hessian with calibration data, else l2"
    )
    scope: Literal["global", "layer"] = Field(
        default="global", description="Allocate widths over the whole model, or the same share in every layer"
    )
    round_to: int | None = Field(default=None, ge=1, description="Widths are multiples of this; default: by target")
    min_width: Percent = Field(
        default=units.Share(0.05), description="Least share of its channels a layer keeps, unless its branch goes"
    )
    drop_branches: bool = Field(
        default=True,
        description="Latency targets may drop whole residual branches (global scope, calibration data, recovery)",
    )
    recover: tuple[Literal["least_squares", "bias", "batch_norm"], ...] | None = Field(
        default=None, description="Repairs to try; each is kept only where it helps. Default: all that the data allows"
    )

    @model_validator(mode="after")
    def _timed(self) -> Params:
        if self.timed_as != "float" and self.target.latency is None:
            raise ValueError("timed_as is about target.latency, which is not given")
        return self


def apply(model: ir.Model, params: Params, context: Context) -> Outcome:
    """Remove whole channels, heads and branches, so that the model really gets smaller and faster."""
    from lepton_cli.prune.channels import prune

    return prune(model, params, context, _quantizer(params.timed_as, context))


def _quantizer(precision: str, context: Context) -> Callable[[ir.Model], ir.Model] | None:
    """A quick quantization, as fast as the real one but not as good, for models that are only timed."""
    if precision == "float":
        return None
    from lepton_cli.data.dataset import First
    from lepton_cli.progress import Silent
    from lepton_cli.steps import quantize_dynamic, quantize_static

    few = First(context.check, _FEW)
    quick = dataclasses.replace(context, calibration=few, check=few, cache=None, progress=Silent())
    if precision == "dynamic":
        plain = quantize_dynamic.Params(step="quantize.dynamic")
        return lambda model: quantize_dynamic.apply(model, plain, dataclasses.replace(quick, calibration=None)).model
    static = quantize_static.Params(
        step="quantize.static",
        calibration="minmax",
        equalise=False,
        bias_correction=False,
        rounding="nearest",
        speed_guard=False,
    )
    return lambda model: quantize_static.apply(model, static, quick).model
