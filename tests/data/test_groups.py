"""Groups of samples: the same from every kind of file, for the samples that are used, and one error for each fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_cli.data.open import open_dataset
from lepton_cli.data.reader import SourceDataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo
from tests.data.test_tables import write

X = TensorInfo("x", "float32", ("n",))
SITES = ["west", "east", "east", "north", "west", "east"]
AGES = [30, 20, 30, 20, 20, 100]


def stored(folder: Path, suffix: str, **columns: Any) -> Path:
    columns = {"x": list(range(len(SITES))), "y": [0, 1] * 3, "site": SITES, "age": AGES} | columns
    if suffix == "npz":
        np.savez(folder / "data.npz", **{name: np.array(values) for name, values in columns.items()})
        return folder / "data.npz"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return write(folder / f"data.{suffix}", rows)


def opened(path: Path, *groups: str, **spec: Any) -> SourceDataset:
    given = DataSpec(path=path.name, labels="y", groups=groups, **spec)
    return open_dataset(given, [X], name="evaluation", base=path.parent)


@pytest.mark.parametrize("suffix", ["npz", "csv", "jsonl", "parquet"])
def test_values_are_numbered(tmp_path: Path, suffix: str) -> None:
    """The columns are no inputs, although `x` may be left to be the only one that is over."""
    found = opened(stored(tmp_path, suffix), "site", "age").groups
    for column, values in (("site", SITES), ("age", AGES)):
        one = found[column]
        assert [one.names[code] for code in one.codes] == [str(value) for value in values]
        assert len(one.names) == 3


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_groups_are_those_of_the_samples_that_are_used(tmp_path: Path, suffix: str) -> None:
    path = stored(tmp_path, suffix)
    for spec, used in (({"skip": 1}, [1, 2, 3, 4, 5]), ({"first": 2}, [0, 1]), ({"samples": 3}, [0, 2, 4])):
        one = opened(path, "site", **spec).groups["site"]
        assert [one.names[code] for code in one.codes] == [SITES[index] for index in used]


def test_columns_of_groups_feed_no_model(tmp_path: Path) -> None:
    """The only input takes the columns that are neither labels nor groups."""
    for suffix in ("csv", "npz"):
        path = stored(tmp_path, suffix)
        given = DataSpec(path=path.name, labels="y", groups=("site", "age"))
        only = open_dataset(given, [TensorInfo("input", "float32", ("n",))], name="evaluation", base=tmp_path)
        assert next(only.batches()).feeds["input"].tolist() == [0, 1, 2, 3, 4, 5]


def test_without_groups_nothing_is_read(tmp_path: Path) -> None:
    path = stored(tmp_path, "csv")
    plain, grouped = opened(path), opened(path, "site")
    assert plain.groups == {}
    # The samples are the same: a baseline that knew of no groups can be compared.
    assert plain.fingerprint == grouped.fingerprint


@pytest.mark.parametrize(
    ("suffix", "columns", "code", "told"),
    [
        ("npz", {"site": np.array([1.0, np.nan, 3, 4, 5, 6])}, "data.missing-group", "site, sample 1"),
        ("npz", {"site": np.array(["a", "b", "", "a", "b", "a"])}, "data.missing-group", "site, sample 2"),
        ("csv", {"site": ["a", "b", "", "a", "b", "a"]}, "data.missing-group", "data.csv:4"),
        ("csv", {"site": ["a", "nan", "b", "a", "b", "a"]}, "data.missing-group", "data.csv:3"),
        ("jsonl", {"site": ["a", "b", "c", "a", None, "a"]}, "data.missing-group", "data.jsonl:5"),
        ("npz", {"site": np.zeros((6, 2))}, "data.groups", "array `site` of shape"),
        ("npz", {"site": np.zeros(5)}, "data.groups", "array `site` of shape"),
        ("npz", {"site": np.float64(3)}, "data.groups", "array `site` of shape"),
    ],
)
def test_values_that_are_no_groups(tmp_path: Path, suffix: str, columns: dict[str, Any], code: str, told: str) -> None:
    path = stored(tmp_path, suffix, **columns)
    with pytest.raises(DataError) as caught:
        opened(path, "age", "site")
    error = caught.value
    assert error.code == code
    assert error.option == ("data", "evaluation", "groups", 1)
    assert error.where is None, "the recipe's line is for whoever knows the recipe"
    assert told in f"{error.message} {error.cause}"


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    for suffix in ("csv", "npz"):
        with pytest.raises(DataError) as caught:
            opened(stored(tmp_path, suffix), "sites")
        assert caught.value.code == "data.unknown-column"
        assert caught.value.option == ("data", "evaluation", "groups", 0)
        assert caught.value.hint is not None
        assert "did you mean `site`?" in caught.value.hint


@pytest.mark.parametrize("count", [1000, 1001])
def test_a_measurement_is_no_group(tmp_path: Path, count: int) -> None:
    values = np.arange(count)
    np.savez(tmp_path / "data.npz", x=values, y=values % 2, age=values)
    if count <= 1000:
        assert len(opened(tmp_path / "data.npz", "age").groups["age"].names) == count
        return
    with pytest.raises(DataError, match="`age` has 1,001 different values, and at most 1,000 are groups"):
        opened(tmp_path / "data.npz", "age")


def test_a_loader_has_no_columns(tmp_path: Path) -> None:
    path = stored(tmp_path, "npz")
    (tmp_path / "own.py").write_text("def load(path):\n    yield {'x': [0.0] * 6, 'y': [0] * 6}\n")
    given = DataSpec(path=path.name, labels="y", groups=("site",), loader="own.py:load")
    with pytest.raises(DataError, match="a loader has no columns for groups"):
        open_dataset(given, [X], name="evaluation", base=tmp_path, allow_code=True)


def test_images_in_folders_have_no_columns(tmp_path: Path) -> None:
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images" / label / "0.png")
    given = DataSpec(path="images", groups=("site",))
    with pytest.raises(DataError, match="images has no columns for groups"):
        open_dataset(given, [TensorInfo("x", "uint8", ("n", 4, 4, 3))], name="evaluation", base=tmp_path)
