"""Stored reports: what is written can be read, and whatever else is given is refused with a reason."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli.errors import OutputError, ReportError
from lepton_cli.quantize.details import QuantizeStaticDetails, Sensitivity
from lepton_cli.report import store
from lepton_cli.report.model import RecipeFacts, Report
from tests.report import builders


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    store.write_json(builders.report(), path)
    return path


def edited(path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return path


def refused(path: Path) -> ReportError:
    with pytest.raises(ReportError) as caught:
        store.read(path)
    assert caught.value.exit_code == 2
    return caught.value


def test_what_is_written_is_read_back(path: Path) -> None:
    assert store.read(path) == builders.report()


def test_equal_reports_give_equal_bytes_and_no_leftovers(path: Path) -> None:
    before = path.read_bytes()
    store.write_json(builders.report(), path)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["report.json"]


_VALUES = st.dictionaries(st.text(), st.integers() | st.text(), max_size=4)


@given(headline=st.text(), seconds=st.floats(0, 1e9), values=_VALUES)
def test_round_trip_of_any_text(headline: str, seconds: float, values: dict[str, Any]) -> None:
    recipe = RecipeFacts(name="any", path=None, sha256="0" * 64, resolved=values)
    report = builders.report(headline=headline or "-", seconds=seconds, recipe=recipe, steps=())
    assert Report.model_validate_json(store.to_json(report)) == report


def test_numbers_that_are_not_finite_are_read_back_as_none(tmp_path: Path) -> None:
    step = builders.steps()[2]
    rows = (Sensitivity(node="fc", op="Gemm", sqnr_db=math.inf),)
    step = step.model_copy(update={"details": QuantizeStaticDetails(sensitivity=rows)})
    store.write_json(builders.report(steps=(step,)), tmp_path / "report.json")
    assert store.read(tmp_path / "report.json").steps[0].details == QuantizeStaticDetails(
        sensitivity=(Sensitivity(node="fc", op="Gemm", sqnr_db=None),)
    )


def test_missing(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.json").code == "report.missing"
    assert refused(tmp_path).code == "report.missing"


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x00\x12\xff\xfe", b"version: 1\n", b"[1, 2]", b"{}", b'{"a": 1}', b"null"]
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert refused(path).code == "report.not-a-report"


def test_deeply_nested_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a":' * 200_000)
    assert refused(path).code in ("report.not-a-report", "report.truncated")


@given(share=st.floats(0.001, 0.999))
def test_truncated_anywhere(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    text = store.to_json(builders.report()).strip()
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_text(text[: int(len(text) * share)])
    error = refused(path)
    assert error.code in ("report.truncated", "report.broken-json", "report.not-a-report")


def test_a_stray_comma_is_broken_json_with_its_place(path: Path) -> None:
    path.write_text(path.read_text().replace('"status":', ',"status":', 1))
    error = refused(path)
    assert error.code == "report.broken-json"
    assert ":3:" in str(error.where) or ":4:" in str(error.where)


def test_another_major_version(path: Path) -> None:
    newer = refused(edited(path, lambda document: document.update(format_version="2.0")))
    assert newer.code == "report.version"
    assert "update lepton" in (newer.hint or "")
    older = refused(edited(path, lambda document: document.update(format_version="0.9")))
    assert older.code == "report.version"
    assert "run the command again" in (older.hint or "")


@pytest.mark.parametrize("version", [1, "one", "1", None, "1.0.0"])
def test_a_version_that_is_none(path: Path, version: object) -> None:
    assert refused(edited(path, lambda document: document.update(format_version=version))).code == "report.invalid"


def test_keys_of_a_later_minor_version_are_passed_over(path: Path) -> None:
    def later(document: dict[str, Any]) -> None:
        document["format_version"] = "1.7"
        document["invented"] = 1
        document["variants"][0]["size"]["invented"] = 2

    assert store.read(edited(path, later)).variants[0].size.file > 0


def test_hand_edited_values_are_named_by_their_path(path: Path) -> None:
    error = refused(edited(path, lambda document: document["variants"][1]["size"].update(file="small")))
    assert error.code == "report.invalid"
    assert "`variants[1].size.file`" in error.message
    assert '"small"' in error.message
    missing = refused(edited(path, lambda document: document["variants"][1]["size"].pop("file")))
    assert "`variants[1].size.file`" in missing.message


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        store.write_json(builders.report(), tmp_path / "file" / "report.json")
    assert caught.value.code == "output.not-writable"


def test_reading_and_judging_stay_light(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lepton_cli.report import store; from lepton_cli import gates;"
        "from lepton_cli.recipe.schema import Gate;"
        "gates.judge([Gate(metric='size.file', max='1 MB')], store.read(Path(sys.argv[1])));"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'jinja2', 'rich'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
