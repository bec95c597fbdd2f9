"""A recipe for those who have none: chosen from model, data and machine, printed, and saved beside the result."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lepton_cli.data.open import open_dataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError, ModelError
from lepton_cli.graph.edit import array_of
from lepton_cli.graph.facts import facts
from lepton_cli.graph.held import nothing_to_compress
from lepton_cli.measure.metrics import VECTORS
from lepton_cli.model import io
from lepton_cli.progress import Progress
from lepton_cli.recipe import defaults
from lepton_cli.recipe.load import LoadedRecipe, from_dict
from lepton_cli.tensors import TensorInfo

_LABEL_NAMES = ("labels", "label", "y", "target", "targets")
#: Operators behind the one that computes an output, and those that end an embedding.
_RESHAPING = frozenset({"Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity", "Cast"})
_VECTOR_ENDS = frozenset(
    {"LpNormalization", "LayerNormalization", "SkipLayerNormalization", "Tanh", "GroupNormalization"}
)


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
    fitting = pictures(io.inputs(loaded.model), data) if data is not None else None
    section, labelled = data_section(loaded, data, labels, fitting) if data is not None else ({}, False)
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
    if fitting is None or "scale" not in fitting or any("scale" in override for override in overrides):
        return recipe
    warning = (
        f"pictures are assumed to be read as {fitting.get('channels', 'RGB')} from 0 to 1 (`scale: 1/255`); where the "
        "model was trained otherwise, say how in the recipe that `lepton init --data` writes"
    )
    return dataclasses.replace(recipe, warnings=(warning,))


def data_section(
    loaded: io.LoadedModel, data: Path, labels: str | None, preprocess: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], bool]:
    """The `data:` section for one file: labelled data is split, the first part calibrates, the rest evaluates.

    Labels are left out where the first output is no score of classes. `preprocess`: as in a recipe.
    """
    source: dict[str, Any] = {"path": os.path.relpath(data), **({"preprocess": dict(preprocess)} if preprocess else {})}
    if preprocess and "resize" not in preprocess:  # pictures of any size
        source["batch"] = 1
    inputs = io.inputs(loaded.model)
    classes = labels is not None or scores_classes(loaded.model)
    for name in (labels,) if labels else _LABEL_NAMES if classes else ():
        try:
            dataset = open_dataset(_spec({**source, "labels": name}), inputs, name="calibration", base=Path())
        except DataError as error:
            if labels or error.option[-1:] != ("labels",):
                raise
            continue
        if not dataset.label_names:
            break
        count = min(512, max(1, dataset.count // 3))
        return {
            "calibration": {**source, "first": count},
            "evaluation": {**source, "skip": count, "labels": name},
        }, True
    open_dataset(_spec(source), inputs, name="calibration", base=Path())
    return {"calibration": source}, False


def pictures(inputs: Sequence[TensorInfo], data: Path) -> dict[str, Any] | None:
    """Preprocessing that gives the pictures of a folder the shape of the only input; `None` where it takes none."""
    shape = inputs[0].shape if len(inputs) == 1 and data.is_dir() else None
    if shape is None or len(shape) != 4:
        return None
    layout = next((name for name, axis in (("nchw", 1), ("nhwc", 3)) if shape[axis] in (1, 3)), None)
    if layout is None:
        return None
    channels, size = (shape[1], shape[2:]) if layout == "nchw" else (shape[3], shape[1:3])
    found: dict[str, Any] = {"layout": layout}
    if all(isinstance(side, int) for side in size):
        found["resize"] = list(size)
    if channels == 1:
        found["channels"] = "gray"
    return found if inputs[0].dtype == "uint8" else {**found, "scale": "1/255"}


def _spec(source: Mapping[str, Any]) -> DataSpec:
    return DataSpec.model_validate(source)


def scores_classes(model: ir.Model) -> bool:
    """Whether the first output may hold one score for each class: a row of numbers a sample that is no embedding.

    Embeddings are known by their names, and by what ends in them: a mean over tokens, a length of 1, a normalisation.
    """
    value = model.graph.outputs[0]
    if value.dtype is not None and not value.dtype.is_floating_point():
        return True
    if value.shape is not None and sum(dim != 1 for dim in value.shape.dims[1:]) > 1:
        return False
    node = value.producer()
    while node is not None and node.op_type in _RESHAPING and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or VECTORS.search(value.name or ""):
        return node is None
    if node.op_type == "Div":  # by a length, or by a count of tokens
        return array_of(node) is not None
    if node.op_type == "ReduceMean":  # over tokens; a mean over height and width may well end in scores
        axes = node.attributes.get_ints("axes", None) or array_of(node)
        return axes is not None and len(np.atleast_1d(axes)) > 1
    return node.op_type not in _VECTOR_ENDS
