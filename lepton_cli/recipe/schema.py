"""The typed recipe. Step options live with the steps, data options with `data/`, measurement options with `measure/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lepton_cli.data.spec import DataSection
from lepton_cli.measure.spec import EvaluateSpec
from lepton_cli.steps import (
    convert_fp16,
    fuse,
    prune_channels,
    prune_weights,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
    simplify,
)
from lepton_cli.values import Strict

StepParams = Annotated[
    simplify.Params
    | fuse.Params
    | prune_channels.Params
    | prune_weights.Params
    | quantize_static.Params
    | quantize_dynamic.Params
    | quantize_weights.Params
    | convert_fp16.Params,
    Field(discriminator="step"),
]

Limit = str | float


class Gate(Strict):
    """A limit on one metric. Exactly one of the comparisons below is given.

    `max`/`min` are absolute; `max_ratio` compares with the original or baseline (0.6: at most 60 %);
    `max_drop` is for metrics where higher is better, `max_increase` for those where lower is better.
    """

    metric: str = Field(description="`size.file`, `accuracy.top1`, `latency.median`, …: see `lepton schema --metrics`")
    max: Limit | None = None
    min: Limit | None = None
    max_ratio: float | None = Field(default=None, gt=0)
    min_ratio: float | None = Field(default=None, gt=0)
    max_drop: Limit | None = None
    max_increase: Limit | None = None
    against: Literal["original", "baseline"] = "original"
    provider: str | None = None
    batch: int | None = Field(default=None, ge=1)
    output: str | None = None
    level: Literal["error", "warn"] = "error"

    @model_validator(mode="after")
    def _one_comparison(self) -> Gate:
        given = [name for name in COMPARISONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(COMPARISONS)}" + (f", not {' and '.join(given)}" if given else ""))
        return self


COMPARISONS = ("max", "min", "max_ratio", "min_ratio", "max_drop", "max_increase")


class OutputSection(Strict):
    """What is written beside the model."""

    reports: tuple[Literal["json", "md", "html", "junit"], ...] = ("json", "md", "html")


class Budget(Strict):
    """A budget file for `lepton gate`: the gates of a recipe, alone."""

    version: Literal[1]
    gates: tuple[Gate, ...] = Field(min_length=1)


class Recipe(Strict):
    """How a model is compressed, measured and judged."""

    version: Literal[1]
    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", description="Names the result file; default: the recipe's")
    seed: int = Field(default=0, ge=0, lt=2**32)
    data: DataSection = DataSection()
    steps: tuple[StepParams, ...] = Field(min_length=1)
    evaluate: EvaluateSpec = EvaluateSpec()
    gates: tuple[Gate, ...] = ()
    output: OutputSection = OutputSection()
