"""Shapes and labels against the model: the message and the hint."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_cli.data import check
from lepton_cli.data.dataset import Batch
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo


def refused(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> DataError:
    batch = Batch({"image": np.zeros(shape, np.float32)}, {}, 0)
    with pytest.raises(DataError) as caught:
        check.batch(batch, [TensorInfo("image", "float32", wanted)], "evaluation")
    return caught.value


def test_the_message_says_both_shapes() -> None:
    error = refused((1, 32, 32, 3), ("batch", 3, 32, 32))
    assert error.code == "data.shape"
    assert error.message == (
        "batch 0 of `evaluation` has shape 1x32x32x3 for input `image`, the model wants batch x 3 x 32 x 32"
    )
    assert error.hint == "add `layout: nchw`"
    assert error.option == ("data", "evaluation", "inputs")


@pytest.mark.parametrize(
    ("shape", "wanted", "hint"),
    [
        ((1, 3, 32, 32), ("n", 32, 32, 3), "channels first"),
        ((1, 64, 64, 3), ("n", 3, 48, "w"), "add `layout: nchw` and `resize: [48, auto]`"),
        ((1, 3, 64, 64), ("n", 3, "h", 32), "add `resize: [auto, 32]`"),
        ((1, 64, 64, 3), ("n", 3, 32, 32), "add `layout: nchw` and `resize: [32, 32]`"),
        ((1, 3, 64, 64), ("n", 3, 32, 32), "add `resize: [32, 32]`"),
        ((1, 64, 64, 3), ("n", 32, 32, 3), "add `resize: [32, 32]`"),
        ((1, 8, 8), ("n", 1, 8, 8), "add `layout: nchw`"),
        ((1, 8, 8), ("n", 8, 8, 1), "add `layout: nhwc`"),
        ((1, 8, 8), ("n", 1, 32, 32), "add `layout: nchw` and `resize: [32, 32]`"),
        ((1, 3, 8, 8), ("n", 1, 8, 8), "add `channels: gray`"),
        ((1, 1, 8, 8), ("n", 3, 8, 8), "add `channels: rgb`"),
        ((1, 28, 28), ("n", 784), "add `shape: [784]`"),
        ((1,), ("n", 1), "add `shape: [1]`"),
        ((1, 10), ("n", 12), "the model wants 12 numbers a sample"),
        ((1, 3, 8, 8), ("n", 3, None, None, 7), None),
        ((1, 4, 6), ("n", 6, 4), "another order"),
    ],
)
def test_hints(shape: tuple[int, ...], wanted: tuple[int | str | None, ...], hint: str | None) -> None:
    error = refused(shape, wanted)
    assert (hint in str(error.hint)) if hint else error.hint is None


def test_dynamic_and_unknown_shapes_fit() -> None:
    batch = Batch({"x": np.zeros((2, 5), np.float32)}, {}, 0)
    for shape in (("n", None), ("n", "length"), None, (2, 5)):
        check.batch(batch, [TensorInfo("x", "float32", shape)], "evaluation")


def test_wrong_type() -> None:
    batch = Batch({"x": np.zeros((2, 5), np.float64)}, {}, 0)
    with pytest.raises(DataError, match="type float64 for input `x`, the model wants float32"):
        check.batch(batch, [TensorInfo("x", "float32", None)], "evaluation")


@pytest.mark.parametrize("labels", [[0, 9], [5], [0.0, 3.0], [True, False]])
def test_good_labels(labels: list[float]) -> None:
    check.check_labels(np.array(labels), 10)


@pytest.mark.parametrize(
    ("labels", "message", "hint"),
    [
        ([1, 10], "from 1 to 10, the model has 10 classes", "label_offset: -1"),
        ([-1, 8], "from -1 to 8", "label_offset: 1"),
        ([0, 10], "from 0 to 10", None),
        ([0.5], "not class numbers", "regression"),
        (["dog"], "not class numbers", "regression"),
    ],
)
def test_bad_labels(labels: list[object], message: str, hint: str | None) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check.check_labels(np.array(labels), 10)
    assert caught.value.code == "data.labels"
    assert (hint in str(caught.value.hint)) if hint else caught.value.hint is None
