"""Measuring without a recipe file: what the command line says, put into the form that measurements take."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepton_cli.data.open import open_dataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError, ModelError, RecipeError, UsageError
from lepton_cli.recipe.load import LoadedRecipe, from_dict
from lepton_cli.tensors import TensorInfo

#: What labels are usually called.
_LABELS = ("labels", "label", "y", "target", "targets")


def recipe(
    inputs: Sequence[TensorInfo],
    latency: Mapping[str, Any] | None,
    *,
    data: Path | None = None,
    labels: str | None = None,
    memory: bool = True,
) -> LoadedRecipe:
    """A recipe that only measures. `latency`: options as in `evaluate.latency`, `None` for none.

    Raises UsageError for values that cannot be read, DataError for data that does not fit the inputs.
    """
    if labels is not None and data is None:
        raise UsageError("usage.labels-without-data", "--labels names an array of the data, so it needs --data FILE")
    section = {"evaluation": evaluation(inputs, data, labels)} if data is not None else {}
    measured = {"latency": False if latency is None else dict(latency), "memory": memory}
    try:
        # A recipe has steps; these commands run none.
        return from_dict({"version": 1, "data": section, "steps": [{"step": "simplify"}], "evaluate": measured})
    except RecipeError as error:
        raise UsageError("usage.wrong-value", error.message, cause=error.cause, hint=error.hint) from error


def evaluation(inputs: Sequence[TensorInfo], data: Path, labels: str | None) -> dict[str, Any]:
    """The `evaluation:` section for a file; labels are looked for under their usual names. Raises DataError."""
    path = os.path.relpath(data)
    for name in (labels,) if labels else _LABELS:
        try:
            found = open_dataset(DataSpec(path=path, labels=name), inputs, name="evaluation", base=Path())
        except DataError as error:
            if labels or error.option[-1:] != ("labels",):
                raise
            continue
        return {"path": path, "labels": name} if found.label_names else {"path": path}
    return {"path": path}


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
