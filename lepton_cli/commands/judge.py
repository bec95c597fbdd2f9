"""Judging without measuring: the gates of a budget against a stored report, or against a bare model's structure.

For a report neither numpy nor onnx nor onnxruntime is imported: a CI job can judge where nothing is installed to run
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lepton_cli import gates
from lepton_cli.errors import ReportError
from lepton_cli.recipe.load import LoadedBudget
from lepton_cli.recipe.schema import Gate
from lepton_cli.recipe.source import SourceMap
from lepton_cli.report import baseline as baselines
from lepton_cli.report import facts, headline, store
from lepton_cli.report.model import Report, Verdict


def judge(subject: Path, budget: LoadedBudget, *, baseline: Path | None = None, strict: bool = False) -> Report:
    """The report of `subject` (a report or a model) with the verdicts of the budget's gates.

    Raises ReportError for a report that is not whole, for gates on what was never measured and for the baseline of
    another model; ModelError for a broken model.
    """
    bare = is_model(subject)
    report = structure_report(subject) if bare else store.read(subject)
    if not bare:
        check_complete(report, subject)
    else:
        _check_structural(budget.budget.gates, report, budget)
    reference = baselines.load(baseline, report) if baseline is not None else None
    verdicts = gates.judge(
        budget.budget.gates, report, baseline=reference, places=lambda index: _place(budget, index), strict=strict
    )
    return judged(report, verdicts)


def judged(report: Report, verdicts: Sequence[Verdict]) -> Report:
    """The report with these verdicts, and the status and first line that follow from them."""
    report = report.model_copy(update={"gates": tuple(verdicts), "status": gates.status(verdicts)})
    return report.model_copy(update={"headline": headline.headline(report)})


def check_baseline(wanted: Sequence[Gate], baseline: Path | None, source: SourceMap) -> None:
    """Raise ReportError, before any long work, for a baseline that gates need and is not there or not one."""
    needing = [index for index, gate in enumerate(wanted) if gate.against == "baseline"]
    if needing and baseline is None:
        raise ReportError(
            "gate.no-baseline",
            f"the gate on `{wanted[needing[0]].metric}` compares with a baseline, but none is given",
            where=source.place(("gates", needing[0], "against")),
            hint="give --baseline FILE; `lepton baseline update` writes one",
        )
    if baseline is not None:
        baselines.read(baseline)


def is_model(path: Path) -> bool:
    """Whether `path` is to be read as a model: by its ending, else by its first byte, because a report is JSON text."""
    if path.suffix.lower() in (".onnx", ".json"):
        return path.suffix.lower() == ".onnx"
    try:
        with path.open("rb") as stream:
            return not stream.read(64).lstrip().startswith((b"{", b"\xef\xbb\xbf{"))
    except OSError:
        return False


def check_complete(report: Report, path: Path) -> None:
    """Raise ReportError for a report of a run that broke off: what is missing in it would look like passed."""
    if report.complete and report.status not in ("failed", "interrupted"):
        return
    raise ReportError(
        "report.incomplete",
        f"{path} is the report of a run that did not finish",
        where=str(path),
        cause=(report.error.message if report.error else "") or report.status,
        hint="run the command again until it is done, then judge its report",
    )


def _place(budget: LoadedBudget, index: int) -> str:
    place = budget.source.place(("gates", index))
    return f"{place.file}:{place.line}" if place else ""


def _check_structural(wanted: Sequence[Gate], report: Report, budget: LoadedBudget) -> None:
    """Raise ReportError when gates need what only a measurement can tell."""
    known = facts.names(report)
    missing = [index for index, gate in enumerate(wanted) if gate.metric not in known]
    if missing:
        named = ", ".join(dict.fromkeys(f"`{wanted[index].metric}`" for index in missing))
        raise ReportError(
            "gate.needs-report",
            f"a bare model tells its size and structure, not {named}",
            where=budget.source.place(("gates", missing[0])),
            cause=f"known of a model: {', '.join(known)}",
            hint="judge the report.json of `lepton compress` or `lepton compare`, or leave these gates out",
        )


def structure_report(path: Path) -> Report:
    """A report that holds one model's size and structure and nothing else. Raises ModelError."""
    from lepton_cli.commands.assemble import RunClock, assemble, variant
    from lepton_cli.model import io

    clock = RunClock()
    loaded = io.load(path)
    return assemble("gate", clock, variants=(variant("original", loaded, _macs(loaded.model)),))


def _macs(model: object) -> dict[str, int] | None:
    """MACs by node for one sample; `None` where the size of the inputs is open: a guess must not be judged."""
    import onnx_ir as ir

    from lepton_cli.graph import cost
    from lepton_cli.graph.feeds import default_feeds
    from lepton_cli.graph.settle import settle
    from lepton_cli.model import io

    assert isinstance(model, ir.Model)
    inputs = io.inputs(model)
    if any(info.shape is None or any(not isinstance(size, int) for size in info.shape[1:]) for info in inputs):
        return None
    return cost.macs(model, settle(model, default_feeds(model, 1))[0])
