"""A recipe for those who have none: chosen from model, data and machine, printed, and saved beside the result."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_cli.commands import source
from lepton_cli.errors import ModelError
from lepton_cli.graph.facts import facts
from lepton_cli.graph.held import nothing_to_compress
from lepton_cli.model import io
from lepton_cli.progress import Progress
from lepton_cli.recipe import defaults
from lepton_cli.recipe.load import LoadedRecipe, from_dict


def choose(
    model: Path,
    data: Path | None,
    labels: str | None,
    progress: Progress,
    provider: str = "cpu",
    overrides: Sequence[str] = (),
) -> LoadedRecipe:
    """Choose a recipe, and change it by `--set` overrides. Paths in it are relative to the working folder.

    Raises ModelError, DataError, RecipeError.
    """
    loaded = io.load(model)
    if (why := nothing_to_compress(loaded.model)) is not None:
        hint = "train fewer or shallower trees; `lepton bench` and `evaluate` measure the model as it is"
        raise ModelError("model.no-tensors", why, hint=hint)
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
    recipe = from_dict(choice.recipe, "(chosen recipe)", overrides)
    warning = source.assumed(section.get("calibration", {}))
    if warning is None or any("scale" in override for override in overrides):
        return recipe
    return dataclasses.replace(recipe, warnings=(warning,))


def data_section(loaded: io.LoadedModel, data: Path, labels: str | None) -> tuple[dict[str, Any], bool]:
    """The `data:` section for one file, and whether it is labelled: then the first part calibrates, the rest evaluates.

    Labels are left out where the first output is no score of classes. Raises DataError.
    """
    described = source.describe(loaded.model, data)
    found = source.find_labels(loaded.model, described, labels, "calibration")
    if found is None:
        return {"calibration": described}, False
    name, samples = found
    count = min(512, max(1, samples // 3))
    return {
        "calibration": {**described, "first": count},
        "evaluation": {**described, "skip": count, "labels": name},
    }, True
