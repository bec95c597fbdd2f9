"""The `data:` section that a file or a folder of pictures becomes where no recipe says how to read it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lepton_cli.data import batching
from lepton_cli.data.open import open_dataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.graph import feeds
from lepton_cli.graph.edit import array_of
from lepton_cli.graph.fitting import flexible
from lepton_cli.measure.metrics import VECTORS
from lepton_cli.model import io

#: What labels are usually called.
_LABELS = ("labels", "label", "y", "target", "targets")
#: Operators behind the one that computes an output, and those that end an embedding.
_RESHAPING = frozenset({"Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity", "Cast"})
_VECTOR_ENDS = frozenset(
    {"LpNormalization", "LayerNormalization", "SkipLayerNormalization", "Tanh", "GroupNormalization"}
)


def describe(model: ir.Model, data: Path) -> dict[str, Any]:
    """A recipe's description of unlabelled data: the path from the working folder, and how pictures are read."""
    source: dict[str, Any] = {"path": os.path.relpath(data)}
    fitting = _pictures(model) if data.is_dir() else None
    if fitting is None:
        return source
    size = fitting.get("resize", ("auto",))
    # Pictures of different sizes go one by one.
    return {**source, "preprocess": fitting, **({"batch": 1} if "auto" in size else {})}


def find_labels(model: ir.Model, source: Mapping[str, Any], labels: str | None, role: str) -> tuple[str, int] | None:
    """What the labels in the data that `source` describes are called, `labels` or a usual name, and how many there are.

    `None` where there are none, or where the first output holds no scores of classes. Raises DataError.
    """
    inputs = io.inputs(model)
    for name in (labels,) if labels else _LABELS if scores_classes(model) else ():
        try:
            found = open_dataset(DataSpec(**source, labels=name), inputs, name=role, base=Path())
        except DataError as error:
            if labels or error.option[-1:] != ("labels",):
                raise
            continue
        return (name, found.count) if found.label_names else None
    open_dataset(DataSpec(**source), inputs, name=role, base=Path())
    return None


def assumed(source: Mapping[str, Any]) -> str | None:
    """What is assumed of pictures and cannot be known from the model, for a warning."""
    fitting = source.get("preprocess", {})
    if "scale" not in fitting:
        return None
    return (
        f"pictures are assumed to be read as {fitting.get('channels', 'RGB')} from 0 to 1 (`scale: 1/255`); where the "
        "model was trained otherwise, say how in the recipe that `lepton init --data` writes"
    )


def _pictures(model: ir.Model) -> dict[str, Any] | None:
    """Preprocessing that gives pictures the shape of the only input; `None` where it takes none.

    A side that the graph leaves free is that of the picture, in proportion where the other is fixed.
    """
    inputs = io.inputs(model)
    if len(inputs) != 1 or inputs[0].shape is None or len(inputs[0].shape) != 4:
        return None
    name, told = inputs[0].name, inputs[0].shape
    sizes = feeds.default_feeds(model)
    shape = sizes[name]
    layout = next((layout for layout, axis in (("nchw", 1), ("nhwc", 3)) if shape[axis] in (1, 3)), None)
    if layout is None:
        return None
    found: dict[str, Any] = {"layout": layout}
    size = [
        "auto" if not isinstance(told[axis], int) and flexible(model, sizes, name, axis) else shape[axis]
        for axis in ((2, 3) if layout == "nchw" else (1, 2))
    ]
    if size != ["auto", "auto"]:
        found["resize"] = size
    if shape[1 if layout == "nchw" else 3] == 1:
        found["channels"] = "gray"
    return found if inputs[0].dtype == "uint8" else {**found, "scale": "1/255"}


def scores_classes(model: ir.Model) -> bool:
    """Whether the first output may hold one score for each class: a row of numbers a sample that is no embedding.

    Embeddings are known by their names, and by what ends in them: a mean over tokens, a length of 1, a normalisation.
    """
    value = model.graph.outputs[0]
    if value.dtype is not None and not value.dtype.is_floating_point():
        return True
    if value.shape is not None and sum(dim != 1 for dim in value.shape.dims[1:]) > 1:
        return False
    rows = value.shape[0] if value.shape else None
    samples = batching.layout(io.inputs(model)).fixed
    if isinstance(rows, int) and samples not in (None, rows):
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
