"""`.npz` and `.npy` files: the right rows, in bounded memory, and nothing from hostile files."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_cli.data.open import open_dataset
from lepton_cli.data.reader import SourceDataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

X = TensorInfo("x", "float32", ("n", 3))


def open_npz(path: Path, *inputs: TensorInfo, **fields: object) -> SourceDataset:
    spec = DataSpec.model_validate({"path": path.name, **fields})
    return open_dataset(spec, inputs or (X,), name="evaluation", base=path.parent)


def read(dataset: SourceDataset, size: int | None = None) -> np.ndarray:
    return np.concatenate([batch.feeds["x"] for batch in dataset.batches(size)])


@pytest.fixture(params=["stored", "compressed", "column-major", "column-major compressed", "npy"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray]:
    array = np.arange(60, dtype=np.float32).reshape(20, 3)
    if "column" in request.param:
        array = np.asfortranarray(array)
    path = tmp_path / "data.npz"
    if request.param == "npy":
        path = tmp_path / "x.npy"
        np.save(path, array)
    elif "compressed" in request.param:
        np.savez_compressed(path, x=array)
    else:
        np.savez(path, x=array)
    return path, array


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(skip=st.integers(0, 19), samples=st.integers(1, 20), size=st.integers(1, 9))
def test_rows_are_those_numpy_gives(rows: tuple[Path, np.ndarray], skip: int, samples: int, size: int) -> None:
    path, array = rows
    available = 20 - skip
    taken = min(samples, available)
    expected = array[skip + np.arange(taken) * available // taken]
    dataset = open_npz(path, skip=skip, samples=samples)
    np.testing.assert_array_equal(read(dataset, size), expected)
    np.testing.assert_array_equal(read(dataset), expected)  # a second pass, from the cache
    assert dataset.count == taken


def test_first_takes_the_beginning(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(30, dtype=np.float32).reshape(10, 3))
    assert read(open_npz(tmp_path / "d.npz", first=2))[:, 0].tolist() == [0, 3]
    assert read(open_npz(tmp_path / "d.npz", skip=4, first=4, samples=2))[:, 0].tolist() == [12, 18]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_follows_the_batch(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "large.npz"
    save(path, x=np.zeros((200, 250_000), np.float32))  # 200 MB
    dataset = open_npz(path, TensorInfo("x", "float32", ("n", None)), batch=2, samples=40)
    tracemalloc.start()
    for _ in dataset.batches(limit=30):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


def test_names_shapes_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.ones((4, 3)), y=np.array([[0], [1], [2], [1]]))
    (batch,) = open_npz(tmp_path / "d.npz", labels="y", label_offset=1).batches()
    assert batch.labels["labels"].tolist() == [1, 2, 3, 2]
    assert batch.feeds["x"].dtype == np.float32
    (batch,) = open_npz(tmp_path / "d.npz", labels={"kind": "y"}, inputs={"x": "images"}).batches()
    assert list(batch.labels) == ["kind"]


def test_text_labels_are_numbered(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 3)), y=np.array(["dog", "cat", "dog"]))
    dataset = open_npz(tmp_path / "d.npz", labels="y")
    assert next(dataset.batches()).labels["labels"].tolist() == [1, 0, 1]
    assert dataset.class_names == {"labels": ("cat", "dog")}


def npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def header(text: str, length: int | None = None) -> bytes:
    """An `.npy` header of version 1 with any text."""
    data = text.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data) if length is None else length) + data


def zipped(data: bytes, name: str = "x.npy", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


class Bomb:
    """Would create a file if anything unpickled it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path("/tmp/lepton-unpickled").write_text, ("!",))


