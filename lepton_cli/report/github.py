"""Reports inside GitHub Actions: annotations on the lines that set a gate, and the page of the job summary."""

from collections.abc import Mapping
from pathlib import Path

from lepton_cli.errors import LeptonError, OutputError, Place
from lepton_cli.report import markdown, words
from lepton_cli.report.model import Report, Verdict

#: GitHub shows ten annotations of a kind for each step.
MOST = 10


def annotations(report: Report) -> str:
    """Workflow commands, one line each, worst first; empty when there is nothing to say."""
    lines = []
    if report.error:
        message = f"{report.error.message} {report.error.help or ''}".strip()
        lines.append(_command("error", message, title=report.error.code or "lepton"))
    gates = [gate for gate in sorted(report.gates, key=markdown.severity) if gate.verdict != "pass"]
    lines += [_annotation(gate) for gate in gates]
    return "".join(f"{line}\n" for line in lines[:MOST])


def error_annotation(error: LeptonError) -> str:
    """The workflow command of an error that ended a command, on the line it is about where there is one."""
    place = {"file": error.where.file, "line": str(error.where.line)} if isinstance(error.where, Place) else {}
    message = "\n".join(part for part in (error.message, error.cause, error.hint) if part)
    return _command("error", message, **place, title=error.code) + "\n"


def step_summary(report: Report) -> str:
    """The page that a job's summary shows."""
    return markdown.render(report)


def append_summary(report: Report, environment: Mapping[str, str]) -> bool:
    """Append to the file that `GITHUB_STEP_SUMMARY` names; False outside GitHub Actions. Raises OutputError."""
    target = environment.get("GITHUB_STEP_SUMMARY", "")
    if not target:
        return False
    try:
        with Path(target).open("a", encoding="utf-8") as stream:
            stream.write(step_summary(report) + "\n")
    except OSError as error:
        raise OutputError(
            "output.not-writable",
            f"cannot append to GITHUB_STEP_SUMMARY ({target})",
            cause=error.strerror or str(error),
        ) from error
    return True


def _annotation(gate: Verdict) -> str:
    level = {"fail": "error" if gate.level == "error" else "warning"}.get(gate.verdict, "notice")
    word = "" if gate.verdict == "fail" else f"{gate.verdict}: "
    parts = [f"{word}limit {gate.limit}, found {gate.observed}", gate.excess]
    message = "\n".join([", ".join(part for part in parts if part), *(p for p in (gate.reason, gate.hint) if p)])
    file, _, line = gate.where.rpartition(":")
    place = {"file": file, "line": line} if file and line.isdigit() else {}
    return _command(level, message, **place, title=markdown.gate_name(gate))


def _command(level: str, message: str, **properties: str) -> str:
    said = "\n".join(words.printable(line, 1000) for line in message.splitlines())
    named = ",".join(f"{key}={_property(words.printable(value))}" for key, value in properties.items())
    return f"::{level} {named}::{_data(said)}"


def _data(text: str) -> str:
    """Escapes of GitHub's toolkit for the text of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escapes of GitHub's toolkit for the value of a property."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
