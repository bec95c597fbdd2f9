"""Options of the training steps. Light: neither numpy nor torch here."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from lepton_cli.step import Options
from lepton_cli.values import Duration, Strict


class TrainingBudget(Strict):
    """How much training: one of the three."""

    epochs: float | None = Field(default=None, gt=0, le=100_000, description="Passes over the training samples")
    samples: int | None = Field(default=None, ge=1, description="Samples seen, counted each time")
    time: Duration | None = Field(
        default=None, description="Seconds on the clock; how many steps fit is measured once, at the start"
    )

    @model_validator(mode="after")
    def _one(self) -> TrainingBudget:
        if sum(value is not None for value in (self.epochs, self.samples, self.time)) != 1:
            raise ValueError("give one of epochs, samples and time")
        if self.time is not None and self.time <= 0:
            raise ValueError("time must be above 0")
        return self


class TrainingOptions(Options):
    """What the steps that train have in common."""

    trains: ClassVar[bool] = True

    budget: TrainingBudget = Field(default=TrainingBudget(epochs=5), description="How much training")
    learning_rate: float | Literal["auto"] = Field(
        default="auto",
        description="Share of a channel's weights that a step changes at most; auto: 0.01, less where that harms",
    )
    batch: int | Literal["auto"] = Field(default="auto", description="Samples a step; auto: 128, or what there are")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where it is computed; auto: a GPU where torch finds one"
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="Which state stays, by its loss on the samples kept apart; the untrained one counts"
    )

    @model_validator(mode="after")
    def _above_zero(self) -> Self:
        for name in ("learning_rate", "batch"):
            value = getattr(self, name)
            if not isinstance(value, str) and value <= 0:
                raise ValueError(f"{name} must be above 0")
        return self


class FloatTraining(TrainingOptions):
    """What the steps that train float models have in common besides."""

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="What is computed in, but for losses and weights; auto: the faster of three steps each",
    )


class Distill(FloatTraining):
    """Train the weights until the model answers as the original does; needs no labels (extra `train`)."""

    step: Literal["distill"] = "distill"
    teacher: str | None = Field(
        default=None, description="Model file whose answers are learnt, relative to the recipe; default: the original"
    )
