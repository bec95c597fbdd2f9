"""Reading and writing `report.json`, and saying clearly why a file is not one."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lepton_cli.errors import OutputError, ReportError, disk_full
from lepton_cli.report.model import FORMAT_VERSION, Report

#: Above this many bytes a file is certainly not a report.
LARGEST = 256 * 10**6


def write_text(text: str, path: Path) -> None:
    """Write atomically: a temporary file beside the target, then a rename. Raises OutputError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise disk_full(error, path) or OutputError(
            "output.not-writable", f"cannot write {path}", where=str(path), cause=error.strerror or str(error)
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def to_json(report: Report) -> str:
    """The report as JSON text; equal reports give equal text. Non-finite numbers become null."""
    return report.model_dump_json(indent=1) + "\n"


def write_json(report: Report, path: Path) -> None:
    """Write `report.json` atomically. Raises OutputError."""
    write_text(to_json(report), path)


def read(path: Path) -> Report:
    """Read a report. Raises ReportError for anything that is not a whole report of this major version."""
    document = _document(path)
    version = _version(document, path)
    ours = _numbers(FORMAT_VERSION)
    if version[0] != ours[0]:
        newer = version[0] > ours[0]
        raise ReportError(
            "report.version",
            f"{path} has format version {document['format_version']}, this lepton reads {ours[0]}.x",
            where=str(path),
            hint="update lepton" if newer else "run the command again: it writes a report of this version",
        )
    try:
        # Keys that a later minor version added are not errors; in a report of our own version they are edits.
        return Report.model_validate_json(json.dumps(document), extra="ignore" if version > ours else None)
    except ValidationError as error:
        raise _invalid(error, path) from None


def _document(path: Path) -> dict[str, Any]:
    """The JSON object in the file. Raises ReportError when there is none."""
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise ReportError("report.not-a-report", f"{path} is too large to be a report", where=str(path))
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ReportError(
            "report.missing",
            f"there is no report at {path}",
            hint="`lepton compress` writes it as report.json into its output folder",
        ) from None
    except IsADirectoryError:
        raise ReportError("report.missing", f"{path} is a folder", hint=f"name the file: {path}/report.json") from None
    except UnicodeDecodeError:
        raise _not_a_report(path, "it is a binary file") from None
    except OSError as error:
        raise ReportError("report.unreadable", f"cannot read {path}", cause=error.strerror or str(error)) from None
    try:
        document = json.loads(text, parse_constant=lambda word: _not_a_number(word, path))
    except json.JSONDecodeError as error:
        if not text.lstrip().startswith("{"):
            raise _not_a_report(path, "it does not hold JSON" if text.strip() else "it is empty") from None
        ends = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
        raise ReportError(
            "report.truncated" if ends else "report.broken-json",
            f"{path} breaks off in the middle" if ends else f"{path} is not valid JSON",
            where=f"{path}:{error.lineno}:{error.colno}",
            cause=error.msg,
            hint="take the report again from where it was written (a CI artifact, an output folder)",
        ) from None
    except RecursionError:
        raise _not_a_report(path, "its JSON is nested too deeply") from None
    if not isinstance(document, dict):
        raise _not_a_report(path, f"it holds a JSON {type(document).__name__}, not an object")
    return document


def _version(document: dict[str, Any], path: Path) -> tuple[int, int]:
    if "format_version" not in document or "command" not in document:
        raise _not_a_report(path, "the keys `format_version` and `command` are missing")
    version = document["format_version"]
    try:
        return _numbers(version)
    except (ValueError, AttributeError):
        raise ReportError(
            "report.invalid",
            f"{path}: `format_version` is {json.dumps(version)[:40]}, expected text such as `{FORMAT_VERSION}`",
            where=str(path),
        ) from None


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def _not_a_number(word: str, path: Path) -> None:
    """JSON has no NaN, and a limit compared with it would say anything. Raises ReportError."""
    raise ReportError(
        "report.invalid",
        f"{path} holds {word} where a number should be",
        where=str(path),
        cause="the file was edited by hand or damaged",
        hint="reports are written by lepton and not meant to be edited: run the command again",
    )


def _not_a_report(path: Path, cause: str) -> ReportError:
    return ReportError(
        "report.not-a-report",
        f"{path} is not a lepton report",
        where=str(path),
        cause=cause,
        hint="give the report.json that a lepton command wrote",
    )


def _invalid(error: ValidationError, path: Path) -> ReportError:
    """The first wrong field, named by its path in the document: `variants[1].size.file`."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    found = "" if first["type"] == "missing" else f", found {json.dumps(first['input'], default=str)[:60]}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ReportError(
        "report.invalid",
        f"{path}: `{field}`: {first['msg'][0].lower()}{first['msg'][1:]}{found}{more}",
        where=str(path),
        cause="the file was edited by hand or damaged",
        hint="reports are written by lepton and not meant to be edited: run the command again",
    )
