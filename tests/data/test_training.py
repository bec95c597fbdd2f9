"""Training data: the hold-out follows the content, and a batch follows from the seed and its number."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lepton_cli.data import reader
from lepton_cli.data.batching import freed
from lepton_cli.data.memory import Arrays
from lepton_cli.data.spec import TrainingSpec
from lepton_cli.data.training import TrainingBatch, TrainingData, open_training
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

FREE = TensorInfo("x", "float32", ("batch", 2))
HALF = "50 %"
FEW_FILES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(count: int, first: int = 0) -> np.ndarray:
    """Samples that tell their number."""
    return np.stack([np.arange(first, first + count), np.ones(count)], axis=1).astype(np.float32)


def held(array: Any, *inputs: TensorInfo, labels: Any = None, seed: int = 0, **fields: Any) -> TrainingData:
    """Training data in memory."""
    infos = inputs or (FREE,)
    data = Arrays(array if isinstance(array, dict) else {"x": array}, labels).of(freed(infos), "training")
    return TrainingData(data, infos, TrainingSpec.model_validate({"path": "memory", "holdout": HALF, **fields}), seed)


def opened(path: Path, *inputs: TensorInfo, seed: int = 0, **fields: Any) -> TrainingData:
    spec = TrainingSpec.model_validate({"path": path.name, "holdout": HALF, **fields})
    return open_training(spec, inputs or (FREE,), seed=seed, base=path.parent)


def numbers(batch: Any) -> list[int]:
    found: list[int] = batch.feeds["x"][:, 0].astype(int).tolist()
    return found


def apart(data: TrainingData) -> set[int]:
    assert data.holdout is not None
    return {number for batch in data.holdout.batches() for number in numbers(batch)}


def trained(data: TrainingData) -> list[int]:
    return numbers(data.batch(0, data.count))


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_every_epoch_sees_every_sample_once(count: int, size: int, seed: int) -> None:
    data = held(rows(count), holdout="0 %", seed=seed)
    assert (data.count, data.holdout) == (count, None)
    batches = [data.batch(step, size) for step in range(-(-3 * count // size))]
    stream = [number for batch in batches for number in numbers(batch)]
    assert {batch.count for batch in batches} == {size}
    assert [batch.start for batch in batches] == [step * size for step in range(len(batches))]
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [numbers(held(rows(50), holdout="0 %", seed=seed).batch(step, 50)) for seed in (0, 1) for step in (0, 1)]
    assert len(set(map(tuple, [*orders, list(range(50))]))) == 5


@given(st.data())
def test_a_run_cut_into_pieces_reads_the_same_bytes(drawn: st.DataObject) -> None:
    how = [{"noise": 0.1}, {"mixup": 0.2}]
    whole = held(rows(30), labels=np.arange(30), augment=how, seed=3)
    step, size = drawn.draw(st.integers(0, 40)), drawn.draw(st.integers(1, 40))
    whole.batch(drawn.draw(st.integers(0, 40)), 7)
    one, other = whole.batch(step, size), held(rows(30), labels=np.arange(30), augment=how, seed=3).batch(step, size)
    assert one.feeds["x"].tobytes() == other.feeds["x"].tobytes()
    assert one.labels["labels"].tolist() == other.labels["labels"].tolist()
    assert one.share is not None
    assert other.share is not None
    assert one.share.tobytes() == other.share.tobytes()


@given(st.permutations(range(40)), st.integers(0, 20))
def test_the_hold_out_is_the_same_in_any_order_and_among_more(order: list[int], more: int) -> None:
    first = held(rows(40))
    again = held(np.concatenate([rows(more, 40), rows(40)[order]]), seed=1)
    assert apart(first).isdisjoint(trained(first))
    assert apart(first) | set(trained(first)) == set(range(40))
    assert apart(again) & set(range(40)) == apart(first)


def test_equal_samples_are_on_one_side() -> None:
    data = held(np.repeat(rows(30), 4, axis=0))
    assert len(trained(data)) == 4 * len(set(trained(data)))
    assert apart(data).isdisjoint(trained(data))


def test_the_hold_out_is_the_share_asked_for() -> None:
    data = held(rows(20_000), holdout="5 %")
    assert data.holdout is not None
    assert abs(data.holdout.count - 1000) < 5 * np.sqrt(950)
    assert data.holdout.count + data.count == 20_000
    assert data.holdout.fingerprint != data.whole.fingerprint


def test_a_larger_share_keeps_what_was_apart() -> None:
    shares = [apart(held(rows(200), holdout=share)) for share in ("10 %", "30 %", "90 %")]
    assert shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize(
    ("samples", "holdout", "said"),
    [
        (rows(1), "50 %", "leaves none to"),
        (rows(20), "0.0001 %", "`holdout: 0.0001 %` of 20 samples leaves none to judge"),
        (rows(20), "99.9999 %", "leaves none to train with"),
        (np.ones((50, 2)), "50 %", "leaves none"),
    ],
)
def test_both_sides_have_samples(samples: Any, holdout: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as raised:
        held(samples, holdout=holdout)
    assert raised.value.code == "data.holdout"
    assert raised.value.option == ("data", "training", "holdout")


def test_labels_by_name_and_none() -> None:
    assert held(rows(20)).batch(0, 4).labels == {}
    data = held(rows(20), labels={"number": np.arange(20), "half": np.arange(20) / 2})
    batch = data.batch(1, 5)
    assert batch.labels["number"].tolist() == numbers(batch)
    assert batch.labels["half"].tolist() == [number / 2 for number in numbers(batch)]
    assert (batch.partners, batch.share) == ({}, None)


def test_mixup_gives_the_labels_of_both() -> None:
    """Of samples that are their labels, the mixture of the labels is the mixture of the samples."""
    data = held(rows(40), labels=np.arange(40), augment=[{"mixup": 0.5}])
    batch = data.batch(2, 16)
    assert isinstance(batch, TrainingBatch)
    assert batch.share is not None
    mixed = batch.share * batch.labels["labels"] + (1 - batch.share) * batch.partners["labels"]
    np.testing.assert_allclose(batch.feeds["x"][:, 0], mixed, rtol=1e-5)
    assert not np.array_equal(batch.labels["labels"], batch.partners["labels"])
    assert data.holdout is not None
    for plain in data.holdout.batches():
        assert numbers(plain) == plain.labels["labels"].tolist(), "what is held out is left as it is"


def test_every_batch_is_changed_in_its_own_way() -> None:
    shares = [
        held(rows(20), augment=[{"mixup": 1}], seed=seed).batch(step, 6).share for seed in (0, 1) for step in (0, 1)
    ]
    assert len({share.tobytes() for share in shares if share is not None}) == 4


def test_a_loader_gives_what_arrays_give(tmp_path: Path) -> None:
    code = "import numpy as np\ndef batches(path):\n    for n in range(0, 40, 8):\n"
    code += (
        "        yield {'x': np.stack([np.arange(n, n + 8), np.ones(8)], 1).astype('f4'), 'y': np.arange(n, n + 8)}\n"
    )
    (tmp_path / "own.py").write_text(code)
    spec = TrainingSpec.model_validate({"path": ".", "loader": "own.py:batches", "labels": "y", "holdout": HALF})
    data = open_training(spec, [FREE], seed=0, base=tmp_path, allow_code=True)
    memory = held(rows(40), labels=np.arange(40))
    assert apart(data) == apart(memory)
    batch = data.batch(3, 16)
    assert numbers(batch) == numbers(memory.batch(3, 16)) == batch.labels["labels"].tolist()


def test_augmentation_comes_before_preprocessing(tmp_path: Path) -> None:
    images = np.arange(12 * 16, dtype=np.uint8).reshape(12, 4, 4, 1)
    np.savez(tmp_path / "d.npz", x=images)
    info = TensorInfo("x", "float32", ("n", 1, 4, 4))
    how = {"preprocess": {"scale": "1/2", "mean": 3, "layout": "nchw"}, "holdout": "0 %"}
    plain = opened(tmp_path / "d.npz", info, **how).batch(0, 12).feeds["x"]
    found = opened(tmp_path / "d.npz", info, augment=[{"flip": "both"}], **how).batch(0, 12).feeds["x"]
    for one, was in zip(found, plain, strict=True):
        assert any(np.array_equal(one, np.flip(was, axes)) for axes in ((), (1,), (2,), (1, 2)))
    assert not np.array_equal(found, plain)


def write(kind: str, folder: Path, samples: np.ndarray) -> Path:
    path = folder / {"stored": "d.npz", "packed": "p.npz", "table": "d.jsonl"}[kind]
    labels = np.arange(len(samples))
    if kind == "table":
        lines = [f'{{"x": {row.tolist()}, "y": {label}}}' for row, label in zip(samples, labels, strict=True)]
        path.write_text("\n".join(lines))
    else:
        (np.savez if kind == "stored" else np.savez_compressed)(path, x=samples, y=labels)
    return path


@pytest.mark.parametrize("kind", ["stored", "packed", "table"])
@pytest.mark.parametrize("limit", [0, 256_000_000])
def test_files_give_what_arrays_give(kind: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CACHE_BYTES", limit)
    samples = rows(40).astype(np.float64)
    data = opened(write(kind, tmp_path, samples), labels="y", batch=7)
    memory = held(samples, labels=np.arange(40))
    assert data.whole.sample_hashes() == memory.whole.sample_hashes()
    for step in (3, 0, 1):
        one, other = data.batch(step, 16), memory.batch(step, 16)
        assert np.array_equal(one.feeds["x"], other.feeds["x"])
        assert one.labels["labels"].tolist() == numbers(one)
    assert apart(data) == apart(memory)


def test_skip_first_and_samples_choose_before_the_split(tmp_path: Path) -> None:
    data = opened(write("stored", tmp_path, rows(100)), skip=10, first=40, samples=20, labels="y")
    wanted = set(range(10, 50, 2))
    assert set(trained(data)) | apart(data) == wanted
    assert data.batch(0, 5).labels["labels"].tolist() == numbers(data.batch(0, 5))


def test_what_cannot_be_read_in_any_order_is_held_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_HELD_BYTES", 100)
    assert opened(write("stored", tmp_path, rows(40))).count
    with pytest.raises(DataError, match="only be read from the beginning") as raised:
        opened(write("packed", tmp_path, rows(40)))
    assert raised.value.hint is not None
    assert "np.savez" in raised.value.hint


def test_pictures_of_different_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for index in range(12):
        (folder / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        picture = np.full((8 + index, 10, 3), 20 * index, np.uint8)
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "PNG")
        (folder / "ab"[index % 2] / f"{index:02}.png").write_bytes(data.getvalue())
    info = TensorInfo("x", "float32", ("n", 3, 6, 6))
    how = [{"flip": "horizontal"}, {"crop": {"random": [0.5, 1]}}]
    found = opened(folder, info, holdout="20 %", augment=how, preprocess={"resize": [6, 6], "layout": "nchw"})
    batch = found.batch(0, 8)
    assert batch.feeds["x"].shape == (8, 3, 6, 6)
    assert [int(image[0, 0, 0]) // 20 % 2 for image in batch.feeds["x"]] == batch.labels["labels"].tolist()
    free = TensorInfo("x", "float32", ("n", 3, "h", "w"))
    ragged = opened(folder, free, holdout="20 %", preprocess={"layout": "nchw"}, batch=1)
    assert ragged.batch(0, 1).feeds["x"].shape[:2] == (1, 3)
    with pytest.raises(DataError, match="do not go into one feed"):
        ragged.batch(0, 4)
    with pytest.raises(DataError, match="different shapes"):
        opened(folder, free, holdout="20 %", preprocess={"layout": "nchw"}).batch(0, 4)


def test_a_fixed_batch_is_free_to_train_and_kept_to_judge() -> None:
    data = held(rows(40), TensorInfo("x", "float32", (4, 2)))
    assert [data.batch(0, size).count for size in (1, 7, 32)] == [1, 7, 32]
    assert data.holdout is not None
    assert {batch.count for batch in data.holdout.batches(9)} == {4}
    with pytest.raises(DataError, match="leaves none to judge"):
        held(rows(40), TensorInfo("x", "float32", (4, 2)), holdout="3 %")


def test_states_are_batched_on_their_axis() -> None:
    infos = (FREE, TensorInfo("state", "float32", (3, "batch", 5)))
    batch = held({"x": rows(20), "state": np.zeros((20, 3, 5), np.float32)}, *infos).batch(0, 6)
    assert batch.feeds["state"].shape == (3, 6, 5)


def test_a_model_that_takes_one_sample_at_a_time() -> None:
    infos = (TensorInfo("x", "float32", ("n", 4)), TensorInfo("edges", "int64", (2, "e")))
    arrays = {"x": np.random.default_rng(0).random((20, 7, 4), np.float32), "edges": np.zeros((20, 2, 9), np.int64)}
    data = held(arrays, *infos)
    assert data.batch(3, 1).feeds["x"].shape == (7, 4)
    with pytest.raises(DataError, match="do not go into one feed") as raised:
        data.batch(0, 2)
    assert raised.value.hint == "train with a batch of 1"


def test_an_augmentation_that_fits_nothing_is_said_when_opening() -> None:
    with pytest.raises(DataError, match="`crop` fits none of the inputs") as raised:
        held(rows(20), augment=[{"noise": 0.1}, {"crop": {"pad": 1}}])
    assert raised.value.option == ("data", "training", "augment", 1, "crop")


def test_no_samples() -> None:
    with pytest.raises(DataError, match="empty"):
        held(rows(0))


def test_statistics_are_those_of_the_calibration_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes its mean and deviation from the calibration data"):
        opened(write("stored", tmp_path, rows(20)), preprocess={"standardise": True})


@FEW_FILES
@given(st.lists(st.integers(0, 39), min_size=1, max_size=50))
def test_stored_samples_at_any_positions(tmp_path: Path, wanted: list[int]) -> None:
    path = write("stored", tmp_path, rows(40))
    data = opened(path, holdout="0 %", labels="y")
    found = data.whole.stored(wanted)
    assert np.array_equal(found.inputs["x"], rows(40)[wanted])
    assert found.labels["labels"].tolist() == wanted


def test_a_part_keeps_what_belongs_to_its_samples() -> None:
    data = held(rows(20), labels={"labels": np.arange(20)}, augment=[{"mixup": 0.5}])
    whole = data.batch(0, 6)
    chosen = np.array([4, 1])
    part = whole.part(chosen)
    assert isinstance(part, TrainingBatch)
    np.testing.assert_array_equal(part.feeds["x"], whole.feeds["x"][chosen])
    for found, of in ((part.labels, whole.labels), (part.partners, whole.partners)):
        np.testing.assert_array_equal(found["labels"], of["labels"][chosen])
    assert part.share is not None
    assert whole.share is not None
    np.testing.assert_array_equal(part.share, whole.share[chosen])
    assert part.count == 2
