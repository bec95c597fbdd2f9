"""A recipe for those who have none: chosen from model, data and machine, printed, and saved beside the result."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lepton_cli.data.open import open_dataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError, ModelError
from lepton_cli.graph.facts import facts
from lepton_cli.graph.held import holders
from lepton_cli.model import io
from lepton_cli.progress import Progress
from lepton_cli.recipe import defaults
from lepton_cli.recipe.load import LoadedRecipe, from_dict

_LABEL_NAMES = ("labels", "label", "y", "target", "targets")


def choose(
    model: Path, data: Path | None, labels: str | None, progress: Progress, provider: str = "cpu"
) -> LoadedRecipe:
    """Choose a recipe. Paths in it are relative to the working folder. Raises ModelError, DataError."""
    loaded = io.load(model)
    _refuse_trees(loaded.model)
    section, labelled = data_section(loaded, data, labels) if data is not None else ({}, False)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.stem).strip("-.") or "model"
    choice = defaults.choose(
        facts(loaded.model),
        name=f"{name}-compressed",
        data=section,
        labelled=labelled,
        calibrated=bool(section),
        provider=provider,
    )
    for step, reason in zip(choice.recipe["steps"], choice.reasons, strict=True):
        progress.say(f"chosen: {step['step']}: {reason}")
    return from_dict(choice.recipe, "(chosen recipe)")


def _refuse_trees(model: ir.Model) -> None:
    """Raise ModelError where all that is large stands in attributes of nodes: no step can make it smaller."""
    held = holders(model)
    if held and not any(holder.tensors for holder in held):
        operators = ", ".join(sorted({holder.node.op_type for holder in held}))
        raise ModelError(
            "model.no-tensors",
            f"nothing in this model can be compressed: its {sum(holder.values for holder in held):,} numbers are "
            f"attributes of {operators}, and lepton prunes and quantizes tensors",
            hint="train fewer or shallower trees; `lepton bench` and `evaluate` measure the model as it is",
        )


def data_section(loaded: io.LoadedModel, data: Path, labels: str | None) -> tuple[dict[str, Any], bool]:
    """The `data:` section for one file: labelled data is split, the first part calibrates, the rest evaluates."""
    path = os.path.relpath(data)
    inputs = io.inputs(loaded.model)
    for name in (labels,) if labels else _LABEL_NAMES:
        try:
            dataset = open_dataset(DataSpec(path=path, labels=name), inputs, name="calibration", base=Path())
        except DataError as error:
            if labels or error.option[-1:] != ("labels",):
                raise
            continue
        if not dataset.label_names:
            break
        count = min(512, max(1, dataset.count // 3))
        calibration = {"path": path, "first": count}
        return {"calibration": calibration, "evaluation": {"path": path, "skip": count, "labels": name}}, True
    open_dataset(DataSpec(path=path), inputs, name="calibration", base=Path())
    return {"calibration": {"path": path}}, False
