"""Data sets: fixed batches, the cache, fingerprints, hashes and read-only arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.data import reader
from lepton_cli.data.open import open_dataset
from lepton_cli.data.reader import SourceDataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

X = TensorInfo("x", "float32", ("n", 3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", x=np.arange(30, dtype=np.uint8).reshape(10, 3), y=np.arange(10))
    return tmp_path / "d.npz"


def opened(path: Path, *inputs: TensorInfo, name: str = "evaluation", **fields: object) -> SourceDataset:
    spec = DataSpec.model_validate({"path": path.name, "labels": "y", **fields})
    return open_dataset(spec, inputs or (X,), name=name, base=path.parent)


def test_batches_come_in_order_and_again(path: Path) -> None:
    dataset = opened(path, batch=4)
    for _ in range(3):
        batches = list(dataset.batches())
        assert [batch.start for batch in batches] == [0, 4, 8]
        assert [len(batch.labels["labels"]) for batch in batches] == [4, 4, 2]
    assert [len(batch.feeds["x"]) for batch in dataset.batches(size=5, limit=7)] == [5, 2]


@pytest.mark.parametrize("limit", [0, 256_000_000])
def test_the_cache_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(reader, "CACHE_BYTES", limit)
    dataset = opened(path)
    first = list(dataset.batches(size=3))
    path.write_bytes(b"gone") if limit else None
    for again, batch in zip(dataset.batches(size=3), first, strict=True):
        np.testing.assert_array_equal(again.feeds["x"], batch.feeds["x"])
        np.testing.assert_array_equal(again.labels["labels"], batch.labels["labels"])
        assert again.start == batch.start


def test_arrays_are_read_only(path: Path) -> None:
    dataset = opened(path)
    for _ in range(2):
        for batch in dataset.batches():
            with pytest.raises(ValueError, match="read-only"):
                batch.feeds["x"][0, 0] = 1


def test_a_fixed_batch_leaves_the_rest_out_and_says_so(path: Path) -> None:
    dataset = opened(path, TensorInfo("x", "float32", (4, 3)))
    assert dataset.count == 8
    assert [batch.feeds["x"].shape for batch in dataset.batches(size=3)] == [(4, 3), (4, 3)]
    assert [len(batch.feeds["x"]) for batch in dataset.batches(limit=1)] == [4]
    assert [len(batch.feeds["x"]) for batch in dataset.batches(limit=5)] == [4, 4]
    assert "last 2 of 10 samples" in dataset.notes[0]
    assert opened(path, TensorInfo("x", "float32", (5, 3)), samples=5).notes == ()


def test_too_few_for_a_fixed_batch(path: Path) -> None:
    with pytest.raises(DataError, match="fixed batch of 16"):
        opened(path, TensorInfo("x", "float32", (16, 3)))


def test_inputs_fixed_to_different_sizes_take_one_feed_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "feeds.npz"
    x, y = np.arange(60.0).reshape(5, 4, 3), np.arange(10).reshape(5, 2)
    np.savez(file, x=x, y=y)
    inputs = TensorInfo("x", "float32", (4, 3)), TensorInfo("y", "int64", (2,))
    dataset = open_dataset(DataSpec(path=file.name), inputs, name="calibration", base=tmp_path)
    assert dataset.fixed_batch == 1
    for row, batch in enumerate(dataset.batches(size=4)):
        assert (batch.start, batch.count) == (row, 1)
        np.testing.assert_array_equal(batch.feeds["x"], x[row])
        np.testing.assert_array_equal(batch.feeds["y"], y[row])


def test_more_samples_than_there_are(path: Path) -> None:
    dataset = opened(path, samples=99)
    assert dataset.count == 10
    assert "99 were asked for" in dataset.notes[0]


def test_skipping_everything(path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(path, skip=10)
    assert caught.value.code == "data.empty"
    assert caught.value.option == ("data", "evaluation", "skip")


def test_fingerprint_follows_content_choice_and_settings(path: Path) -> None:
    base = opened(path).fingerprint
    assert opened(path, batch=7).fingerprint == base
    renamed = path.rename(path.with_name("other.npz"))
    assert opened(renamed).fingerprint == base
    others = [
        opened(renamed, samples=3).fingerprint,
        opened(renamed, preprocess={"scale": 2}).fingerprint,
        opened(renamed, label_offset=1).fingerprint,
    ]
    np.savez(renamed, x=np.zeros((10, 3)), y=np.arange(10))
    others.append(opened(renamed).fingerprint)
    assert len({base, *others}) == 5


def test_hashes_find_the_overlap(path: Path) -> None:
    calibration = opened(path, name="calibration", first=4).sample_hashes()
    evaluation = opened(path, skip=2, preprocess={"scale": 3}).sample_hashes()
    assert len(set(calibration) & set(evaluation)) == 2


def test_statistics_ignore_the_size_of_batches(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(100, 3, (101, 3)).astype(np.float32)
    rows[:, 1] = 7
    np.savez(tmp_path / "d.npz", x=rows)
    spec = DataSpec.model_validate({"path": "d.npz", "batch": 7, "preprocess": {"standardise": True}})
    dataset = open_dataset(spec, (X,), name="calibration", base=tmp_path)
    fitted = dataset.statistics["x"]
    np.testing.assert_allclose(fitted.mean, rows.astype(np.float64).mean(0))
    np.testing.assert_allclose(
        fitted.std, [rows[:, 0].astype(np.float64).std(), 1, rows[:, 2].astype(np.float64).std()]
    )


def test_medians(tmp_path: Path) -> None:
    rows = np.array([[1, 5, np.nan], [np.nan, 7, 2], [9, np.nan, 4]], np.float32)
    np.savez(tmp_path / "d.npz", x=rows)
    spec = DataSpec.model_validate({"path": "d.npz", "preprocess": {"fill_missing": "median"}})
    (batch,) = open_dataset(spec, (X,), name="calibration", base=tmp_path).batches()
    assert batch.feeds["x"].tolist() == [[1, 5, 3], [5, 7, 2], [9, 6, 4]]


def test_a_column_without_any_value(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.full((2, 3), np.nan, np.float32))
    spec = DataSpec.model_validate({"path": "d.npz", "preprocess": {"fill_missing": "mean"}})
    with pytest.raises(DataError, match="no value at all"):
        open_dataset(spec, (X,), name="calibration", base=tmp_path)


def test_errors_of_single_inputs_point_at_their_own_preprocessing(path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(path, preprocess_inputs={"x": {"layout": "nchw"}})
    assert caught.value.option == ("data", "evaluation", "preprocess_inputs", "x", "layout")
    assert str(caught.value).startswith("`evaluation`, input `x`:")


def test_a_file_that_goes_away_is_an_error_of_the_data(path: Path) -> None:
    dataset = opened(path)
    path.unlink()
    for use in (lambda: list(dataset.batches()), lambda: dataset.fingerprint, dataset.sample_hashes):
        with pytest.raises(DataError) as caught:
            use()
        assert caught.value.option[:2] == ("data", "evaluation")
