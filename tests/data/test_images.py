"""Image folders: labels from folders and from CSV files, and images that are not what they say."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lepton_cli.data.open import open_dataset
from lepton_cli.data.reader import SourceDataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

IMAGE = TensorInfo("image", "float32", ("n", 3, None, None))


def save(path: Path, colour: int = 0, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 255)).save(path)


def open_folder(path: Path, info: TensorInfo = IMAGE, **fields: object) -> SourceDataset:
    spec = DataSpec.model_validate({"path": path.name, "preprocess": {"layout": "nchw"}, **fields})
    return open_dataset(spec, (info,), name="evaluation", base=path.parent)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for position, name in enumerate(["zebra", "ant", "ant"]):
        save(tmp_path / "set" / name / f"{position}.png", colour=position)
    save(tmp_path / "set" / ".cache" / "hidden.png")
    return tmp_path / "set"


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for position in range(4):
        save(tmp_path / "flat" / f"{position}.png", colour=position)
    return tmp_path / "flat"


def test_class_folders(classes: Path) -> None:
    dataset = open_folder(classes)
    (batch,) = dataset.batches()
    assert dataset.class_names == {"labels": ("ant", "zebra")}
    assert dataset.text_labels == frozenset(), "folders are classes"
    assert batch.labels["labels"].tolist() == [0, 0, 1]
    assert batch.feeds["image"].shape == (3, 3, 4, 6)
    assert batch.feeds["image"][:, 0, 0, 0].tolist() == [1, 2, 0]


def test_labels_from_a_csv_in_its_order(flat: Path) -> None:
    (flat / "labels.csv").write_text("file,label\n2.png,7\n0.png,5\n1.png,6\n")
    dataset = open_folder(flat, labels="labels.csv")
    (batch,) = dataset.batches()
    assert batch.labels["labels"].tolist() == [7, 5, 6]
    as_text = open_folder(flat, labels="labels.csv", label_type="text")
    assert as_text.class_names == {"labels": ("5", "6", "7")}
    assert batch.feeds["image"][:, 0, 0, 0].tolist() == [2, 0, 1]
    assert "1 images in flat have no label" in dataset.notes[0]


def test_names_as_labels_without_header(flat: Path) -> None:
    (flat.parent / "beside.csv").write_text("0.png,dog\n1.png,cat\n")
    dataset = open_folder(flat, labels={"animal": "beside.csv"})
    assert next(dataset.batches()).labels["animal"].tolist() == [1, 0]
    assert dataset.class_names == {"animal": ("cat", "dog")}
    assert dataset.text_labels == {"animal"}


def test_a_flat_folder_is_unlabelled(flat: Path) -> None:
    dataset = open_folder(flat)
    assert dataset.label_names == ()
    assert dataset.count == 4


def test_images_beside_class_folders_are_said(classes: Path) -> None:
    save(classes / "stray.png")
    dataset = open_folder(classes)
    assert dataset.label_names == ()
    assert "beside" in dataset.notes[0]


@pytest.mark.parametrize("listed", ["missing.png,1", "../outside.png,1", "/etc/passwd.png,1", "0.png\n1.png,2"])
def test_a_csv_that_does_not_fit_the_folder(flat: Path, listed: str) -> None:
    save(flat.parent / "outside.png")
    (flat / "labels.csv").write_text(f"file,label\n{listed}\n")
    with pytest.raises(DataError) as caught:
        open_folder(flat, labels="labels.csv")
    assert "labels.csv:2" in str(caught.value.where)
    assert caught.value.option == ("data", "evaluation", "labels")


@pytest.mark.parametrize("content", [b"", b"file,label\n", b"\xff\xfe\x00", b"0.png,\n"])
def test_broken_label_files(flat: Path, content: bytes) -> None:
    (flat / "labels.csv").write_bytes(content)
    with pytest.raises(DataError):
        open_folder(flat, labels="labels.csv")


def test_no_label_file(flat: Path) -> None:
    with pytest.raises(DataError, match="neither in"):
        open_folder(flat, labels="labels.csv")


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / "a.jpg", exif=exif)
    assert next(open_folder(tmp_path / "set").batches()).feeds["image"].shape == (1, 3, 6, 4)


def test_gray_images(flat: Path) -> None:
    info = TensorInfo("image", "float32", ("n", 1, 4, 6))
    dataset = open_folder(flat, info, preprocess={"channels": "gray", "layout": "nchw"})
    expected = np.asarray(Image.open(flat / "3.png").convert("L"))
    np.testing.assert_array_equal(next(dataset.batches()).feeds["image"][3, 0], expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "LA"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    (tmp_path / "set").mkdir()
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (5, 4), (255, 0, 0)).convert(mode).save(tmp_path / "set" / f"a.{suffix}")
    assert next(open_folder(tmp_path / "set").batches()).feeds["image"].shape == (1, 3, 4, 5)


def png(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"<html>not found</html>",
    "truncated png": lambda: encoded(NOISE)[:2000],
    "truncated jpeg": lambda: encoded(NOISE, "JPEG")[:900],
    "declares 40 gigapixels": lambda: png(200_000, 200_000),
    "declares 200 megapixels": lambda: png(20_000, 10_000),
    "declares more than it holds": lambda: png(900, 900),
    "no pixels": lambda: png(0, 0),
    "16 bits": lambda: encoded(Image.fromarray(np.zeros((4, 4), np.uint16))),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images(flat: Path, name: str) -> None:
    (flat / "2.png").write_bytes(BROKEN[name]())
    dataset = open_folder(flat)
    with pytest.raises(DataError, match=r"2\.png") as caught:
        list(dataset.batches())
    assert caught.value.code == "data.image"
    assert str(caught.value.where).endswith("2.png")


def test_different_sizes_ask_for_resize(flat: Path) -> None:
    save(flat / "4.png", size=(9, 9))
    with pytest.raises(DataError, match="different shapes") as caught:
        list(open_folder(flat).batches())
    assert caught.value.hint == "add `resize` and `crop`, or `batch: 1` where the model takes any shape"
    assert [len(batch.feeds["image"]) for batch in open_folder(flat).batches(size=1)] == [1] * 5


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="no images"):
        open_folder(tmp_path / "set")


def test_fingerprint_follows_the_content(flat: Path) -> None:
    before = open_folder(flat).fingerprint
    assert open_folder(flat).fingerprint == before
    save(flat / "3.png", colour=200)
    assert open_folder(flat).fingerprint != before
    assert open_folder(flat, first=2).sample_hashes() == open_folder(flat).sample_hashes()[:2]
