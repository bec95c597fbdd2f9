"""Pictures and sound beside what they should be: a value per sample, and its mean."""

from __future__ import annotations

from functools import partial

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.errors import DataError
from lepton_cli.measure.formula import Formula, KeptColumns, flat, mean, shape_of
from lepton_cli.measure.spec import AccuracySpec

#: What float32 cannot tell from no error, as a share of the signal's power: no value is above 144.5 dB.
_LEAST = 2.0**-48
#: Of SSIM: the window's width and deviation in pixels, and the constants of its denominators as shares of the peak.
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03
#: Windows that one matrix product takes.
_BLOCK = 32


def psnr(spec: AccuracySpec) -> Formula:
    """Peak signal-to-noise ratio in dB: 10 log10 of the squared peak over a sample's mean squared error."""
    return Formula(partial(_psnr, peak=spec.peak), mean, share=_without_error)


def si_sdr(spec: AccuracySpec) -> Formula:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, eq. 4), of the last axis."""
    return Formula(_si_sdr, mean, share=_without_error)


def ssim(spec: AccuracySpec) -> Formula:
    """Structural similarity (Wang et al. 2004), mean of the windows that lie inside, and of the channels."""
    return Formula(partial(_ssim, peak=spec.peak), mean)


def _without_error(decibel: float) -> float:
    """1 less the error's amplitude as a share of the signal's."""
    return float(1 - 10 ** (-decibel / 20))


def _psnr(output: Array, labels: Array, peak: float) -> KeptColumns:
    labels = _fitting(output, labels)
    _within(labels, peak)
    power = np.square(flat(output) - flat(labels)).mean(axis=1, keepdims=True) / peak**2
    return np.asarray(-10 * np.log10(np.maximum(power, _LEAST)))


def _si_sdr(output: Array, labels: Array) -> KeptColumns:
    """Of each sample the mean over its channels."""
    labels = _fitting(output, labels)
    answer, target = (one.reshape(len(one), -1, one.shape[-1]).astype(np.float64) for one in (output, labels))
    power = np.square(target).sum(axis=-1, keepdims=True)
    if not power.all():
        sample = int(np.argwhere(power == 0)[0][0])
        raise DataError(
            "data.labels",
            f"sample {sample} of a batch is silent: of no signal there is no distortion",
            hint="leave such samples out, or use `metric: mae`",
            option=("labels",),
        )
    scaled = target * ((answer * target).sum(axis=-1, keepdims=True) / power)
    signal, error = np.square(scaled).sum(axis=-1), np.square(scaled - answer).sum(axis=-1)
    # An answer of silence has neither, and nothing of the signal.
    ratio = np.divide(signal, error, out=np.where(signal > 0, 1 / _LEAST, 0.0), where=error > 0)
    decibel = 10 * np.log10(np.clip(ratio, _LEAST, 1 / _LEAST))
    return np.asarray(decibel.mean(axis=1, keepdims=True))


def _ssim(output: Array, labels: Array, peak: float) -> KeptColumns:
    """Pictures `[N, H, W]`, `[N, channels, H, W]`, or `[N, H, W, channels]` with 1, 3 or 4 channels."""
    labels = _fitting(output, labels)
    _within(labels, peak)
    if output.ndim not in (3, 4):
        raise DataError(
            "data.labels", f"`ssim` compares pictures, not arrays of {shape_of(output)}", option=("output",)
        )
    if output.ndim == 4 and output.shape[-1] in (1, 3, 4) and output.shape[1] not in (1, 3, 4):
        output, labels = np.moveaxis(output, -1, 1), np.moveaxis(labels, -1, 1)
    if min(output.shape[-2:]) < _WINDOW:
        size = " x ".join(map(str, output.shape[-2:]))
        raise DataError(
            "data.labels",
            f"`ssim` looks through windows of {_WINDOW} x {_WINDOW} pixels, and pictures are {size}",
            option=("output",),
        )
    return np.array([[_similarity(one, other, peak)] for one, other in zip(output, labels, strict=True)])


def _similarity(first: Array, second: Array, peak: float) -> float:
    """Of two pictures `[..., H, W]`."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    mean_a, mean_b, squares, product = map(_windows, (a, b, a * a + b * b, a * b))
    low, high = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    both, means = mean_a * mean_b, mean_a**2 + mean_b**2
    return float(((2 * both + low) * (2 * (product - both) + high) / ((means + low) * (squares - means + high))).mean())


def _windows(picture: Array) -> Array:
    """Means weighted by a Gaussian, one for each window that lies inside: across, then down."""
    return _across(_across(picture).swapaxes(-1, -2)).swapaxes(-1, -2)


def _across(picture: Array) -> Array:
    """As matrix products of some columns at a time, which take a third of the time of sums of shifted pictures."""
    count = picture.shape[-1] - _WINDOW + 1
    found = np.empty((*picture.shape[:-1], count))
    for start in range(0, count, _BLOCK):
        width = min(_BLOCK, count - start)
        columns = picture[..., start : start + width + _WINDOW - 1]
        np.matmul(columns, _BAND[: columns.shape[-1], :width], out=found[..., start : start + width])
    return found


def _band() -> Array:
    """Column n holds the window that begins at row n."""
    weights = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    band = np.zeros((_BLOCK + _WINDOW - 1, _BLOCK))
    for start in range(_BLOCK):
        band[start : start + _WINDOW, start] = weights / weights.sum()
    return band


_BAND = _band()


def _fitting(output: Array, labels: Array) -> Array:
    """The labels in the output's shape, from which axes of length 1 may be missing."""
    first, second = ([size for size in array.shape[1:] if size != 1] for array in (output, labels))
    if first != second:
        raise DataError(
            "data.labels",
            f"labels of shape {shape_of(labels)} do not fit an output of shape {shape_of(output)}",
            hint="name the output with `output:` and the labels with `labels:`",
            option=("labels",),
        )
    return labels.reshape(output.shape)


def _within(labels: Array, peak: float) -> None:
    """Raises DataError for labels whose range is wider than the peak that the recipe gives."""
    low, high = float(labels.min(initial=0)), float(labels.max(initial=0))
    if high - low > peak * (1 + 1e-6):
        raise DataError(
            "data.labels",
            f"labels from {low:g} to {high:g} are beyond `peak: {peak:g}`",
            hint="`peak` is the range that values can have: 255 for bytes, 2 for -1 to 1",
            option=("peak",),
        )
