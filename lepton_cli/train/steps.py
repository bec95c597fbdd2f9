"""The training steps, as the table names them: what is missing is said before torch, slow to import, is needed."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import onnx_ir as ir

from lepton_cli.errors import DataError, MissingExtraError
from lepton_cli.step import Context, Outcome
from lepton_cli.train.spec import Distill, Finetune, TrainingOptions

if TYPE_CHECKING:
    from lepton_cli.data.dataset import Dataset
    from lepton_cli.data.training import TrainingData

#: PyPI's torch for Linux is a CUDA build of several GB.
CPU_BUILD = "for the CPU alone `pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu` first"


def distill(model: ir.Model, options: Distill, context: Context) -> Outcome:
    """Train until the model answers as the original does. Raises LeptonError where something is missing."""
    samples, holdout = needed(context.training, options)
    from lepton_cli.train import distill as work

    return work.distill(model, options, context, samples, holdout)


def finetune(model: ir.Model, options: Finetune, context: Context) -> Outcome:
    """Train on labels. Raises LeptonError where something is missing."""
    samples, holdout = needed(context.training, options)
    from lepton_cli.train import finetune as work

    return work.finetune(model, options, context, samples, holdout)


def needed(samples: TrainingData | None, options: TrainingOptions) -> tuple[TrainingData, Dataset]:
    """What to train with and what to judge by. Raises LeptonError where one of them, labels or torch are missing."""
    step, labelled = options.step, options.labelled
    if samples is None:
        raise DataError(
            "data.training-missing",
            f"`{step}` needs training data",
            hint="give `data: {training: {path: …" + (", labels: …}}`" if labelled else "}}`, labels are not needed"),
        )
    if samples.holdout is None:
        raise DataError(
            "data.holdout",
            f"`{step}` judges by samples kept apart, and `holdout: 0 %` keeps none",
            hint="leave `holdout` out, or give a share",
            option=("data", "training", "holdout"),
        )
    if labelled and not samples.whole.label_names:
        raise DataError(
            "data.no-labels",
            f"`{step}` needs labels, and the training data have none",
            hint="name the array or column: `data: {training: {labels: …}}`; without labels there is `distill`",
            option=("data", "training", "labels"),
        )
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("train", "torch", f"`{step}`", CPU_BUILD)
    return samples, samples.holdout
