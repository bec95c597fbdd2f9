"""Choosing a safe recipe from what a model is, what data there is, and what machine this is.

Safe means: nothing that costs accuracy by design. Pruning is never chosen; int8 is, in the form that pays for this
kind of graph, with a gate on what it may cost.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lepton_cli.graph.facts import Facts


@dataclasses.dataclass(frozen=True)
class DefaultRecipe:
    """A recipe as plain data, and why each step is in it (one reason a step, in order)."""

    recipe: dict[str, Any]
    reasons: tuple[str, ...]


def choose(
    facts: Facts, *, name: str, data: dict[str, Any], labelled: bool, calibrated: bool, provider: str = "cpu"
) -> DefaultRecipe:
    """A recipe for `facts`. `data` is the `data:` section; `calibrated` says whether it has calibration data."""
    steps: list[dict[str, Any]] = [{"step": "simplify"}]
    reasons = ["folds constants and BatchNorm; outputs stay the same"]

    def add(step: dict[str, Any], reason: str) -> None:
        steps.append(step)
        reasons.append(reason)

    if facts.quantized:
        reasons[0] += "; the model is already quantized, so nothing else is done"
    elif provider in ("cuda", "tensorrt"):
        add({"step": "convert.fp16", "if_possible": True}, f"provider {provider} is fastest in float16")
    elif facts.transformer and not facts.convolutional:
        add(
            {"step": "quantize.dynamic", "if_possible": True},
            "int8 MatMuls, unfused (fused ones are slower); activations of transformers vary too much for fixed ranges",
        )
    elif facts.convolutions and calibrated:
        add(
            {"step": "quantize.static", "if_possible": True}, "int8 convolutions, with ranges from the calibration data"
        )
    elif facts.convolutions:
        reasons[0] += "; int8 convolutions need calibration data (--data)"
    elif facts.products:
        add({"step": "quantize.dynamic", "if_possible": True}, "int8 MatMul and Gemm; needs no data")
    gates: list[dict[str, Any]] = [{"metric": "size.file", "max_ratio": 1.01, "level": "warn"}]
    if labelled:
        gates.append({"metric": "accuracy.top1", "max_drop": "1 pp", "level": "warn"})
    recipe = {"version": 1, "name": name, "data": data, "steps": steps, "gates": gates}
    return DefaultRecipe({key: value for key, value in recipe.items() if value}, tuple(reasons))
