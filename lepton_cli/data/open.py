"""Opening the data of a recipe: the file's kind decides the source, and a first batch is checked with the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lepton_cli.data import check, rows
from lepton_cli.data.fit import Statistics
from lepton_cli.data.reader import SourceDataset
from lepton_cli.data.source import Source, nearest, unreadable
from lepton_cli.data.spec import DataSpec
from lepton_cli.data.synthetic import synthetic
from lepton_cli.errors import DataError, LeptonError
from lepton_cli.tensors import TensorInfo

__all__ = ["open_dataset", "synthetic"]


def open_dataset(
    spec: DataSpec,
    inputs: Sequence[TensorInfo],
    *,
    name: str,
    base: Path,
    statistics: Statistics | None = None,
    allow_code: bool = False,
) -> SourceDataset:
    """Open the data set `name` (`calibration`, `evaluation` or `training`) for a model with these `inputs`.

    `base` is the folder that `spec.path` is relative to. `statistics` are the `statistics` of the calibration data
    set, for `standardise` and `fill_missing: mean|median` in others. Reads one sample and checks it against the
    inputs. Raises DataError whose `option` is a path such as `("data", "evaluation", "inputs")`, MissingExtraError.
    """
    path = base / spec.path
    try:
        check.names(spec, inputs)
        source = _source(path, spec, inputs, name, base, allow_code)
        dataset = SourceDataset(source, spec, inputs, name=name, path=spec.path, statistics=statistics)
        dataset.read_groups(path)
    except LeptonError as error:
        if isinstance(error, DataError) and error.option[:1] != ("data",):
            error.option = ("data", name, *error.option)
        raise
    except OSError as error:
        raise unreadable(error, name) from error
    next(dataset.batches(size=1, limit=1), None)
    return dataset


def _source(
    path: Path, spec: DataSpec, inputs: Sequence[TensorInfo], name: str, base: Path, allow_code: bool
) -> Source:
    if spec.loader is not None:
        from lepton_cli.data.loader import LoaderSource

        return LoaderSource(path, spec, inputs, base=base, allow_code=allow_code)
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            "data.not-found",
            f"`{name}`: {path} does not exist",
            hint=nearest(path.name, sorted(siblings), what=f"in {path.parent}") if siblings else None,
            option=("path",),
        )
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".npz", ".npy"):
        from lepton_cli.data.arrays import ArraySource

        return ArraySource(path, spec, inputs, name)
    if path.is_file() and suffix in rows.SUFFIXES:
        from lepton_cli.data.tables import TableSource

        return TableSource(path, spec, inputs)
    if path.is_dir():
        from lepton_cli.data.images import ImageSource

        return ImageSource(path, spec, inputs, base)
    raise DataError(
        "data.format",
        f"`{name}`: {path.name} is not a kind of data lepton reads",
        hint="an .npz or .npy file, a folder of images, a .csv, .jsonl or .parquet table",
        option=("path",),
    )
