"""Random changes to stored samples, a batch at a time: pure functions of the batch, what is asked for, seed and step.

Images are stored channels-last, `[n, height, width]` or `[n, height, width, channels]`; samples whose shapes differ
come as a list of arrays without the first axis. Every result has the type and the shapes of what was given. Labels are
not looked at: where they name places in an image (boxes, masks), `flip` and `crop` do not move them along.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lepton_cli.data.dataset import Array
from lepton_cli.data.preprocess import Raw
from lepton_cli.data.spec import Augmentation, ColourChange, DroppedTokens, Preprocess, RandomWindow
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

#: What the samples of an input are: `tokens` are ids, `mask` tells which of them are there, `other` is left alone.
SampleKind = Literal["images", "numbers", "tokens", "mask", "other"]
#: What each augmentation changes, and how that is said.
_CHANGES: Mapping[str, tuple[tuple[SampleKind, ...], str]] = {
    "flip": (("images",), "images stored channels-last"),
    "crop": (("images",), "images stored channels-last"),
    "colour": (("images",), "images stored channels-last"),
    "noise": (("images", "numbers"), "numbers or images"),
    "shift": (("numbers",), "sequences of numbers, long enough for its share to be a step"),
    "drop_tokens": (("tokens",), "token ids (whole numbers, samples x length)"),
    "mixup": (("images", "numbers"), "numbers or images"),
}
#: Whole numbers that are no token ids, by parts of the input's name.
_NO_IDS = ("type", "segment", "position", "length")
#: ITU-R 601 luma.
_LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Augmented:
    """A batch of stored samples as changed. With `mixup` row `i` is `share[i]` of its own and `1 - share[i]` of row
    `partners[i]` as they were; a loss is the same mixture of the losses for the labels of both."""

    inputs: dict[str, Raw]
    partners: NDArray[np.intp] | None = None
    share: NDArray[np.float32] | None = None


def kind(stored: Raw, info: TensorInfo, preprocess: Preprocess) -> SampleKind:
    """What the stored samples of an input are, by their shape and type, the model's type, and `preprocess`."""
    array = stored[0][None] if isinstance(stored, list) else stored
    masks = "mask" in info.name.lower()
    if array.dtype.kind not in "iuf":
        return "mask" if masks and array.dtype.kind == "b" else "other"
    asked = bool(preprocess.layout or preprocess.channels or preprocess.resize or preprocess.crop)
    whole = info.dtype in ("int32", "int64")
    if array.ndim == 4 and (asked or (array.shape[3] in (1, 3, 4) and not whole)):
        return "images"
    if array.ndim == 3 and (asked or (array.dtype == np.uint8 and not whole)):
        return "images"
    if masks:
        return "mask"
    if info.dtype.startswith(("float", "bfloat")):
        return "numbers"
    return "tokens" if whole and array.ndim == 2 and not any(word in info.name.lower() for word in _NO_IDS) else "other"


def augment(
    inputs: Mapping[str, Raw], kinds: Mapping[str, SampleKind], how: Sequence[Augmentation], seed: int, step: int
) -> Augmented:
    """Stored samples, changed as `how` says, in its order. The same `seed` and `step` change equal batches equally.

    Each augmentation draws from a stream of its own (Philox, by seed, step and its position in the list); all images of
    a sample get the same flip, window and colours. Raises DataError for an augmentation that fits none of the inputs.
    """
    changed = Augmented(dict(inputs))
    for position, one in enumerate(how):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(step, position))))
        try:
            changed = _changed(changed, kinds, one, rng)
        except DataError as error:
            error.option = ("data", "training", "augment", position, one.name)
            raise
    return changed


def _changed(
    given: Augmented, kinds: Mapping[str, SampleKind], one: Augmentation, rng: np.random.Generator
) -> Augmented:
    inputs = dict(given.inputs)
    wanted, words = _CHANGES[one.name]
    names = [name for name in inputs if kinds[name] in wanted]
    if one.shift is not None:
        names = [name for name in names if _reach(inputs[name], one.shift)]
    if not names:
        listed = ", ".join(f"`{name}` ({kinds[name]})" for name in inputs)
        raise DataError(
            "data.augment",
            f"`{one.name}` fits none of the inputs: it changes {words}",
            cause=f"inputs: {listed}",
            hint="take it out" + ("; grey images are known by uint8 or by `layout`" if wanted == ("images",) else ""),
        )
    count = len(inputs[names[0]])
    if one.mixup is not None:
        partners = rng.permutation(count)
        share = rng.beta(one.mixup, one.mixup, count).astype(np.float32)
        return Augmented(
            {name: _mix(inputs[name], name, kinds[name], partners, share) for name in inputs}, partners, share
        )
    draws = rng.random((count, 4))
    for name in names:
        if one.drop_tokens is not None:
            inputs[name] = _dropped(inputs, name, kinds, one.drop_tokens, rng)
        else:
            inputs[name] = _each(inputs[name], _change(one, kinds[name], rng), draws)
    return dataclasses.replace(given, inputs=inputs)


