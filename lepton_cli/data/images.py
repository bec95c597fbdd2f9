"""Image folders: a folder per class, or images with a CSV of labels. Every image is opened only when its turn comes."""

from __future__ import annotations

import csv
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.data.labels import number_labels
from lepton_cli.data.preprocess import Raw
from lepton_cli.data.source import Chunk, label_map
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError, MissingExtraError
from lepton_cli.tensors import TensorInfo

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
#: Larger images are refused before a pixel is decoded; a photograph has 10 to 100 million.
MAX_PIXELS = 1 << 27
#: Decoded images that are held at once: thirty-two of 20 million pixels.
MAX_BATCH_BYTES = 1 << 31
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "MPO")


class ImageSource:
    """Images below a folder, RGB uint8 `[height, width, 3]`, or gray `[height, width]` with `channels: gray`.

    Labels are the positions of the sorted class folders, or come from a CSV with columns file and label (a header is
    optional, names may be text). Without `labels` the order is that of the sorted paths, with a CSV that of its lines.
    Raises DataError; MissingExtraError without Pillow.
    """

    def __init__(self, path: Path, spec: DataSpec, inputs: Sequence[TensorInfo], base: Path) -> None:
        _pillow()
        if len(inputs) != 1:
            raise DataError(
                "data.inputs",
                f"an image folder feeds one input, the model has {len(inputs)}",
                hint="store the inputs as arrays of an .npz file",
                option=("path",),
            )
        self._path = path
        self._input = inputs[0].name
        preprocess = spec.preprocess_inputs.get(self._input, spec.preprocess)
        self._mode = "L" if preprocess.channels == "gray" else "RGB"
        self.class_names: Mapping[str, tuple[str, ...]] = {}
        self.text_labels: frozenset[str] = frozenset()
        self.notes: tuple[str, ...] = ()
        self.jumps = True
        self._labels: dict[str, Array] = {}
        found = _find(path)
        given = label_map(spec.labels)
        if len(given) > 1:
            raise DataError("data.labels", "an image folder has one set of labels", option=("labels",))
        if given:
            label, file = next(iter(given.items()))
            self._files = self._from_csv(label, _label_file(path, base, file), found, spec.label_type == "text")
        else:
            self._files = found
            self._from_folders()
        self.count = len(self._files)
        self.label_names = tuple(self._labels)

    def _from_folders(self) -> None:
        folders = [PurePosixPath(file).parts[0] if "/" in file else "" for file in self._files]
        classes = sorted(set(folders))
        if "" in classes and len(classes) > 1:
            self.notes += ("images lie beside class folders: taken as unlabelled",)
        elif len(classes) > 1:
            positions = {name: position for position, name in enumerate(classes)}
            self._labels = {"labels": np.array([positions[folder] for folder in folders], np.int64)}
            self.class_names = {"labels": tuple(classes)}

    def _from_csv(self, label: str, table: Path, found: Sequence[str], text: bool) -> list[str]:
        rows = _read_labels(table)
        known = set(found)
        missing = [file for file, _, _ in rows if file not in known]
        if missing:
            line = next(line for file, _, line in rows if file not in known)
            raise DataError(
                "data.missing-files",
                f"{len(missing)} of {len(rows)} images listed in {table.name} are not in {self._path}: "
                + ", ".join(missing[:3])
                + (", …" if len(missing) > 3 else ""),
                where=f"{table}:{line}",
                hint=f"paths are relative to {self._path}",
                option=("labels",),
            )
        if extra := len(known - {file for file, _, _ in rows}):
            self.notes += (f"{extra} images in {self._path.name} have no label in {table.name} and are left out",)
        said = [label for _, label, _ in rows]
        values, classes = number_labels(said, lambda row: f"{table}:{rows[row][2]}", text=text)
        self._labels = {label: values}
        if classes:
            self.class_names, self.text_labels = {label: classes}, frozenset((label,))
        return [file for file, _, _ in rows]

    def chunks(self, indices: Sequence[int], size: int) -> Iterator[Chunk]:
        """See `Source`. Images of one size come as one array, others as a list."""
        for start in range(0, len(indices), size):
            wanted = indices[start : start + size]
            images = self._read(wanted)
            stored: Raw = np.stack(images) if len({image.shape for image in images}) == 1 else images
            labels = {name: values[np.asarray(wanted)] for name, values in self._labels.items()}
            yield Chunk({self._input: stored}, labels)

    def _read(self, wanted: Sequence[int]) -> list[Array]:
        images: list[Array] = []
        held = 0
        for index in wanted:
            images.append(read_image(self._path / self._files[index], self._mode))
            held += images[-1].nbytes
            if held > MAX_BATCH_BYTES:
                raise DataError(
                    "data.too-large",
                    f"the images of one batch of {len(wanted)} take more than {MAX_BATCH_BYTES >> 30} GiB",
                    where=str(self._path / self._files[index]),
                    hint="lower `batch`, or store smaller images",
                    option=("batch",),
                )
        return images

    def digest(self, indices: Sequence[int]) -> str:
        """See `Source`: of the images used, their names and their labels."""
        digest = hashlib.sha256()
        for index in indices:
            labels = [int(values[index]) for values in self._labels.values()]
            digest.update(f"{self._files[index]} {labels}\n".encode())
            digest.update((self._path / self._files[index]).read_bytes())
        return digest.hexdigest()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("images", "pillow", "reading images") from error
    return Image


