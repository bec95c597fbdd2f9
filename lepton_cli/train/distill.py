"""`distill`: the weights learn to answer as another model does, on samples without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from lepton_cli.data.dataset import Batch, Dataset
from lepton_cli.errors import ModelError
from lepton_cli.graph.select import select
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Context, Outcome
from lepton_cli.train import course, proof
from lepton_cli.train.course import Course, Learnt, TrainingSamples
from lepton_cli.train.details import TrainingDetails
from lepton_cli.train.network import Network
from lepton_cli.train.spec import Distill, TrainingOptions
from lepton_cli.train.teacher import Teacher


def distill(model: ir.Model, options: Distill, context: Context, samples: TrainingSamples, holdout: Dataset) -> Outcome:
    """The model with trained weights, or as it was where nothing better was found on `holdout`."""
    device = course.device(options)
    with course.settings(context.threads, device):
        allowed = select((node.name or "" for node in model.graph.all_nodes()), options.include, options.exclude)
        network = Network(model, allowed, device)
        learnt, details = taught(network, options, context, samples, holdout, options.teacher, options.precision)
        return course.outcome(model, learnt, details)


def taught(
    network: Network,
    options: TrainingOptions,
    context: Context,
    samples: TrainingSamples,
    holdout: Dataset,
    teacher: str | None,
    precision: Literal["auto", "float32", "bfloat16"],
) -> tuple[Learnt, TrainingDetails]:
    """The network after it has learnt the answers of `teacher`, a file (`None`: the original); proved before and after.

    Raises LeptonError where nothing trains, or torch computes something else than onnxruntime.
    """
    if not network.parameters:
        raise ModelError("train.nothing", "no weight of the model trains", hint="look at `include` and `exclude`")
    difference = proof.prove(network, context.check, context.workdir, context.threads)
    made = Course(network, options, context, samples, holdout, precision)
    original = context.original if teacher is None else io.load(context.base / teacher).model
    answers = Teacher(original, network, made.first)
    before = _agreement(original, network.model, made.kept, context)
    learnt = made.learn(answers, options.step)
    proof.prove(network, context.check, context.workdir, context.threads)
    told = {
        "teacher": teacher or "the original",
        "losses": answers.said,
        "proof": difference,
        "agreement_before": before,
        "agreement_after": _agreement(original, learnt.model, made.kept, context),
    }
    return learnt, learnt.details.model_copy(update=told)


def _agreement(original: ir.Model, made: ir.Model, kept: Sequence[Batch], context: Context) -> float | None:
    """Share of the samples with the same answer, as onnxruntime computes both; `None` where there are no classes."""
    first, second = (
        Session(io.payload(model, context.workdir), threads=context.threads, spin=False) for model in (original, made)
    )
    name = first.outputs[0].name
    same = []
    for batch in kept:
        one, other = first.run(batch.feeds, [name])[name], second.run(batch.feeds, [name])[name]
        if one.ndim != 2 or one.shape[1] < 2:
            return None
        same.append(one.argmax(1) == other.argmax(1))
    return float(np.concatenate(same).mean())
