"""Pictures and sound: closed forms, and the windows of SSIM one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError
from lepton_cli.measure import accuracy
from lepton_cli.measure.metrics import formula
from lepton_cli.measure.spec import AccuracySpec
from tests.measure import builders

#: 10 log10 of 2 to the power of 48.
MOST = 480 * math.log10(2)


def value(output: NDArray[Any], labels: NDArray[Any], metric: str, **spec: Any) -> float:
    one = formula(AccuracySpec(metric=metric, **spec))
    return float(one.value(one.keep(output, labels)))


def test_peak_signal_to_noise() -> None:
    """Errors of a tenth and a hundredth of the peak: 20 and 40 dB, mean 30."""
    labels = np.full((2, 3, 4), 0.5)
    output = labels + np.array([0.1, 0.01])[:, None, None] * np.where(np.arange(4) % 2, 1, -1)
    assert value(output, labels, "psnr") == pytest.approx(30)
    assert value(255 * output, 255 * labels, "psnr", peak=255) == pytest.approx(30)
    assert value(output, labels, "psnr", peak=2) == pytest.approx(30 + 20 * math.log10(2))


def test_no_error_is_as_little_as_float32_can_tell() -> None:
    labels = np.ones((1, 4))
    assert value(labels, labels, "psnr") == pytest.approx(MOST)
    assert value(labels, labels, "si_sdr") == pytest.approx(MOST)


def plain_ssim(one: NDArray[Any], other: NDArray[Any], peak: float) -> float:
    """Equation 13 of the article, for every window of 11 x 11 pixels inside the picture."""
    weights = [
        [math.exp(-((row - 5) ** 2 + (column - 5) ** 2) / (2 * 1.5**2)) for column in range(11)] for row in range(11)
    ]
    total = sum(map(sum, weights))
    found = []
    for top in range(one.shape[0] - 10):
        for left in range(one.shape[1] - 10):
            cells = [
                (weights[r][c] / total, one[top + r, left + c], other[top + r, left + c])
                for r in range(11)
                for c in range(11)
            ]
            mx = sum(w * x for w, x, _ in cells)
            my = sum(w * y for w, _, y in cells)
            vx = sum(w * (x - mx) ** 2 for w, x, _ in cells)
            vy = sum(w * (y - my) ** 2 for w, _, y in cells)
            xy = sum(w * (x - mx) * (y - my) for w, x, y in cells)
            c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
            found.append((2 * mx * my + c1) * (2 * xy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return math.fsum(found) / len(found)


@pytest.mark.parametrize("peak", [1.0, 255.0])
def test_structural_similarity_window_by_window(peak: float) -> None:
    generator = np.random.default_rng(0)
    labels = generator.random((2, 3, 13, 14)) * peak
    output = np.clip(labels + generator.normal(0, 0.1 * peak, labels.shape), 0, peak)
    expected = [[plain_ssim(output[n, c], labels[n, c], peak) for c in range(3)] for n in range(2)]
    assert value(output, labels, "ssim", peak=peak) == pytest.approx(np.mean(expected))
    last = (np.moveaxis(one, 1, -1) for one in (output, labels))
    assert value(*last, "ssim", peak=peak) == pytest.approx(np.mean(expected))
    assert value(output[:, 0], labels[:, 0], "ssim", peak=peak) == pytest.approx(np.mean([e[0] for e in expected]))
    assert value(output[:, :1], labels[:, 0], "ssim", peak=peak) == pytest.approx(np.mean([e[0] for e in expected]))


def test_structural_similarity_of_flat_pictures() -> None:
    """(2ab + C1) / (a² + b² + C1); of the same picture 1."""
    first, second = np.full((1, 12, 12), 0.2), np.full((1, 12, 12), 0.6)
    assert value(first, second, "ssim") == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4))
    picture = np.random.default_rng(1).random((1, 12, 12))
    assert value(picture, picture, "ssim") == pytest.approx(1)


def test_distortion_by_a_known_share() -> None:
    """Noise at right angles to the signal, with a tenth of its amplitude: 20 dB, at any loudness and either sign."""
    time = np.arange(200)
    signal, noise = np.sin(2 * np.pi * time / 20), np.cos(2 * np.pi * time / 20)
    for loud in (1.0, 7.0, -0.3):
        found = loud * (signal + 0.1 * noise)
        assert value(found[None], signal[None], "si_sdr") == pytest.approx(20)
    # Equally loud: 0 dB. Two channels: the mean of theirs.
    assert value((signal + noise)[None], signal[None], "si_sdr") == pytest.approx(0, abs=1e-9)
    both = np.stack([signal + 0.1 * noise, signal + noise])[None]
    assert value(both, np.stack([signal, signal])[None], "si_sdr") == pytest.approx(10)


@given(st.integers(0, 2**32 - 1))
def test_distortion_is_that_of_the_angle(seed: int) -> None:
    """cos² / (1 - cos²) of the angle between answer and target."""
    generator = np.random.default_rng(seed)
    answer, target = generator.normal(0, 1, (2, 30))
    cosine = answer @ target / math.sqrt((answer @ answer) * (target @ target))
    expected = 10 * math.log10(cosine**2 / (1 - cosine**2))
    assert value(answer[None], target[None], "si_sdr") == pytest.approx(expected, abs=1e-6)


def test_silence() -> None:
    signal = np.sin(np.arange(20.0))[None]
    assert value(np.zeros_like(signal), signal, "si_sdr") == pytest.approx(-MOST)
    with pytest.raises(DataError, match="sample 1 of a batch is silent"):
        value(np.ones((2, 20)), np.stack([signal[0], np.zeros(20)]), "si_sdr")


@pytest.mark.parametrize(
    ("metric", "output", "labels", "said", "option"),
    [
        ("psnr", np.zeros((1, 3, 4)), np.full((1, 3, 4), 255.0), "beyond `peak: 1`", "peak"),
        ("ssim", np.zeros((1, 12, 12)), np.linspace(-1, 1, 144).reshape(1, 12, 12), "from -1 to 1", "peak"),
        ("ssim", np.zeros((1, 12, 10)), np.zeros((1, 12, 10)), "pictures are 12 x 10", "output"),
        ("ssim", np.zeros((1, 12)), np.zeros((1, 12)), "compares pictures", "output"),
        ("psnr", np.zeros((1, 3, 4)), np.zeros((1, 4, 3)), "do not fit", "labels"),
        ("si_sdr", np.zeros((1, 30)), np.zeros((1, 29)), "do not fit", "labels"),
    ],
)
def test_what_cannot_be_compared(metric: str, output: Any, labels: Any, said: str, option: str) -> None:
    data = Arrays({"x": output.astype(np.float32)}, labels)
    model = builders.identity(", ".join(["N", *map(str, output.shape[1:])]))
    with pytest.raises(DataError, match=said) as caught:
        accuracy.evaluate({"original": model}, data, [AccuracySpec(metric=metric)])
    assert tuple(caught.value.option) == ("evaluate", "accuracy", 0, option)


@pytest.mark.parametrize(("metric", "decibel"), [("psnr", 20.0), ("si_sdr", 20.0)])
def test_decibels_count_in_a_score_as_what_is_no_error(metric: str, decibel: float) -> None:
    """20 dB: an error of a tenth."""
    assert formula(AccuracySpec(metric=metric)).share(decibel) == pytest.approx(0.9)