def _find(path: Path) -> list[str]:
    """Image files below `path`, as sorted relative paths. Hidden files and folders are passed over."""
    found: list[str] = []
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(path)
        found.extend(
            (inside / name).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES and (Path(folder) / name).is_file()
        )
    if not found:
        raise DataError(
            "data.empty", f"{path} holds no images", hint=f"known: {', '.join(sorted(SUFFIXES))}", option=("path",)
        )
    for name in found:
        if not _is_text(name):
            raise DataError(
                "data.name",
                f"the file name {name!a} is not UTF-8",
                where=str(path),
                hint="rename it: names go into the report",
                option=("path",),
            )
    return sorted(found)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _label_file(path: Path, base: Path, file: str) -> Path:
    for candidate in (path / file, base / file):
        if candidate.is_file():
            return candidate
    raise DataError(
        "data.not-found",
        f"label file {file} is neither in {path} nor in {base}",
        hint="for folders, `labels` is a CSV with columns file and label; without it the class folders are the labels",
        option=("labels",),
    )


def _read_labels(table: Path) -> list[tuple[str, str, int]]:
    """(file, label, line number) of each row."""
    rows = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            for row in reader:
                if not row:
                    continue
                if len(row) < 2:
                    raise DataError(
                        "data.labels",
                        "a line needs two columns, file and label",
                        where=f"{table}:{reader.line_num}",
                        option=("labels",),
                    )
                rows.append((row[0].strip().replace("\\", "/"), row[1].strip(), reader.line_num))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError("data.labels", f"cannot read {table}", cause=str(error), option=("labels",)) from error
    if rows and PurePosixPath(rows[0][0]).suffix.lower() not in SUFFIXES:
        del rows[0]  # a header
    if not rows:
        raise DataError("data.empty", f"{table} lists no images", option=("labels",))
    return rows


def read_image(path: Path, mode: str) -> Array:
    """One image, upright, as uint8: `[height, width, 3]` for mode RGB, `[height, width]` for mode L."""
    image_module = _pillow()
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with image_module.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        "data.image",
                        f"image {path.name} declares {image.width}x{image.height} pixels, more than {MAX_PIXELS}",
                        where=str(path),
                        option=("path",),
                    )
                if image.mode in ("I", "F") or image.mode.startswith("I;"):
                    raise DataError(
                        "data.image",
                        f"image {path.name} has more than 8 bits a channel (mode {image.mode})",
                        where=str(path),
                        hint="store such images as arrays in an .npz file",
                        option=("path",),
                    )
                ImageOps.exif_transpose(image, in_place=True)
                return np.asarray(image if image.mode == mode else image.convert(mode))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on broken files
        raise DataError(
            "data.image",
            f"{path.name} is not a sound image",
            where=str(path),
            cause=" ".join(f"{type(error).__name__}: {error}".split())[:200],
            hint="replace it, or take it out of the data set",
            option=("path",),
        ) from error
