"""The parts of a recipe's `tune:` section that are not limits: what to search, for what, and for how long."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from lepton_cli import metrics, units
from lepton_cli.values import Duration, Percent, Points, Strict

Precision = Literal["float", "int8", "dynamic", "mixed", "weights8", "weights4", "fp16", "w4a8"]


def _metric(name: object) -> object:
    return metrics.SHORT.get(name, name) if isinstance(name, str) else name


def _mapping(value: object) -> object:
    return {"metric": value} if isinstance(value, str) else value


class Objective(Strict):
    """A metric to make as good as the limits allow."""

    metric: Annotated[str, BeforeValidator(_metric)] = Field(description="Such as `latency.median` or `size.file`")
    provider: str | None = Field(default=None, description="Which provider (latency); default: the first measured")
    batch: int | None = Field(default=None, ge=1, description="Which batch size (latency); default: the first measured")
    threads: int | None = Field(
        default=None, ge=1, description="How many threads (latency); default: the first measured"
    )
    output: str | None = Field(default=None, description="Which model output (accuracy); default: the first")

    @model_validator(mode="after")
    def _known(self) -> Objective:
        metric = metrics.find(self.metric)
        if metric is None:
            near = metrics.nearest(self.metric)
            raise ValueError(f"there is no metric `{self.metric}`" + (f": did you mean `{near}`?" if near else ""))
        for key in self.scope:
            if key not in metric.scope:
                raise ValueError(f"`{self.metric}` takes no `{key}`")
        return self

    @property
    def scope(self) -> dict[str, str | int]:
        """Which of several values of the metric it is about."""
        return {key: value for key in metrics.SCOPE if (value := getattr(self, key)) is not None}


ObjectiveField = Annotated[Objective, BeforeValidator(_mapping, json_schema_input_type=str | Objective)]


class Space(Strict):
    """What is tried; a part left out follows from the model, the data and the goal. Every part is a list."""

    keep: tuple[Percent, ...] | None = Field(
        default=None,
        description="Pruning: what remains of what `prune_by` counts; default: what limits and goal ask for",
    )
    prune_by: tuple[Literal["macs", "params", "size", "latency"], ...] | None = Field(
        default=None, description="What pruning saves; default: what the goal counts"
    )
    importance: tuple[Literal["l1", "l2", "zscore", "bn_scale", "activation", "hessian"], ...] | None = None
    round_to: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, description="Widths of pruned layers are multiples of this; default: of the machine's blocks, 1"
    )
    precision: tuple[Precision, ...] | None = Field(
        default=None,
        description="`int8`: with calibration data; `dynamic`: int8 while running; `weights8`, `weights4`: storage; "
        "`mixed`: tables in 4 bits, products as `dynamic`; `w4a8`: `int8`, 4-bit weights trained; only where named",
    )
    calibration: tuple[Literal["auto", "minmax", "percentile", "entropy", "mse"], ...] | None = Field(
        default=None, description="How the ranges of `int8` are chosen"
    )
    guard: tuple[Literal["none"] | Points, ...] | None = Field(
        default=None, description="Accuracy that `int8` may cost before its worst layers return to float"
    )
    distill: tuple[Literal["none"] | Annotated[float, Field(gt=0, le=100_000)], ...] | None = Field(
        default=None, description="Epochs of `distill` behind pruning; default: none, and with training data 5"
    )
    prefer: tuple[Literal["balance", "speed", "size"], ...] | None = Field(
        default=None, description="What may leave layers of `int8` in float; default: `balance`, then what the goal is"
    )
    block_size: tuple[Literal[16, 32, 64, 128, 256], ...] | None = Field(
        default=None, description="Weights of one scale in `weights4` and `mixed`; default: 32, for a size up to 256"
    )
    fuse: tuple[bool, ...] | None = Field(default=None, description="Transformers: fuse attention and LayerNorm")


class TuneBudget(Strict):
    """When the search ends; whichever comes first."""

    time: Duration = Field(default=units.Seconds(1200.0), description="Wall-clock time of the search")
    trials: int | None = Field(default=None, ge=1, description="Candidates tried; default: as many as the time allows")
