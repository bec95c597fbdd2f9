"""The literal table of a recipe's steps.

Options are read by `--help`, `schema` and recipe errors, so each `spec.py` imports neither numpy nor onnx; the function
that a row names is imported when the step runs.

Adding a step: its options in a `spec.py`, its function and what it tells (`details.py`) beside them, and here a row and
the name of its options, which is public with that (`lepton.Fuse`).
"""

from __future__ import annotations

from lepton_cli.graph.details import FuseDetails, HeadDetails
from lepton_cli.graph.spec import BatchFree, Fuse, HeadAdd, HeadReplace, Simplify
from lepton_cli.prune.details import PruneChannelsDetails, PruneWeightsDetails
from lepton_cli.prune.spec import PruneChannels, PruneWeights
from lepton_cli.quantize.details import (
    ConvertFp16Details,
    QuantizeDynamicDetails,
    QuantizeStaticDetails,
    QuantizeWeightsDetails,
)
from lepton_cli.quantize.spec import ConvertFp16, QuantizeAware, QuantizeDynamic, QuantizeStatic, QuantizeWeights
from lepton_cli.step import Step
from lepton_cli.train.details import TrainingDetails
from lepton_cli.train.spec import Distill, Finetune

__all__ = [
    "BatchFree",
    "ConvertFp16",
    "Distill",
    "Finetune",
    "Fuse",
    "HeadAdd",
    "HeadReplace",
    "PruneChannels",
    "PruneWeights",
    "QuantizeAware",
    "QuantizeDynamic",
    "QuantizeStatic",
    "QuantizeWeights",
    "Simplify",
]

STEPS: dict[str, Step] = {
    "simplify": Step(Simplify, "simplify.simplify:simplify"),
    "fuse": Step(Fuse, "graph.fuse:fuse", FuseDetails),
    "batch.free": Step(BatchFree, "graph.batch:free"),
    "head.add": Step(HeadAdd, "graph.heads:add", HeadDetails),
    "head.replace": Step(HeadReplace, "graph.heads:replace", HeadDetails),
    "prune.channels": Step(PruneChannels, "prune.channels:prune", PruneChannelsDetails),
    "prune.weights": Step(PruneWeights, "prune.weights:prune", PruneWeightsDetails),
    "distill": Step(Distill, "train.steps:distill", TrainingDetails),
    "finetune": Step(Finetune, "train.steps:finetune", TrainingDetails),
    "quantize.static": Step(QuantizeStatic, "quantize.static:quantize", QuantizeStaticDetails),
    "quantize.aware": Step(QuantizeAware, "quantize.aware:aware", TrainingDetails),
    "quantize.dynamic": Step(QuantizeDynamic, "quantize.dynamic:quantize", QuantizeDynamicDetails),
    "quantize.weights": Step(QuantizeWeights, "quantize.weights:quantize", QuantizeWeightsDetails),
    "convert.fp16": Step(ConvertFp16, "quantize.fp16:convert", ConvertFp16Details),
}
