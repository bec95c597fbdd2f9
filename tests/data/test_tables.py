"""Tables: columns to inputs, missing values, text labels, and errors that name the row and the column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lepton_cli.data.open import open_dataset
from lepton_cli.data.reader import SourceDataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

X = TensorInfo("x", "float32", ("n", 2))
ROWS: list[dict[str, Any]] = [
    {"a": 1.5, "b": 2, "kind": "dog"},
    {"a": 3.0, "b": -4, "kind": "cat"},
    {"a": 0.25, "b": 6, "kind": "dog"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def open_table(path: Path, *inputs: TensorInfo, **fields: object) -> SourceDataset:
    spec = DataSpec.model_validate({"path": path.name, **fields})
    return open_dataset(spec, inputs or (X,), name="evaluation", base=path.parent)


@pytest.fixture(params=["data.csv", "data.jsonl", "data.parquet"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_columns_stack_into_the_last_axis(path: Path) -> None:
    dataset = open_table(write(path, ROWS), inputs={"x": ["b", "a"]}, labels="kind")
    batches = list(dataset.batches(size=2))
    np.testing.assert_array_equal(batches[0].feeds["x"], np.float32([[2, 1.5], [-4, 3]]))
    assert [batch.labels["labels"].tolist() for batch in batches] == [[1, 0], [1]]
    assert dataset.class_names == {"labels": ("cat", "dog")}


def test_without_inputs_all_but_the_labels(path: Path) -> None:
    dataset = open_table(write(path, ROWS), labels="kind", skip=1, samples=1)
    assert next(dataset.batches()).feeds["x"].tolist() == [[3, -4]]


def test_one_input_a_column(path: Path) -> None:
    inputs = (TensorInfo("a", "float32", ("n", 1)), TensorInfo("b", "int64", ("n",)), TensorInfo("kind", "str", None))
    (batch,) = open_table(write(path, ROWS), *inputs).batches()
    assert batch.feeds["a"].tolist() == [[1.5], [3], [0.25]]
    assert batch.feeds["b"].tolist() == [2, -4, 6]
    assert batch.feeds["kind"].tolist() == ["dog", "cat", "dog"]


def test_numeric_labels_keep_their_kind(path: Path) -> None:
    (batch,) = open_table(write(path, ROWS), inputs={"x": ["a", "b"]}, labels={"n": "b", "r": "a"}).batches()
    assert batch.labels["n"].dtype == np.int64
    assert batch.labels["r"].tolist() == [1.5, 3, 0.25]


def test_missing_values_name_row_and_column(path: Path) -> None:
    rows = [ROWS[0], {**ROWS[1], "a": None}, ROWS[2]]
    dataset = open_table(write(path, rows), labels="kind")
    with pytest.raises(DataError, match="column `a` has no value") as caught:
        list(dataset.batches())
    where = {".csv": "data.csv:3", ".jsonl": "data.jsonl:2", ".parquet": "data.parquet: row 2"}[path.suffix]
    assert str(caught.value.where).endswith(where)
    assert caught.value.option == ("data", "evaluation", "preprocess", "fill_missing")
    kept = open_table(path, labels="kind", preprocess={"fill_missing": "keep"})
    np.testing.assert_array_equal(next(kept.batches()).feeds["x"], [[1.5, 2], [np.nan, -4], [0.25, 6]])
    filled = open_table(path, labels="kind", preprocess={"fill_missing": 9})
    assert next(filled.batches()).feeds["x"][1].tolist() == [9, -4]


def test_statistics_come_from_the_calibration_data(path: Path) -> None:
    rows = [*ROWS, {"a": None, "b": 100, "kind": "cat"}]
    spec = DataSpec.model_validate(
        {"path": path.name, "labels": "kind", "preprocess": {"fill_missing": "mean", "standardise": True}}
    )
    write(path, rows)
    calibration = open_dataset(spec, (X,), name="calibration", base=path.parent)
    values = np.array([[1.5, 2], [3, -4], [0.25, 6], [4.75 / 3, 100]])
    expected = (values - values.mean(0)) / values.std(0)
    np.testing.assert_allclose(next(calibration.batches()).feeds["x"], expected, atol=1e-6)
    one = DataSpec.model_validate({**spec.model_dump(), "samples": 1})
    dataset = open_dataset(one, (X,), name="evaluation", base=path.parent, statistics=calibration.statistics)
    np.testing.assert_allclose(next(dataset.batches()).feeds["x"], expected[:1], atol=1e-6)
    with pytest.raises(DataError) as caught:
        open_dataset(spec, (X,), name="evaluation", base=path.parent)
    assert caught.value.code == "data.no-statistics"


def test_lists_of_tokens_are_padded(tmp_path: Path) -> None:
    rows = [{"ids": [5, 6, 7]}, {"ids": [8]}, {"ids": []}]
    for name in ("d.jsonl", "d.parquet"):
        dataset = open_table(
            write(tmp_path / name, rows), TensorInfo("ids", "int64", ("n", 4)), preprocess={"pad": 4, "pad_value": 1}
        )
        assert next(dataset.batches()).feeds["ids"].tolist() == [[5, 6, 7, 1], [8, 1, 1, 1], [1, 1, 1, 1]]
    (tmp_path / "d.csv").write_text('ids\n"[5, 6, 7]"\n"[8]"\n')
    dataset = open_table(tmp_path / "d.csv", TensorInfo("ids", "int64", ("n", 4)), preprocess={"pad": 4})
    assert next(dataset.batches()).feeds["ids"].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]


def test_text_where_a_number_is_wanted(path: Path) -> None:
    dataset_path = write(path, ROWS)
    with pytest.raises(DataError, match="`dog`, which is not a number") as caught:
        open_table(dataset_path, inputs={"x": ["a", "kind"]})
    assert caught.value.where is not None


def test_unknown_columns_get_the_nearest_right_one(path: Path) -> None:
    with pytest.raises(DataError, match="no column `kinds`") as caught:
        open_table(write(path, ROWS), labels="kinds")
    assert "did you mean `kind`?" in str(caught.value.hint)
    assert caught.value.option == ("data", "evaluation", "labels")


def test_labels_that_are_mostly_numbers(path: Path) -> None:
    rows = [{"a": n, "b": n, "kind": str(n)} for n in range(5)] + [{"a": 1, "b": 1, "kind": "oops"}]
    with pytest.raises(DataError, match="`oops` is not a number"):
        open_table(write(path, rows), labels="kind")


BROKEN = {
    "d.csv": [
        b"",
        b"a,b\n",
        b"a,a\n1,2\n",
        b"1,2\n3,4\n",
        b"a,b\n1\n",
        b"a,b\n1,2,3\n",
        b"a,b\n\xff\xff,1\n",
        b"a\n\x00\n",
    ],
    "d.jsonl": [b"", b"[1]\n", b'{"a": 1', b"nonsense\n", b"[" * 100_000, b'{"a": 1, "b": [[1], [1, 2]]}\n', b"\xff\n"],
    "d.parquet": [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in BROKEN for content in BROKEN[name]])
def test_broken_tables(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(open_table(tmp_path / name, inputs={"x": ["a", "b"]}).batches())
    assert caught.value.option[:2] == ("data", "evaluation")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(content=st.one_of(st.binary(max_size=80), st.text(alphabet='a,b"\n{}[]:1.5-\\', max_size=80).map(str.encode)))
@pytest.mark.parametrize("name", ["d.csv", "d.jsonl"])
def test_any_bytes_are_a_table_or_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        for batch in open_table(tmp_path / name, TensorInfo("x", "float32", None)).batches():
            assert len(batch.feeds["x"])
    except DataError:
        pass


def test_labels_that_look_like_numbers_stay_text_where_asked(path: Path) -> None:
    rows = [{"a": 1.0, "b": 2, "code": code} for code in ("0012", "7", "abc", "0012")]
    spec = {"path": path.name, "inputs": {"x": ("a", "b")}, "labels": "code"}
    write(path, rows)
    found = open_dataset(DataSpec(**spec, label_type="text"), [X], name="evaluation", base=path.parent)
    assert found.text_labels == {"labels"}
    assert found.class_names == {"labels": ("0012", "7", "abc")}
    assert next(found.batches()).labels["labels"].tolist() == [0, 1, 2, 0]
    with pytest.raises(DataError, match="`abc` is not a number") as caught:
        open_dataset(DataSpec(**spec), [X], name="evaluation", base=path.parent)
    assert caught.value.hint == "`label_type: text` keeps them as they are written"
