"""The training steps, as the table names them: what is missing is said before torch, slow to import, is needed."""

from __future__ import annotations

import importlib.util

import onnx_ir as ir

from lepton_cli.data.dataset import Dataset
from lepton_cli.data.training import TrainingData
from lepton_cli.errors import DataError, MissingExtraError
from lepton_cli.step import Context, Outcome
from lepton_cli.train.spec import Distill, TrainingOptions

#: PyPI's torch for Linux is a CUDA build of several GB.
CPU_BUILD = "for the CPU alone `pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu` first"


def distill(model: ir.Model, options: Distill, context: Context) -> Outcome:
    """Train until the model answers as the original does. Raises LeptonError where something is missing."""
    samples, holdout = needed(options, context)
    if context.dry:
        return Outcome(model, 1, (), f"all weights, with {samples.count:,} samples")
    from lepton_cli.train import distill as work

    return work.distill(model, options, context, samples, holdout)


def needed(options: TrainingOptions, context: Context) -> tuple[TrainingData, Dataset]:
    """The samples to train with and those to judge by. Raises LeptonError where they, or torch, are missing."""
    samples = context.training
    if samples is None:
        raise DataError(
            "data.training-missing",
            f"`{options.step}` needs training data",
            hint="give `data: {training: {path: …}}` in the recipe; labels are not needed",
        )
    if samples.holdout is None:
        raise DataError(
            "data.holdout",
            f"`{options.step}` judges by samples kept apart, and `holdout: 0 %` keeps none",
            hint="leave `holdout` out, or give a share",
            option=("data", "training", "holdout"),
        )
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("train", "torch", f"`{options.step}`", CPU_BUILD)
    return samples, samples.holdout
