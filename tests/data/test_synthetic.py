"""Random inputs: plausible, repeatable, of the shapes the model wants."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_cli.data.synthetic import synthetic
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo


def test_kinds_of_inputs() -> None:
    inputs = [
        TensorInfo("input_ids", "int64", ("batch", "sequence")),
        TensorInfo("attention_mask", "int64", ("batch", "sequence")),
        TensorInfo("token_type_ids", "int64", ("batch", "sequence")),
        TensorInfo("image", "float32", (None, 3, "height", "width")),
        TensorInfo("film", "float16", ("batch", 3, None, None, None)),
        TensorInfo("last", "float32", (None, None, None, 3)),
        TensorInfo("flag", "bool", ()),
        TensorInfo("text", "str", ("batch", 2)),
        TensorInfo("half", "bfloat16", ("batch",)),
    ]
    (batch,) = synthetic(inputs, seed=0, samples=4, batch=4).batches()
    feeds = batch.feeds
    assert feeds["input_ids"].shape == (4, 8)
    assert 0 <= feeds["input_ids"].min() <= feeds["input_ids"].max() < 100
    assert (feeds["attention_mask"] == 1).all()
    assert (feeds["token_type_ids"] == 0).all()
    assert feeds["image"].shape == (4, 3, 224, 224)
    assert abs(feeds["image"].std() - 1) < 0.01
    assert feeds["film"].shape == (4, 3, 32, 32, 32)
    assert feeds["last"].shape == (4, 224, 224, 3)
    assert feeds["flag"].shape == ()
    assert feeds["text"].tolist() == [["", ""]] * 4
    for info in inputs:
        assert info.dtype in (str(feeds[info.name].dtype), "str")


def test_samples_do_not_depend_on_the_batch() -> None:
    inputs = [TensorInfo("x", "float32", (None, 5))]
    dataset = synthetic(inputs, seed=3, samples=6, batch=2)
    pairs = np.concatenate([batch.feeds["x"] for batch in dataset.batches()])
    (whole,) = dataset.batches(size=6)
    np.testing.assert_array_equal(pairs, whole.feeds["x"])
    assert len({row.tobytes() for row in pairs}) == 6
    assert dataset.fingerprint != synthetic(inputs, seed=4, samples=6, batch=2).fingerprint
    assert len(set(dataset.sample_hashes())) == dataset.count == 6


def test_fixed_batches_and_given_shapes() -> None:
    dataset = synthetic([TensorInfo("x", "float32", (4, "n"))], seed=0, samples=10, batch=3)
    assert [batch.feeds["x"].shape for batch in dataset.batches(size=2)] == [(4, 512), (4, 512)]
    inputs = [TensorInfo("x", "float32", ("b", "n")), TensorInfo("y", "float32", None)]
    dataset = synthetic(inputs, seed=0, samples=2, batch=2, shapes={"x": (1, 70), "y": (5,)})
    (batch,) = dataset.batches()
    assert batch.feeds["x"].shape == (2, 70)
    assert batch.feeds["y"].shape == (5,)


@pytest.mark.parametrize("name", ["batch", None])
def test_recurrent_states_have_their_batch_in_the_middle(name: str | None) -> None:
    inputs = [
        TensorInfo("input", "float32", (name, None)),
        TensorInfo("state", "float32", (2, name, 16)),
        TensorInfo("sr", "int64", ()),
    ]
    dataset = synthetic(inputs, seed=0, samples=6, batch=3)
    (first, _) = dataset.batches()
    assert {key: array.shape for key, array in first.feeds.items()} == {
        "input": (3, 512),
        "state": (2, 3, 16),
        "sr": (),
    }
    assert first.feeds["sr"] == 16_000


def test_unknown_rank_needs_a_shape() -> None:
    with pytest.raises(DataError, match="how many dimensions"):
        next(synthetic([TensorInfo("x", "float32", None)], seed=0, samples=1, batch=1).batches())
