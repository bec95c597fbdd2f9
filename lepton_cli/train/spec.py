"""Options of the training steps. Light: neither numpy nor torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lepton_cli import units
from lepton_cli.step import Options
from lepton_cli.values import Duration, Percent, Strict


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

    budget: TrainingBudget = Field(default=TrainingBudget(epochs=5), description="How much training")
    teacher: str | None = Field(
        default=None,
        description="Model file whose answers are learnt, relative to the recipe; default: the original, or the model "
        "as the last `finetune` before made it",
    )
    learning_rate: float | Literal["auto"] = Field(
        default="auto",
        description="Share of a channel's weights that a step changes at most; auto: 0.03 (0.003 for codes), less "
        "where that harms",
    )
    batch: int | Literal["auto"] = Field(
        default="auto",
        description="Samples a step, in pieces that memory holds; auto: 128 (64 for codes), fewer for a small budget",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where it is computed; auto: a GPU where torch finds one"
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="Which state stays, by its loss on the samples kept apart; the untrained one counts"
    )

    @property
    def labelled(self) -> bool:
        """Whether labels are learnt."""
        return False

    @property
    def training(self) -> Self:
        return self

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
    features: Literal["auto", "none"] = Field(
        default="auto",
        description="auto: values inside learn the teacher's too, where blocks end, by name, whatever channels went",
    )
    labels: Percent = Field(
        default=units.Share(0),
        description="Share of the loss for labels of the training data, by cross-entropy, where outputs are classes",
    )

    @property
    def labelled(self) -> bool:
        """Whether labels are learnt."""
        return self.labels > 0

    @model_validator(mode="after")
    def _some_distilled(self) -> Self:
        if self.labels >= 1:
            raise ValueError("labels must be below 100 %: for labels alone there is `finetune`")
        return self


class TrainingLoss(Strict):
    """What one output learns. Each loss is a mean over the samples."""

    output: str | None = Field(
        default=None, description="An output, or a value inside the graph; default: the only output of floats"
    )
    kind: Literal["auto", "cross_entropy", "binary", "mse", "mae", "huber", "cosine", "distill"] = Field(
        default="auto",
        description="auto: cross_entropy for `[samples, classes]` and class numbers, mse for floats of the output's "
        "shape. Outputs may be probabilities or what comes before; distill compares with `teacher`",
    )
    labels: str | None = Field(
        default=None, description="Array of labels; default: the one with the output's name, else `labels`"
    )
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Factor of the loss in the sum")

    @model_validator(mode="after")
    def _compared_once(self) -> Self:
        if self.kind == "distill" and self.labels is not None:
            raise ValueError("distill compares with the teacher: leave `labels` out")
        return self


class Finetune(FloatTraining):
    """Train the weights on the labels of the training data, several outputs at once where asked (extra `train`)."""

    step: Literal["finetune"] = "finetune"
    losses: tuple[TrainingLoss, ...] = Field(
        default=(),
        description="What is learnt, added up; `output` may be a value inside the graph. Default: the labels, by the "
        "outputs of floats that the original has not, else by the first one",
    )
    hold: bool = Field(
        default=True,
        description="Outputs of floats without a loss go on answering as the original (or `teacher`) does, where that "
        "has them in the same shape; but for those that a Softmax or the like makes of one with a loss",
    )

    @property
    def labelled(self) -> bool:
        """Whether labels are learnt."""
        return not self.losses or any(asked.kind != "distill" for asked in self.losses)

    @property
    def new_answers(self) -> bool:
        return self.labelled
