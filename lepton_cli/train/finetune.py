"""`finetune`: the weights learn labels, for several outputs at once, and what a teacher answers where that is asked."""

from __future__ import annotations

import onnx_ir as ir

from lepton_cli.data.dataset import Dataset
from lepton_cli.data.source import nearest
from lepton_cli.data.training import TrainingData
from lepton_cli.errors import RecipeError
from lepton_cli.step import Context, Outcome
from lepton_cli.train import course
from lepton_cli.train.course import Course
from lepton_cli.train.labels import Labelled, float_outputs
from lepton_cli.train.network import Network
from lepton_cli.train.spec import Finetune, TrainingLoss
from lepton_cli.train.teacher import Teacher
from lepton_cli.train.together import WeightedTask
from lepton_cli.train.train import foresee, teacher, train


def finetune(model: ir.Model, options: Finetune, context: Context, samples: TrainingData, holdout: Dataset) -> Outcome:
    """The model with trained weights, or as it was where nothing better was found on `holdout`."""
    floats = float_outputs(model)
    losses = options.losses or (TrainingLoss(output=next(iter(floats), None)),)
    taught = any(asked.kind == "distill" for asked in losses)
    original = teacher(options, context) if taught else None

    def parts(network: Network, made: Course) -> list[WeightedTask]:
        found = []
        for index, asked in enumerate(losses):
            try:
                output = _output(asked.output, floats, network)
            except RecipeError as error:
                error.option = ("losses", index, "output")
                raise
            if asked.kind == "distill":
                assert original is not None
                task: Labelled | Teacher = Teacher(original, network, made.first, (output,))
            else:
                task = Labelled(asked, output, network, samples, made.trial)
            found.append(WeightedTask(task, asked.weight))
        return found

    if context.dry:
        return foresee(model, options, context, samples, holdout, parts, options.precision)
    learnt, _ = train(model, options, context, samples, holdout, parts, precision=options.precision)
    details = learnt.details
    if taught:
        details = details.model_copy(update={"teacher": options.teacher or "the original"})
    return course.outcome(model, learnt, details)


def _output(asked: str | None, floats: list[str], network: Network) -> str:
    """Raises RecipeError where the model has no such value, and where it is not clear which output is meant."""
    if asked is None and len(floats) == 1:
        return floats[0]
    if asked is not None and asked in network:
        return asked
    count = f"{len(floats)} outputs of the model are floats"
    raise RecipeError(
        "train.loss-output",
        count if asked is None else f"the model has no value `{asked}`",
        hint=nearest(asked or "", floats, what="its outputs of floats"),
    )
