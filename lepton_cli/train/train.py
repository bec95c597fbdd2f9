"""A step that trains, around its course: what may train, the proof before and after, what the report says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import onnx_ir as ir

from lepton_cli import units
from lepton_cli.data.dataset import Dataset
from lepton_cli.data.training import TrainingData
from lepton_cli.errors import ModelError
from lepton_cli.graph.select import select
from lepton_cli.model import io
from lepton_cli.step import Context, Outcome
from lepton_cli.train import course, judge, proof
from lepton_cli.train.course import Course, Learnt
from lepton_cli.train.details import TrainedLoss
from lepton_cli.train.labels import Labelled
from lepton_cli.train.network import Network
from lepton_cli.train.spec import TrainingOptions
from lepton_cli.train.together import Together, WeightedTask


def train(
    model: ir.Model,
    options: TrainingOptions,
    context: Context,
    samples: TrainingData,
    holdout: Dataset,
    parts: Callable[[Network, Course], Sequence[WeightedTask]],
    *,
    kind: type[Network] = Network,
    precision: Literal["auto", "float32", "bfloat16"] = "float32",
) -> tuple[Learnt, Course]:
    """The model with trained weights, or as it was where nothing better was found on `holdout`.

    `parts`: what is learnt, once it is known how many samples go in at once. `kind`: what of the model learns.
    """
    with course.settings(context.threads, course.device(options)):
        network, made, difference = _begun(model, options, context, samples, holdout, kind, precision)
        task = Together(parts(network, made))
        several = len(task.parts) > 1
        before = task.apart(network, made.kept) if several else []
        learnt = made.learn(task, options.step)
        after = task.apart(network, made.kept) if several else []
        proof.prove(network, context.check, context.workdir, context.threads)
    losses = [
        TrainedLoss(
            output=", ".join(part.task.outputs),
            kind=", ".join(dict.fromkeys(part.task.said.values())),
            weight=part.weight,
            before=first,
            after=last,
        )
        for part, first, last in zip(task.parts, before, after, strict=False)
    ]
    told = {
        "losses": task.said,
        "proof": difference,
        "parts": tuple(losses),
        "features": task.inside,
        "in_place": task.in_place,
    }
    told |= _accuracies(task, (model, learnt.model), made, context)
    return dataclasses.replace(learnt, details=learnt.details.model_copy(update=told)), made


def foresee(
    model: ir.Model,
    options: TrainingOptions,
    context: Context,
    samples: TrainingData,
    holdout: Dataset,
    parts: Callable[[Network, Course], Sequence[WeightedTask]],
    precision: Literal["auto", "float32", "bfloat16"],
) -> Outcome:
    """What a plan says: how long it will take, as three steps of the model as it is now tell. Raises what `train` does
    before its first step."""
    with course.settings(context.threads, course.device(options)):
        network, made, _ = _begun(model, options, context, samples, holdout, Network, precision)
        steps, size, seconds = made.foresee(Together(parts(network, made)))
    said = f"{steps:,} steps of {size} out of {samples.count:,} samples"
    said += f", about {units.format_duration(seconds)} for the model as it is"
    return Outcome(model, len(network.parameters), (), said)


def _begun(
    model: ir.Model,
    options: TrainingOptions,
    context: Context,
    samples: TrainingData,
    holdout: Dataset,
    kind: type[Network],
    precision: Literal["auto", "float32", "bfloat16"],
) -> tuple[Network, Course, float]:
    """What trains, proved to be what onnxruntime computes, and how far it is from that."""
    allowed = select((node.name or "" for node in model.graph.all_nodes()), options.include, options.exclude)
    network = kind(model, allowed, course.device(options))
    if not network.parameters:
        raise ModelError("train.nothing", "no weight of the model trains", hint="look at `include` and `exclude`")
    difference = proof.prove(network, context.check, context.workdir, context.threads)
    return network, Course(network, options, context, samples, holdout, precision), difference


def teacher(options: TrainingOptions, context: Context) -> ir.Model:
    """Whose answers are learnt, unless a file is given: the original's, or those that a step before learnt."""
    if options.teacher is not None:
        return io.load(context.base / options.teacher).model
    return context.original if context.answers is None else context.answers


def teachers_name(options: TrainingOptions, context: Context) -> str:
    """What the report calls the teacher."""
    return options.teacher or ("the original" if context.answers is None else "the model as it was fine-tuned")


def _accuracies(task: Together, models: Sequence[ir.Model], made: Course, context: Context) -> dict[str, float | None]:
    """Before and after, where class numbers are learnt."""
    for part in task.parts:
        if isinstance(one := part.task, Labelled) and one.axis is not None:
            name = next(iter(one.in_place), one.output)
            found = [judge.accuracy(model, name, one.axis, one.labels, made.kept, context) for model in models]
            return dict(zip(("accuracy_before", "accuracy_after"), found, strict=True))
    return {}
