"""The models of one measurement ("arms"), fed with the same arrays although their input names or types may differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from lepton_cli.errors import MeasurementError
from lepton_cli.runtime import Session, Values
from lepton_cli.tensors import TensorInfo

Payload = bytes | Path
#: Arm -> its input name -> the name in the data, where they differ.
InputNames = Mapping[str, Mapping[str, str]]
#: Arm -> outputs that steps made for it: the first model has none of that name, or one of another meaning.
NewOutputs = Mapping[str, Collection[str]]

_FLOATS = {"float16", "float32", "float64"}


def feeds_for(session: Session, feeds: Values, names: Mapping[str, str] | None = None) -> Values:
    """What `session` takes of `feeds`: renamed, and cast between float types (a model in float16 may want float16).

    Raises MeasurementError when an input gets nothing.
    """
    chosen: Values = {}
    for info in session.inputs:
        source = (names or {}).get(info.name, info.name)
        if source not in feeds:
            raise MeasurementError(
                "measure.input",
                f"nothing is fed to model input `{info.name}`",
                cause=f"the data has {', '.join(feeds)}",
            )
        array = feeds[source]
        if str(array.dtype) != info.dtype and str(array.dtype) in _FLOATS and info.dtype in _FLOATS:
            array = array.astype(info.dtype)
        # Not `ascontiguousarray`, which makes a vector of a single value.
        chosen[info.name] = np.asarray(array, order="C")
    return chosen


def misfit(inputs: Sequence[TensorInfo], feeds: Values) -> str:
    """Why these feeds cannot go into a model with fixed dimensions; empty when they can."""
    for info in inputs:
        array = feeds.get(info.name)
        if array is None or info.shape is None:
            continue
        if len(info.shape) != array.ndim or any(
            isinstance(want, int) and want != have for want, have in zip(info.shape, array.shape, strict=True)
        ):
            wanted = " x ".join("?" if d is None else str(d) for d in info.shape)
            return f"input `{info.name}` is fixed to {wanted}, not {' x '.join(map(str, array.shape))}"
    return ""


def output_names(reference: Session, other: Session) -> dict[str, str]:
    """Output of the reference -> output of the other model: by name, else by position.

    Raises MeasurementError when they have different numbers of outputs and a name is missing.
    """
    ours, theirs = [o.name for o in reference.outputs], [o.name for o in other.outputs]
    if set(ours) <= set(theirs):
        return {name: name for name in ours}
    if len(ours) != len(theirs):
        raise MeasurementError(
            "measure.outputs",
            f"the models cannot be compared: outputs {', '.join(ours)} against {', '.join(theirs)}",
        )
    return dict(zip(ours, theirs, strict=True))
