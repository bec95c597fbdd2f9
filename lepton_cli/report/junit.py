"""Gates as JUnit XML: one test case for each gate, for every CI system that shows test results."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from lepton_cli.report import words
from lepton_cli.report.markdown import gate_name
from lepton_cli.report.model import Failure, Report, Verdict


def render(report: Report) -> str:
    """JUnit XML. A run that broke off is an `error` of its own, so that missing gates do not look like passed ones.

    Failed gates of level `warn` and inconclusive ones do not fail a build: they are `skipped` with the reason.
    """
    name = report.recipe.name if report.recipe and report.recipe.name else report.command
    cases = [_case(gate, name) for gate in report.gates]
    if report.error or not report.complete:
        cases.append(_broken(report, name))
    suite = ET.Element(
        "testsuite",
        name=words.printable(f"lepton {name}"),
        tests=str(len(cases)),
        failures=str(_count(cases, "failure")),
        errors=str(_count(cases, "error")),
        skipped=str(_count(cases, "skipped")),
        time=f"{report.seconds:.3f}",
        timestamp=words.printable(report.created),
    )
    suite.extend(cases)
    ET.SubElement(suite, "system-out").text = words.printable(report.headline, 2000)
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _count(cases: list[ET.Element], outcome: str) -> int:
    return sum(case.find(outcome) is not None for case in cases)


def _case(gate: Verdict, name: str) -> ET.Element:
    case = ET.Element(
        "testcase", classname=words.printable(f"lepton.{name}"), name=words.printable(f"{gate_name(gate)} {gate.limit}")
    )
    file, _, line = gate.where.rpartition(":")
    if file and line.isdigit():
        case.set("file", words.printable(file))
        case.set("line", line)
    told = words.printable(", ".join(part for part in (f"found {gate.observed}", gate.excess) if part))
    details = "\n".join(words.printable(part, 2000) for part in (gate.reason, gate.hint, gate.where) if part)
    if gate.verdict == "fail" and gate.level == "error":
        ET.SubElement(case, "failure", message=told, type=gate.metric).text = details
    elif gate.verdict != "pass":
        word = "warning" if gate.verdict == "fail" else gate.verdict
        ET.SubElement(case, "skipped", message=f"{word}: {told}").text = details
    return case


def _broken(report: Report, name: str) -> ET.Element:
    case = ET.Element("testcase", classname=words.printable(f"lepton.{name}"), name="run")
    error = report.error or Failure()
    message = words.printable(error.message or f"the run is not complete ({report.status})", 2000)
    ET.SubElement(case, "error", message=message, type=words.printable(error.code or report.status))
    return case