GOOD = npy(np.ones((4, 3), np.float32))
SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}\n"
HOSTILE = {
    "empty": (b"", "data.format"),
    "random": (bytes(range(256)) * 4, "data.format"),
    "pickle": (pickle.dumps([1, 2]), "data.format"),
    "pickle bomb": (pickle.dumps(Bomb()), "data.format"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "data.format"),
    "truncated zip": (zipped(GOOD)[:-30], "data.format"),
    "object array": (zipped(npy(np.array([Bomb()], object), pickled=True)), "data.pickle"),
    "text member": (zipped(b"hello"), "data.format"),
    "huge header": (zipped(header(SHAPE % ("(" + "4," * 30_000 + ")"))), "data.format"),
    "nested header": (zipped(header("(" * 5_000 + ")" * 5_000)), "data.format"),
    "code in header": (zipped(header("__import__('os').system('true')\n")), "data.format"),
    "negative size": (zipped(header(SHAPE % "(-4, 3)") + bytes(48)), "data.truncated"),
    "overflowing size": (zipped(header(SHAPE % f"({2**62}, 3)") + bytes(48)), "data.truncated"),
    "too short": (zipped(GOOD[:-4]), "data.truncated"),
    "too long": (zipped(GOOD + b"1234"), "data.truncated"),
    "dates": (zipped(npy(np.array(["2020-01-01"], "datetime64[D]"))), "data.dtype"),
    "records": (zipped(npy(np.zeros(2, [("a", "f4")]))), "data.dtype"),
    "scalar": (zipped(npy(np.float32(3))), "data.scalar"),
    "no sample": (zipped(npy(np.zeros((0, 3), np.float32))), "data.empty"),
    "lzma": (zipped(GOOD, method=zipfile.ZIP_LZMA), "data.format"),
    "no array": (zipped(b"hello", "readme.txt"), "data.unknown-array"),
    "future version": (zipped(b"\x93NUMPY\x09\x00" + GOOD[8:]), "data.format"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path: Path, name: str) -> None:
    content, code = HOSTILE[name]
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_npz(tmp_path / "x.npz")
    assert caught.value.code == code
    assert caught.value.option[:2] == ("data", "evaluation")
    assert not Path("/tmp/lepton-unpickled").exists()


def test_a_member_that_lies_about_its_size(tmp_path: Path) -> None:
    """The directory of the zip claims 4 GB, in agreement with the array's header, in a few hundred bytes."""
    declared = (1 << 32) - 1000
    data = header(SHAPE % f"({declared // 12}, 3)")
    archive = bytearray(zipped(data + bytes(1000)))
    central = archive.rindex(b"PK\x01\x02")
    archive[central + 24 : central + 28] = struct.pack("<I", len(data) + declared // 12 * 12)
    (tmp_path / "x.npz").write_bytes(archive)
    with pytest.raises(DataError, match="claims"):
        open_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("position", range(60, 3000, 97))
def test_damaged_bytes_never_escape_as_other_errors(tmp_path: Path, position: int) -> None:
    content = bytearray(zipped(npy(np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32))))
    content[position] ^= 0xFF
    (tmp_path / "x.npz").write_bytes(content)
    with contextlib.suppress(DataError):
        for batch in open_npz(tmp_path / "x.npz").batches():
            assert batch.feeds["x"].shape[1] == 3


def test_one_sample_too_large_is_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    start = header(SHAPE % f"(2, {1 << 31})")
    path.write_bytes(start)
    with path.open("r+b") as stream:
        stream.truncate(len(start) + (1 << 34))  # a sparse file
    with pytest.raises(DataError) as caught:
        open_npz(path)
    assert caught.value.code == "data.too-large"


def test_arrays_of_different_lengths(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((4, 3)), y=np.zeros(3))
    with pytest.raises(DataError, match="`x` 4, `y` 3") as caught:
        open_npz(tmp_path / "d.npz", labels="y")
    assert caught.value.code == "data.lengths"


def test_wrong_names_get_the_nearest_right_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.ones((4, 3)), other=np.ones(4), labels=np.zeros(4))
    with pytest.raises(DataError) as caught:
        open_npz(tmp_path / "d.npz", inputs={"x": "imgae"})
    assert "did you mean `image`?" in str(caught.value.hint)
    assert caught.value.option == ("data", "evaluation", "inputs")
    with pytest.raises(DataError, match="no array `label`") as caught:
        open_npz(tmp_path / "d.npz", inputs={"x": "image"}, labels="label")
    assert caught.value.option == ("data", "evaluation", "labels")
    with pytest.raises(DataError, match="no array `x` for the model's input `x`"):
        open_npz(tmp_path / "d.npz")
    with pytest.raises(DataError, match="only tables join columns"):
        open_npz(tmp_path / "d.npz", inputs={"x": ["image", "other"]})


def test_labels_that_look_like_numbers_stay_text_where_asked(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2), np.float32), labels=np.array(["007", "7", "007"]))
    found = [
        open_dataset(
            DataSpec(path="d.npz", labels="labels", label_type=kind),
            [TensorInfo("x", "float32", ("n", 2))],
            name="evaluation",
            base=tmp_path,
        )
        for kind in ("auto", "text")
    ]
    assert [one.text_labels for one in found] == [frozenset(), {"labels"}]
    assert [next(one.batches()).labels["labels"].tolist() for one in found] == [[7, 7, 7], [0, 1, 0]]
    assert found[1].class_names == {"labels": ("007", "7")}
    assert found[0].fingerprint != found[1].fingerprint
