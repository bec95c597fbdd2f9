"""From stored samples to model inputs: pure functions, applied in the order of the fields of `Preprocess`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lepton_cli.data import pixels
from lepton_cli.data.dataset import Array
from lepton_cli.data.spec import Preprocess
from lepton_cli.errors import DataError

#: Samples as stored: one array with samples on axis 0, or a list when their shapes differ.
Raw = Array | list[Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """What `fill_missing: mean|median` and `standardise` learned from the calibration data: one value per column."""

    fill: Array | None = None
    mean: Array | None = None
    std: Array | None = None


def apply(raw: Raw, spec: Preprocess, dtype: str, fitted: Fitted = Fitted()) -> Raw:
    """Model-ready array `[n, ...]` of type `dtype` (numpy's name; `spec.dtype` goes first).

    A list of arrays `[1, ...]` where samples still have different shapes.

    Raises DataError when an operation does not fit the samples; its `option` begins with `preprocess`.
    """
    if isinstance(raw, list):
        parts = [_apply(sample[None], spec, dtype, fitted) for sample in raw]
        return np.concatenate(parts) if len({part.shape for part in parts}) == 1 else parts
    return _apply(raw, spec, dtype, fitted)


def _apply(raw: Array, spec: Preprocess, dtype: str, fitted: Fitted) -> Array:
    array = prepare(raw, spec, fitted)
    if spec.standardise:
        if fitted.mean is None or fitted.std is None:
            raise DataError(
                "data.no-statistics",
                "`standardise` takes its mean and deviation from the calibration data, and there is none",
                hint="add a `calibration` data set with `standardise: true`, or give `mean` and `std` as numbers",
                option=("preprocess", "standardise"),
            )
        array = (_as_float(array) - fitted.mean) / fitted.std
    if spec.layout:
        array = pixels.to_layout(array, spec.layout)
    array = cast(array, spec.dtype or dtype)
    if spec.pad:
        array = pad(array, spec.pad, spec.pad_value)
    if spec.shape is not None:
        array = _reshape(array, spec.shape)
    return np.ascontiguousarray(array)


def prepare(array: Array, spec: Preprocess, fitted: Fitted = Fitted()) -> Array:
    """The operations before `standardise`; channels or columns are on the last axis throughout."""
    array = fill(array, spec, fitted)
    if spec.resize is not None:
        array = pixels.resize(array, spec.resize, spec.interpolation)
    if spec.crop is not None:
        array = pixels.centre_crop(array, spec.crop)
    if spec.channels is not None:
        array = pixels.reorder(array, spec.channels)
    # A product, a difference and a quotient one after the other: `x * scale - mean` is what people write.
    if spec.scale is not None:
        array = _as_float(array) * _per_channel(array, spec.scale, "scale")
    if spec.mean is not None:
        array = _as_float(array) - _per_channel(array, spec.mean, "mean")
    if spec.std is not None:
        array = _as_float(array) / _per_channel(array, spec.std, "std")
    return array


def fill(array: Array, spec: Preprocess, fitted: Fitted) -> Array:
    """Replace NaN by the number asked for, or by the calibration data's mean or median of the column."""
    if spec.fill_missing in (None, "keep") or array.dtype.kind != "f":
        return array
    missing = np.isnan(array)
    if not missing.any():
        return array
    value = spec.fill_missing
    if isinstance(value, str):
        if fitted.fill is None:
            raise DataError(
                "data.no-statistics",
                f"`fill_missing: {value}` takes the {value} of the calibration data, and there is none",
                hint=f"add a `calibration` data set with `fill_missing: {value}`, or fill with a number",
                option=("preprocess", "fill_missing"),
            )
        return np.where(missing, fitted.fill, array).astype(array.dtype)
    return np.where(missing, np.asarray(value, array.dtype), array)


def _as_float(array: Array) -> Array:
    if array.dtype.kind not in "biuf":
        raise DataError(
            "data.not-numbers",
            f"arithmetic on samples of type {array.dtype}",
            hint="text goes to the model as it is: take `scale`, `mean`, `std` and `standardise` out",
            option=("preprocess",),
        )
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def _per_channel(array: Array, values: tuple[float, ...], option: str) -> Array:
    """`values` shaped to broadcast: one number, or one per entry of the last axis (of axis 1 if stored like that)."""
    numbers: Array = np.asarray(values, np.result_type(array.dtype, np.float32))
    if len(values) == 1:
        return numbers.reshape(())
    if array.ndim > 1 and array.shape[-1] == len(values):
        return numbers
    if array.ndim > 2 and array.shape[1] == len(values):
        return numbers.reshape(-1, *[1] * (array.ndim - 2))
    sample = "x".join(str(size) for size in array.shape[1:]) or "single values"
    raise DataError(
        "data.channels",
        f"`{option}` has {len(values)} numbers, but the samples ({sample}) have no axis of that size for channels",
        hint="give one number, or one per channel",
        option=("preprocess", option),
    )


def cast(array: Array, dtype: str) -> Array:
    """`array` as `dtype`; fractions are rounded for integer types. Raises DataError when values do not fit."""
    if dtype == "unknown":
        return array
    if dtype == "str":
        return array.astype(str).astype(object)
    target = _numpy_dtype(dtype)
    if array.dtype == target:
        return array
    if array.dtype.kind not in "biuf":
        raise DataError(
            "data.not-numbers",
            f"the samples are {array.dtype}, the model wants {dtype}",
            hint="encode text as numbers first",
            option=("inputs",),
        )
    if target.kind == "b":
        return np.not_equal(array, 0)
    if target.kind in "iu":
        return _to_integer(array, target)
    with np.errstate(over="ignore"):
        result = array.astype(target)
    if array.dtype.kind != "b" and not np.array_equal(np.isfinite(result.astype(np.float64)), np.isfinite(array)):
        raise DataError("data.overflow", f"values up to {np.nanmax(np.abs(array)):g} do not fit into {dtype}", **_SCALE)
    return result


_SCALE: dict[str, Any] = {"hint": "scale the values, for example `scale: 1/255`", "option": ("preprocess",)}


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    name: Any = dtype
    if dtype == "bfloat16":  # known to numpy by the type only
        import ml_dtypes

        name = ml_dtypes.bfloat16
    try:
        known: np.dtype[Any] = np.dtype(name)
        return known
    except TypeError:
        raise DataError("data.dtype", f"no array can feed an input of type {dtype}", option=("inputs",)) from None


def _to_integer(array: Array, target: np.dtype[Any]) -> Array:
    limits = np.iinfo(target)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise DataError(
                "data.not-finite",
                f"NaN or infinite values cannot become {target}",
                hint="fill_missing: 0",
                option=("preprocess",),
            )
        array = np.rint(array)
    # Python integers: numpy would compare int64 with uint64 limits in float64.
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise DataError(
            "data.overflow",
            f"values from {array.min():g} to {array.max():g} do not fit into {target} ({limits.min} to {limits.max})",
            **_SCALE,
        )
    return array.astype(target)


def pad(array: Array, length: int, value: float) -> Array:
    """Cut or fill the last axis to `length`. Raises DataError for samples without an axis."""
    if array.ndim < 2:
        raise DataError("data.pad", "`pad` needs samples that are lists", option=("preprocess", "pad"))
    array = array[..., :length]
    if array.shape[-1] == length:
        return array
    filled = np.full((*array.shape[:-1], length), cast(np.asarray(value), _name(array)), array.dtype)
    filled[..., : array.shape[-1]] = array
    return filled


def _name(array: Array) -> str:
    return "str" if array.dtype == object else str(array.dtype)


def _reshape(array: Array, shape: tuple[int, ...]) -> Array:
    try:
        return array.reshape(len(array), *shape)
    except ValueError:
        sample = "x".join(str(size) for size in array.shape[1:]) or "a single value"
        raise DataError(
            "data.shape",
            f"`shape: {list(shape)}` does not fit samples of {sample}",
            option=("preprocess", "shape"),
        ) from None


def stacked(parts: Raw) -> Array:
    """Samples of equal shapes as one array. Raises DataError for those that cannot form a batch."""
    if not isinstance(parts, list):
        return parts
    shapes = {part.shape[1:] for part in parts}
    listed = ", ".join(sorted("x".join(map(str, shape)) for shape in shapes)[:3])
    image = any(len(shape) > 1 for shape in shapes)
    raise DataError(
        "data.ragged",
        f"samples have different shapes ({listed}{', …' if len(shapes) > 3 else ''}) and cannot form a batch",
        hint=("add `resize` and `crop`" if image else "add `pad: LENGTH`")
        + ", or `batch: 1` where the model takes any shape",
        option=("preprocess",),
    )
