"""Arrays in memory keep the promises of every data set, and say what is wrong with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

X = np.arange(30, dtype=np.float32).reshape(10, 3)
FREE = [TensorInfo("x", "float32", ("batch", 3))]


def sizes(data: Arrays, size: int | None = None, limit: int | None = None) -> list[tuple[int, int]]:
    return [(batch.start, len(batch.feeds["x"])) for batch in data.batches(size, limit)]


def test_batches_as_of_any_data_set() -> None:
    data = Arrays({"x": X}, np.arange(10), batch=4)
    assert (data.count, data.label_names, data.fixed_batch, data.path) == (10, ("labels",), None, "memory")
    assert sizes(data) == [(0, 4), (4, 4), (8, 2)]
    assert sizes(data, 7) == [(0, 7), (7, 3)]
    assert sizes(data, 7, 8) == [(0, 7), (7, 1)]
    assert np.array_equal(np.concatenate([batch.feeds["x"] for batch in data.batches()]), X)
    assert np.concatenate([batch.labels["labels"] for batch in data.batches()]).tolist() == list(range(10))


def test_what_is_handed_out_cannot_be_changed_and_what_was_given_can() -> None:
    mine = X.copy()
    batch = next(Arrays({"x": mine}).batches(4))
    assert np.shares_memory(batch.feeds["x"], mine), "not copied"
    with pytest.raises(ValueError, match="read-only"):
        batch.feeds["x"][0] = 0
    mine[0] = 7


def test_a_fixed_batch_overrules_the_size_and_leaves_the_rest_out() -> None:
    data = Arrays({"x": X}).of([TensorInfo("x", "float32", (4, 3))], "evaluation")
    assert (data.count, data.fixed_batch) == (8, 4)
    assert sizes(data, 3, 5) == [(0, 4), (4, 4)]
    assert "last 2 of 10" in data.notes[0]


def test_the_model_decides_the_type() -> None:
    whole = Arrays({"x": X.astype(np.int64)})
    assert next(whole.batches()).feeds["x"].dtype == np.int64
    assert next(whole.of(FREE, "calibration").batches()).feeds["x"].dtype == np.float32


def test_arrays_go_by_name_and_the_only_one_to_the_only_input() -> None:
    assert sizes(Arrays({"images": X}, [0] * 10).of(FREE, "calibration")) == [(0, 10)]
    two = [*FREE, TensorInfo("y", "float32", ("batch",))]
    found = Arrays({"y": X[:, 0], "x": X, "unused": X}).of(two, "calibration")
    assert list(next(found.batches()).feeds) == ["x", "y"]
    with pytest.raises(DataError, match="no array for the model's input `y`") as raised:
        Arrays({"x": X, "yy": X}).of(two, "calibration")
    assert raised.value.code == "data.unknown-array"
    assert raised.value.hint is not None
    assert "did you mean `yy`" in raised.value.hint


def test_names_become_class_numbers_and_numbers_may_have_names() -> None:
    data = Arrays({"x": X}, ["b", "a"] * 5)
    assert data.class_names == {"labels": ("a", "b")}
    assert next(data.batches()).labels["labels"].tolist() == [1, 0] * 5
    assert data.of(FREE, "evaluation").class_names == data.class_names
    assert Arrays({"x": X}, np.arange(10) % 2, class_names=["cat", "dog"]).class_names == {"labels": ("cat", "dog")}
    both = Arrays({"x": X}, {"one": np.arange(10), "two": np.ones(10)}, class_names={"one": ["a"]})
    assert (both.label_names, both.class_names) == (("one", "two"), {"one": ("a",)})


def test_a_column_of_class_numbers_is_one_number_a_sample() -> None:
    assert next(Arrays({"x": X}, np.ones((10, 1), np.uint8)).batches()).labels["labels"].shape == (10,)


def test_the_fingerprint_is_that_of_the_content() -> None:
    first = Arrays({"x": X}, np.arange(10)).fingerprint
    assert Arrays({"x": X.copy()}, list(range(10))).fingerprint == first
    others = [
        Arrays({"x": X}),
        Arrays({"x": X + 1}, np.arange(10)),
        Arrays({"y": X}, np.arange(10)),
        Arrays({"x": X.reshape(10, 1, 3)}, np.arange(10)),
        Arrays({"x": X}, np.arange(10)[::-1]),
    ]
    assert len({first, *(other.fingerprint for other in others)}) == len(others) + 1
    assert Arrays({"x": ["a", "b"]}).fingerprint != Arrays({"x": ["a", "c"]}).fingerprint


def test_samples_are_known_again() -> None:
    """An overlap of calibration and evaluation data is found, wherever the two come from."""
    ours, theirs = Arrays({"x": X[:6]}).sample_hashes(), Arrays({"x": X[4:]}).sample_hashes()
    assert len(set(ours) & set(theirs)) == 2


@pytest.mark.parametrize("rate", [16000, np.int64(16000), np.array(16000)], ids=["int", "numpy", "array"])
def test_a_single_number_goes_with_every_sample(rate: Any) -> None:
    """One sample is one complete feed: a sample rate needs no axis of its own."""
    data = Arrays({"sr": rate, "x": X}, batch=4)
    batches = list(data.batches())
    assert [batch.count for batch in batches] == [4, 4, 2]
    for batch in batches:
        assert batch.feeds["sr"].shape == ()
        assert batch.feeds["sr"] == 16000
    inputs = [TensorInfo("sr", "int64", (1,)), TensorInfo("x", "float32", (None, *X.shape[1:]))]
    (first, *_) = data.of(inputs, "calibration").batches()
    assert (first.feeds["sr"].tolist(), first.feeds["x"].tolist()) == ([16000], X[:4].tolist())


@pytest.mark.parametrize(
    ("feeds", "labels", "code"),
    [
        ({}, None, "data.empty"),
        ({"x": X[:0]}, None, "data.empty"),
        ({"x": 3.0}, None, "data.scalar"),
        ({"x": X, "y": X[:9]}, None, "data.lengths"),
        ({"x": X}, np.arange(9), "data.lengths"),
        ({"x": [[1], [2, 3]]}, None, "data.ragged"),
        ({"x": np.array([{}, {}])}, None, "data.dtype"),
        ({"x": X.astype(np.complex64)}, None, "data.dtype"),
        ({"x": X}, ["a"] * 9 + [""], "data.missing-label"),
    ],
)
def test_arrays_that_cannot_be_samples(feeds: dict[str, Any], labels: Any, code: str) -> None:
    with pytest.raises(DataError) as raised:
        Arrays(feeds, labels)
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ([TensorInfo("x", "float32", ("batch", 4))], "data.shape"),
        ([TensorInfo("x", "float32", (16, 3))], "data.too-few"),
        ([TensorInfo("x", "uint8", ("batch", 3))], "data.overflow"),
    ],
)
def test_arrays_that_do_not_fit_the_model(inputs: list[TensorInfo], code: str) -> None:
    with pytest.raises(DataError) as raised:
        Arrays({"x": X * 100 - 300}).of(inputs, "evaluation")
    assert raised.value.code == code
    assert raised.value.option[:2] == ("data", "evaluation")
