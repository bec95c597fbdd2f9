"""The steps of a recipe, one file each; `STEPS` is the literal table of them.

A step file imports neither numpy nor onnx at its top: its `Params` are read by `--help`, `schema` and recipe
errors. The algorithms it calls (in `prune/`, `quantize/`, `graph/`) are imported inside `apply`.

Adding a step: one file here, one line in the table, one test file.
"""

from __future__ import annotations

from lepton_cli.steps import (
    convert_fp16,
    fuse,
    prune_channels,
    prune_weights,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
    simplify,
)
from lepton_cli.steps.base import Params, Step

STEPS: dict[str, Step] = {
    "simplify": Step(simplify.Params, simplify.apply),
    "fuse": Step(fuse.Params, fuse.apply),
    "prune.channels": Step(prune_channels.Params, prune_channels.apply),
    "prune.weights": Step(prune_weights.Params, prune_weights.apply),
    "quantize.static": Step(quantize_static.Params, quantize_static.apply),
    "quantize.dynamic": Step(quantize_dynamic.Params, quantize_dynamic.apply),
    "quantize.weights": Step(quantize_weights.Params, quantize_weights.apply),
    "convert.fp16": Step(convert_fp16.Params, convert_fp16.apply),
}

__all__ = ["STEPS", "Params", "Step"]
