"""`distill`: the weights learn to answer as another model does, on samples without labels, or also by their labels."""

from __future__ import annotations

import onnx_ir as ir

from lepton_cli.data.dataset import Dataset
from lepton_cli.data.training import TrainingData
from lepton_cli.errors import ModelError
from lepton_cli.step import Context, Outcome
from lepton_cli.train import course, judge
from lepton_cli.train.course import Course, Learnt
from lepton_cli.train.details import TrainingDetails
from lepton_cli.train.labels import Labelled
from lepton_cli.train.network import Network
from lepton_cli.train.spec import Distill, TrainingLoss, TrainingOptions
from lepton_cli.train.teacher import Teacher
from lepton_cli.train.together import WeightedTask
from lepton_cli.train.train import foresee, teacher, teachers_name, train


def distill(model: ir.Model, options: Distill, context: Context, samples: TrainingData, holdout: Dataset) -> Outcome:
    """The model with trained weights, or as it was where nothing better was found on `holdout`."""
    original = teacher(options, context)

    def parts(network: Network, made: Course) -> list[WeightedTask]:
        taught = Teacher(original, network, made.first, inside=options.features == "auto")
        if not options.labels:
            return [WeightedTask(taught)]
        classes = [name for name, kind in taught.said.items() if kind != "relative"]
        if not classes:
            raise ModelError(
                "train.no-classes",
                "`labels` needs an output `[samples, classes]`",
                hint="leave it out, or use `finetune`",
            )
        asked = TrainingLoss(kind="cross_entropy")
        labelled = [Labelled(asked, name, network, samples, made.trial) for name in classes]
        return [WeightedTask(taught, 1 - options.labels), *(WeightedTask(one, options.labels) for one in labelled)]

    if context.dry:
        return foresee(model, options, context, samples, holdout, parts, options.precision)
    learnt, made = train(model, options, context, samples, holdout, parts, precision=options.precision)
    return course.outcome(model, learnt, beside(original, model, learnt, made, options, context))


def beside(
    original: ir.Model, model: ir.Model, learnt: Learnt, made: Course, options: TrainingOptions, context: Context
) -> TrainingDetails:
    """The details, with the share of answers that are the teacher's before and after."""
    before, after = (judge.agreement(original, one, made.kept, context) for one in (model, learnt.model))
    told = {"teacher": teachers_name(options, context), "agreement_before": before, "agreement_after": after}
    return learnt.details.model_copy(update=told)
