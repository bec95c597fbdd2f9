"""Measuring without a recipe file: what the command line says, put into the form that measurements take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lepton_cli.commands import source
from lepton_cli.errors import ModelError, RecipeError, UsageError
from lepton_cli.recipe.load import LoadedRecipe, from_dict
from lepton_cli.tensors import TensorInfo


def recipe(
    model: ir.Model,
    latency: Mapping[str, Any] | None,
    *,
    data: Path | None = None,
    labels: str | None = None,
    memory: bool = True,
) -> LoadedRecipe:
    """A recipe that only measures. `latency`: options as in `evaluate.latency`, `None` for none.

    Raises UsageError for values that cannot be read, DataError for data that does not fit the model.
    """
    if labels is not None and data is None:
        raise UsageError("usage.labels-without-data", "--labels names an array of the data, so it needs --data FILE")
    section: dict[str, Any] = {}
    warning = None
    if data is not None:
        described = source.describe(model, data)
        # Folders of pictures are classes, unless the model scores none.
        scored = labels is not None or not data.is_dir() or source.scores_classes(model)
        role = "evaluation" if scored else "calibration"
        found = source.find_labels(model, described, labels, role)
        section = {role: {**described, **({"labels": found[0]} if found else {})}}
        warning = source.assumed(described)
    measured = {"latency": False if latency is None else dict(latency), "memory": memory}
    try:
        # A recipe has steps; these commands run none.
        made = from_dict({"version": 1, "data": section, "steps": [{"step": "simplify"}], "evaluate": measured})
    except RecipeError as error:
        raise UsageError("usage.wrong-value", error.message, cause=error.cause, hint=error.hint) from error
    return made if warning is None else dataclasses.replace(made, warnings=(warning,))


def match_inputs(ours: Sequence[TensorInfo], theirs: Sequence[TensorInfo], what: str) -> dict[str, str]:
    """Their input -> ours: by name, else by position where types and shapes agree; empty when the names are the same.

    Raises ModelError when the two cannot be fed with the same data.
    """
    if {info.name for info in theirs} <= {info.name for info in ours}:
        return {}
    if len(ours) == len(theirs) and all(map(_compatible, ours, theirs)):
        return {info.name: own.name for info, own in zip(theirs, ours, strict=True)}
    raise ModelError(
        "model.other-inputs",
        f"{what} takes other inputs than the first model",
        cause=f"{', '.join(map(str, ours))}; here {', '.join(map(str, theirs))}",
        hint="models are compared on the same data, so their inputs must have the same types and shapes",
    )


def _compatible(one: TensorInfo, other: TensorInfo) -> bool:
    floats = one.dtype.startswith("float") and other.dtype.startswith("float")
    if one.dtype != other.dtype and not floats:
        return False
    if one.shape is None or other.shape is None:
        return True
    return len(one.shape) == len(other.shape) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(one.shape, other.shape, strict=True)
    )