def _change(one: Augmentation, kind: SampleKind, rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    """What changes samples of one shape, given a row of numbers from 0 to 1 for each."""
    if one.flip is not None:
        return functools.partial(_flip, axes={"horizontal": (2,), "vertical": (1,), "both": (1, 2)}[one.flip])
    if one.crop is not None:
        return functools.partial(_padded_window if one.crop.pad is not None else _resized_window, crop=one.crop)
    if one.colour is not None:
        return functools.partial(_colour, how=one.colour)
    if one.noise is not None:
        return functools.partial(_noise, amount=one.noise, image=kind == "images", rng=rng)
    assert one.shift is not None
    return functools.partial(_shift, share=one.shift)


def _each(raw: Raw, change: Callable[[Array, Array], Array], draws: Array) -> Raw:
    """The samples changed together where they are one array, else one by one. `draws`: a row for each."""
    if isinstance(raw, list):
        return [change(sample[None], draws[row : row + 1])[0] for row, sample in enumerate(raw)]
    return change(raw, draws)


def _flip(array: Array, draws: Array, axes: Sequence[int]) -> Array:
    """Every sample along each of `axes` with probability 1/2."""
    result = array.copy()
    for number, axis in enumerate(axes):
        rows = np.flatnonzero(draws[:, number] < 0.5)
        result[rows] = np.flip(result[rows], axis)
    return result


def _padded_window(array: Array, draws: Array, crop: RandomWindow) -> Array:
    """A window of the image's size at a random place of the image with `crop.pad` zeros around."""
    pad = crop.pad or 0
    height, width = array.shape[1:3]
    if pad >= min(height, width):
        raise DataError(
            "data.augment", f"`pad: {pad}` around images of {height}x{width} can leave nothing of them",
            hint="an eighth of the side is usual",
        )  # fmt: skip
    result = np.zeros_like(array)
    moves = np.floor(draws[:, :2] * (2 * pad + 1)).astype(np.intp) - pad
    for image, place, (down, right) in zip(array, result, moves.tolist(), strict=True):
        to, of = _overlap(down, height), _overlap(right, width)
        place[to[0], of[0]] = image[to[1], of[1]]
    return result


def _overlap(move: int, size: int) -> tuple[slice, slice]:
    """Where an axis that begins `move` further lies in the result, and what of it."""
    return slice(max(0, -move), min(size, size - move)), slice(max(0, move), min(size, size + move))


def _resized_window(array: Array, draws: Array, crop: RandomWindow) -> Array:
    """A window of random area and aspect, cut to the image, resized bilinearly to the image's size.

    As in Inception's training (Szegedy et al. 2015): area uniform, aspect uniform in its logarithm.
    """
    assert crop.random is not None
    height, width = array.shape[1:3]
    area = height * width * (crop.random[0] + draws[:, 0] * (crop.random[1] - crop.random[0]))
    low, high = np.log(crop.aspect)
    aspect = np.exp(low + draws[:, 1] * (high - low))
    heights = np.clip(np.rint(np.sqrt(area / aspect)), 1, height)
    widths = np.clip(np.rint(np.sqrt(area * aspect)), 1, width)
    rows, below, down = _places(np.floor(draws[:, 2] * (height - heights + 1)), heights, height)
    columns, beside, right = _places(np.floor(draws[:, 3] * (width - widths + 1)), widths, width)
    result = np.empty_like(array)
    for index, image in enumerate(array):
        lines = _between(image[rows[index]], image[below[index]], down[index], 0)
        found = _between(lines[:, columns[index]], lines[:, beside[index]], right[index], 1)
        result[index] = _stored(found, array.dtype)
    return result


def _places(start: Array, length: Array, size: int) -> tuple[Array, Array, Array]:
    """For `size` pixels over windows of an axis, `[n, size]`: the two stored pixels each lies between, and how far."""
    inside = np.maximum((np.arange(size) + 0.5) * (length[:, None] / size) - 0.5, 0)
    first = np.floor(inside)
    second = np.minimum(first + 1, length[:, None] - 1)
    moved = start[:, None]
    return (first + moved).astype(np.intp), (second + moved).astype(np.intp), (inside - first).astype(np.float32)


def _between(one: Array, other: Array, share: Array, axis: int) -> Array:
    """`one + share * (other - one)`: exact where both are equal."""
    one, other = _float(one), _float(other)
    part = share.reshape([-1 if place == axis else 1 for place in range(one.ndim)])
    return np.asarray(one + part * (other - one))


def _colour(array: Array, draws: Array, how: ColourChange) -> Array:
    """Factors on the values, on their distance from the image's mean grey, on their distance from each pixel's grey."""
    channels = array.shape[3] if array.ndim == 4 else 1
    if channels not in (1, 3) or (how.saturation and channels == 1):
        wanted = "images with 3 channels" if how.saturation else "grey images or images with 3 channels"
        raise DataError("data.augment", f"`colour` needs {wanted}, these have {channels}", hint="take it out")
    factors = 1 + (2 * draws[:, :3] - 1) * (how.brightness, how.contrast, how.saturation)
    brightness, contrast, saturation = factors.T.astype(np.float32).reshape(3, -1, *[1] * (array.ndim - 1))
    values = _float(array) * brightness
    if how.contrast:
        mean = _grey(values).mean(axis=(1, 2), keepdims=True).reshape(-1, *[1] * (array.ndim - 1))
        values = mean + contrast * (values - mean)
    if how.saturation:
        grey = _grey(values)[..., None]
        values = grey + saturation * (values - grey)
    return _stored(values, array.dtype)


def _grey(values: Array) -> Array:
    """Luma, `[n, height, width]`."""
    if values.ndim == 3 or values.shape[3] == 1:
        return values.reshape(values.shape[:3])
    return values[..., 0] * _LUMA[0] + values[..., 1] * _LUMA[1] + values[..., 2] * _LUMA[2]


def _noise(array: Array, draws: Array, amount: float, image: bool, rng: np.random.Generator) -> Array:
    """Gaussian noise of `amount` standard deviations; these are of a column of the last axis, over the whole batch."""
    values = _float(array)
    drawn = rng.standard_normal(array.shape, np.float32)
    columns = array.shape[-1] if array.ndim > (3 if image else 1) else 1
    return _stored(values + drawn * (amount * _deviations(values.reshape(-1, columns))), array.dtype)


def _deviations(rows: Array) -> Array:
    """Standard deviation of the finite values of each column; of all of them where a column holds one value only."""
    columns = np.ascontiguousarray(rows.T) if len(rows) > 1 else rows
    known = np.isfinite(columns)
    count = np.maximum(known.sum(axis=1), 1)
    mean = np.where(known, columns, 0).sum(axis=1, dtype=np.float64) / count
    distances = np.where(known, columns - mean[:, None].astype(rows.dtype), 0)
    return np.asarray(np.sqrt((distances**2).sum(axis=1, dtype=np.float64) / count), rows.dtype)


def _reach(raw: Raw, share: float) -> int:
    """The furthest that the longest sample may be shifted; 0 where samples have no axis."""
    return max(
        int(share * sample.shape[-1]) if sample.ndim else 0 for sample in (raw if isinstance(raw, list) else raw[:1])
    )


def _shift(array: Array, draws: Array, share: float) -> Array:
    """Each sample moved along its last axis, zeros following."""
    size = array.shape[-1]
    most = int(share * size)
    result = np.zeros_like(array)
    moves = np.floor(draws[:, 0] * (2 * most + 1)).astype(np.intp) - most
    for sample, place, move in zip(array, result, moves.tolist(), strict=True):
        to, of = _overlap(move, size)
        place[..., to] = sample[..., of]
    return result


def _dropped(
    inputs: Mapping[str, Raw],
    name: str,
    kinds: Mapping[str, SampleKind],
    how: DroppedTokens,
    rng: np.random.Generator,
) -> Raw:
    """The ids of all samples, each beside its row of the first mask that has the same lengths."""
    raw = inputs[name]
    lengths = [sample.shape for sample in raw]
    masks = [inputs[other] for other in inputs if kinds[other] == "mask"]
    fitting = [mask for mask in masks if [sample.shape for sample in mask] == lengths]
    shown = fitting[0] if fitting else [np.ones(shape, bool) for shape in lengths]
    rows = [_drop(ids, mask, how.share, how.token, rng) for ids, mask in zip(raw, shown, strict=True)]
    return rows if isinstance(raw, list) else np.stack(rows)


def _drop(ids: Array, mask: Array, share: float, token: int, rng: np.random.Generator) -> Array:
    """`token` in place of a share of one sample's ids; never the first that the mask shows, never one that it hides."""
    if ids.dtype.kind in "iu" and token > np.iinfo(ids.dtype).max:
        raise DataError("data.augment", f"`token: {token}` does not fit into the stored type {ids.dtype}")
    shown = np.asarray(mask) != 0
    free = shown & (np.cumsum(shown) > 1)
    return np.where(free & (rng.random(ids.shape) < share), np.asarray(token, ids.dtype), ids)


def _mix(raw: Raw, name: str, kind: SampleKind, partners: NDArray[np.intp], share: NDArray[np.float32]) -> Raw:
    """Samples mixed with their partners. Raises DataError for what has no mixture, unless partners are equal."""
    if isinstance(raw, list):
        raise DataError(
            "data.augment",
            f"`mixup` needs samples of one shape, those of `{name}` differ",
            hint="store them in one size",
        )
    if kind not in ("images", "numbers"):
        if np.array_equal(raw, raw[partners]):
            return raw
        raise DataError(
            "data.augment", f"`mixup` has no mixture for input `{name}` ({kind})", hint="it needs numbers: take it out"
        )
    part = share.reshape(-1, *[1] * (raw.ndim - 1))
    values = _float(raw)
    return _stored(part * values + (1 - part) * values[partners], raw.dtype)


def _float(array: Array) -> Array:
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def _stored(values: Array, dtype: np.dtype[Any]) -> Array:
    """Back to the stored type: whole numbers rounded and kept in its range, in the memory of `values`."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values, out=values), limits.min, limits.max, out=values)
    return values.astype(dtype, copy=False)
