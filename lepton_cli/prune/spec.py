"""Options of the pruning steps: `prune.channels` and `prune.weights`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lepton_cli import units
from lepton_cli.quantize.targets import resolve, runs_here
from lepton_cli.step import Options
from lepton_cli.train.spec import Distill
from lepton_cli.values import Percent, Strict

#: The precision that later steps bring.
_KERNELS = {"quantize.static": "int8", "quantize.dynamic": "dynamic", "convert.fp16": "fp16"}


class PruneTarget(Strict):
    """What may remain, as shares of the original (60 %: 1.67 times fewer); where several are given, all hold."""

    macs: Percent | None = None
    params: Percent | None = None
    size: Percent | None = None
    latency: Percent | None = Field(default=None, description="Measured on the recipe's first provider and batch")

    @model_validator(mode="after")
    def _shares(self) -> PruneTarget:
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


class PruneChannels(Options):
    """Remove whole channels, heads and residual branches, and repair what is left without training."""

    step: Literal["prune.channels"] = "prune.channels"
    target: PruneTarget = Field(
        default=PruneTarget(macs=units.Share(0.6)), description="What remains of the original; several all hold"
    )
    widths: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        default=None,
        description="Instead of a target: channels that remain, by group (as `inspect --channels` and reports name "
        "them); groups not named keep all. Nothing is timed: the same model on every machine",
    )
    timed_as: Literal["auto", "float", "int8", "dynamic", "fp16"] = Field(
        default="auto",
        description="Precision that the result will run in, as what is fast in float is not what is fast in int8: "
        "`target.latency` is a share in it, and for other targets, but in float, widths are chosen that also save time "
        "in it; auto: what a later step makes (`int8`: quantize.static, `dynamic`: quantize.dynamic, `fp16`: "
        "convert.fp16), else float",
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
    drop_branches: bool | tuple[str, ...] = Field(
        default=True,
        description="Where models are timed, residual branches may go as a whole (global scope, calibration data, "
        "recovery); with `widths`: those that go, by the addition that each leads into",
    )
    recover: tuple[Literal["least_squares", "bias", "batch_norm", "distill"], ...] | None = Field(
        default=None,
        description="Repairs to try; each is kept only where it helps. Default: all that calibration data allow; "
        "`distill`, that step with its defaults behind the others, only where named",
    )

    @model_validator(mode="after")
    def _one_way(self) -> PruneChannels:
        if self.widths is not None and "target" in self.model_fields_set:
            raise ValueError("give `target` or `widths`, not both")
        if self.widths is None and not isinstance(self.drop_branches, bool):
            raise ValueError("branches are named beside `widths` only (`widths: {}` where no group becomes narrower)")
        return self

    @property
    def repairs(self) -> tuple[str, ...] | None:
        """What `recover` names that needs no training; `None`: all that the data allow."""
        return None if self.recover is None else tuple(kind for kind in self.recover if kind != "distill")

    @property
    def training(self) -> Distill | None:
        return Distill() if "distill" in (self.recover or ()) else None

    def knowing(self, later: Sequence[Options]) -> PruneChannels:
        """Timed as the first later step that decides about kernels leaves the model, if it is one for this machine."""
        if self.timed_as != "auto" or self.widths is not None:
            return self
        made = next((step for step in later if step.step in _KERNELS), None)
        here = made is not None and runs_here(resolve(getattr(made, "target", "auto"))) is None
        return self.model_copy(update={"timed_as": _KERNELS[made.step] if made is not None and here else "float"})

    @property
    def timed(self) -> bool:
        """Whether widths are chosen by measured times."""
        if self.widths is not None:
            return False
        return self.target.latency is not None or (self.timed_as not in ("auto", "float") and self.scope == "global")

    @property
    def kept_share(self) -> float | None:
        if self.widths is not None:
            return None
        shares = self.target.shares
        return shares.get("params") or shares.get("size")


class PruneWeights(Options):
    """Set single weights to zero: shrinks the compressed file only, speeds nothing up in onnxruntime."""

    step: Literal["prune.weights"] = "prune.weights"
    sparsity: Percent | None = Field(default=None, description="Share of the weights to zero, such as `80 %`")
    threshold: float | None = Field(default=None, ge=0, description="Zero everything whose importance is below this")
    pattern: str | None = Field(
        default=None, pattern=r"^[0-9]+:[0-9]+$", description="N:M, such as `2:4`: N of every M stay"
    )
    importance: Literal["l1", "l2", "zscore", "hessian"] | None = Field(
        default=None, description="Ranking of weights; default: hessian with calibration data, else l1"
    )
    scope: Literal["global", "layer"] = Field(default="layer", description="One ranking for all layers, or one each")
