"""Baselines: a stored, trimmed report of an accepted state, and what may be compared with it."""

from __future__ import annotations

from pathlib import Path

from lepton_cli.errors import ReportError
from lepton_cli.report import facts, store
from lepton_cli.report.facts import Fact
from lepton_cli.report.model import Report


def trimmed(report: Report) -> Report:
    """What a baseline needs: the numbers and where they come from, without raw times, decisions and samples."""
    latency = report.latency and report.latency.model_copy(
        update={"results": tuple(result.model_copy(update={"times": ()}) for result in report.latency.results)}
    )
    accuracy = report.accuracy and report.accuracy.model_copy(update={"flips": (), "classes": ()})
    steps = tuple(step.without_lists() for step in report.steps)
    return report.model_copy(
        update={"latency": latency, "accuracy": accuracy, "steps": steps, "gates": (), "diff": None, "tune": None}
    )


def update(report: Report, path: Path) -> Report:
    """Store the report as the baseline and return what was stored. Raises ReportError for an unfinished report."""
    if not report.complete or report.status in ("failed", "interrupted"):
        raise ReportError(
            "baseline.incomplete",
            "this report is of a run that did not finish: it cannot be a baseline",
            hint="run the command again until it is done",
        )
    kept = trimmed(report)
    store.write_json(kept, path)
    return kept


def load(path: Path, report: Report) -> Report:
    """Read a baseline for this report. Raises ReportError, also for the baseline of another model."""
    baseline = read(path)
    check(report, baseline, str(path))
    return baseline


def read(path: Path) -> Report:
    """Read a baseline. Raises ReportError."""
    try:
        return store.read(path)
    except ReportError as error:
        if error.code == "report.missing":
            error.hint = "`lepton baseline update` writes one"
        raise


def check(report: Report, baseline: Report, where: str | None = None) -> None:
    """Raise ReportError unless both reports began with the same model.

    A report of one bare model has no original to compare: there the baseline is simply the model's earlier state.
    """
    if len(report.variants) < 2 or len(baseline.variants) < 2:
        return
    ours, theirs = report.variants[0].file, baseline.variants[0].file
    if ours.sha256 != theirs.sha256:
        raise ReportError(
            "baseline.other-model",
            f"the baseline belongs to another model: {theirs.path} ({theirs.sha256[:12]}), "
            f"this report is about {ours.path} ({ours.sha256[:12]})",
            where=where,
            hint="after retraining, accept the new state with `lepton baseline update`",
        )


def against(fact: Fact, report: Report, baseline: Report) -> tuple[str, Fact]:
    """The fact compared with the baseline's, or the reason why the two cannot be compared. Raises ReportError."""
    check(report, baseline)
    rest = {key: value for key, value in fact.scope.items() if key != "threads"}
    found = facts.find(baseline, fact.metric, **fact.scope) or facts.find(baseline, fact.metric, **rest)
    if not found:
        return "the baseline does not hold this metric", fact
    stored = found[0]
    if fact.about.varies and (differing := _elsewhere(fact, stored, report, baseline)):
        return f"the baseline was measured elsewhere ({differing}): such times are not compared", fact
    if fact.about.quality and _evaluation(report) != _evaluation(baseline):
        return "the baseline was measured on other evaluation data", fact
    compared = fact.compared_with(stored.value)
    if fact.ratio is None or stored.ratio is None or fact.metric != "latency.median":
        return "", compared
    return "", _through_the_original(compared, fact, stored)


def _through_the_original(compared: Fact, fact: Fact, stored: Fact) -> Fact:
    """Both runs measured the same original side by side: their paired ratios cancel what the machine did meanwhile."""
    if fact.ratio is None or stored.ratio is None:
        return compared
    return facts.scaled(compared, stored.value.value, fact.ratio.over(stored.ratio))


def _elsewhere(fact: Fact, stored: Fact, report: Report, baseline: Report) -> str:
    """What differs between the two machines, in words; empty where times may be compared."""
    here, there = report.environment, baseline.environment
    for name in ("cpu", "instructions", "usable_cores", "system", "onnxruntime"):
        if getattr(here, name) != getattr(there, name):
            shown = name.replace("_", " ")
            return f"{shown} {_shown(getattr(there, name))} there, {_shown(getattr(here, name))} here"
    if fact.scope.get("threads") != stored.scope.get("threads"):
        return f"{stored.scope.get('threads')} threads there, {fact.scope.get('threads')} here"
    return ""


def _shown(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _evaluation(report: Report) -> frozenset[str]:
    return frozenset(data.fingerprint for data in report.data if data.role == "evaluation")
