"""`finetune`: the weights learn labels, for several outputs at once, and what a teacher answers where that is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from lepton_cli.data.dataset import Dataset
from lepton_cli.data.source import nearest
from lepton_cli.data.training import TrainingData
from lepton_cli.errors import RecipeError
from lepton_cli.graph import shapes
from lepton_cli.graph.heads import Layers
from lepton_cli.graph.shapes import Inferred
from lepton_cli.step import Context, Outcome
from lepton_cli.train import course
from lepton_cli.train.course import Course
from lepton_cli.train.labels import Labelled, float_outputs
from lepton_cli.train.network import Network
from lepton_cli.train.spec import Finetune, TrainingLoss
from lepton_cli.train.teacher import Teacher
from lepton_cli.train.together import WeightedTask
from lepton_cli.train.train import foresee, teacher, teachers_name, train


def finetune(model: ir.Model, options: Finetune, context: Context, samples: TrainingData, holdout: Dataset) -> Outcome:
    """The model with trained weights, or as it was where nothing better was found on `holdout`."""
    floats = float_outputs(model)
    losses = options.losses
    if not losses:
        known = same_outputs(model, context.original)
        new = [name for name in floats if name not in known]
        losses = tuple(TrainingLoss(output=name) for name in new or floats[:1]) or (TrainingLoss(),)
    taught = any(asked.kind == "distill" for asked in losses)
    original = teacher(options, context) if taught or options.hold else None
    held = _held(model, original, losses) if options.hold and original is not None else ()

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
                learns = stand_in(network, output)
                task = Labelled(asked, learns, network, samples, made.trial, None if learns == output else output)
            found.append(WeightedTask(task, asked.weight))
        if held and original is not None:
            found.append(WeightedTask(Teacher(original, network, made.first, held)))
        return found

    if context.dry:
        return foresee(model, options, context, samples, holdout, parts, options.precision)
    learnt, _ = train(model, options, context, samples, holdout, parts, precision=options.precision)
    details = learnt.details.model_copy(update={"held": held})
    if taught or held:
        details = details.model_copy(update={"teacher": teachers_name(options, context)})
    outcome = course.outcome(model, learnt, details)
    if not held:
        return outcome
    said = f"{outcome.summary}; held to {details.teacher}'s answers: {', '.join(f'`{name}`' for name in held)}"
    return dataclasses.replace(outcome, summary=said)


def same_outputs(model: ir.Model, other: ir.Model) -> tuple[str, ...]:
    """Outputs of floats that both have, of shapes that do not contradict each other."""
    mine, theirs = shapes.infer(model), shapes.infer(other)
    return tuple(
        name for name in float_outputs(model) if name in float_outputs(other) and _fits(mine[name], theirs[name])
    )


def _fits(one: Inferred, other: Inferred) -> bool:
    if one.shape is None or other.shape is None:
        return True
    pairs = zip(one.shape, other.shape, strict=False)
    return len(one.shape) == len(other.shape) and all(a == b or a is None or b is None for a, b in pairs)


def _held(model: ir.Model, original: ir.Model, losses: Sequence[TrainingLoss]) -> tuple[str, ...]:
    """Outputs to hold: no loss is about them, or about what they are made of without weights in between."""
    layers, outputs = Layers(model), float_outputs(model)
    values = {value.name: value for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))}
    named = [outputs[0] if asked.output is None and outputs else asked.output for asked in losses]
    learnt = {layers.answer(values[name]) for name in named if name in values}
    return tuple(
        name for name in same_outputs(model, original) if name in values and layers.answer(values[name]) not in learnt
    )


def stand_in(network: Network, name: str) -> str:
    """For an output that no gradient comes back from the value that it is made of, if that is a single one; else the
    value itself."""
    value = network.value(name)
    ends = value.is_graph_output() and network.gradients.end(value) is not None
    found = network.gradients.made_of(value) if ends else ()
    return found[0] if len(found) == 1 else name


def _output(asked: str | None, floats: list[str], network: Network) -> str:
    """Raises RecipeError where the model has no such value, and where it is not clear which output is meant."""
    if asked is None and len(floats) == 1:
        return floats[0]
    if asked is None and not floats and len({stand_in(network, name) for name in network.outputs}) == 1:
        return network.outputs[0]
    if asked is not None and asked in network:
        return asked
    count = f"{len(floats)} outputs of the model are floats"
    raise RecipeError(
        "train.loss-output",
        count if asked is None else f"the model has no value `{asked}`",
        hint=nearest(asked or "", floats, what="its outputs of floats"),
    )
