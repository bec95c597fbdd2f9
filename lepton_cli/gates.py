"""Judging: (gates, report) -> verdicts. Pure: nothing is measured, read or written here.

How a limit is judged depends on what kind of number was measured.

* Timed metrics (latency, throughput) differ from run to run, so their interval decides: `pass` when all of it is
  within the limit, `fail` when all of it is beyond, otherwise `inconclusive`. So does that of the worst of several
  classes: which one is the worst is a matter of chance, and its value is worse than what it stands for.
* Everything else is decided by its value. Size and structure are exact. Accuracy and agreement are too, for the
  samples they were measured on: a model gives the same answers every time, so the value does not wobble, and a
  whole-interval rule would leave nearly every limit on a small evaluation set undecided. Their interval says how far
  other samples could differ: a verdict whose interval reaches across the limit says so in its reason.
* Numbers of another machine are never compared with this one's: such a gate is `skipped`, with the reason.

A metric the report does not hold at all is an error, not a verdict: a gate that silently judges nothing is worse
than none. Only what a recipe left out on purpose (an optional provider) is `skipped`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

from lepton_cli.errors import ReportError
from lepton_cli.metrics import Kind
from lepton_cli.recipe.schema import Gate
from lepton_cli.report import advice, facts, words
from lepton_cli.report import baseline as baselines
from lepton_cli.report.facts import BoundedValue, Fact
from lepton_cli.report.model import Report, Verdict

GateOutcome = Literal["pass", "fail", "inconclusive"]


def judge(
    gates: Sequence[Gate],
    report: Report,
    *,
    baseline: Report | None = None,
    places: Callable[[int], str] = lambda index: "",
    strict: bool = False,
) -> tuple[Verdict, ...]:
    """Judge the last variant of the report. `places(i)` is `file:line` of gate i.

    A gate that leaves provider, batch or output open is judged on each that was measured, one verdict for each.
    With `strict`, inconclusive and skipped gates fail. Raises ReportError for a metric that was never measured
    (`gate.metric-missing`), a missing baseline, or the baseline of another model.
    """
    verdicts = [
        verdict for index, gate in enumerate(gates) for verdict in _judge_one(gate, report, baseline, places(index))
    ]
    return tuple(_strict(verdict) if strict else verdict for verdict in verdicts)


def status(verdicts: Sequence[Verdict]) -> Literal["ok", "gate_failed"]:
    """`gate_failed` when a gate of level `error` failed."""
    failed = any(verdict.verdict == "fail" and verdict.level == "error" for verdict in verdicts)
    return "gate_failed" if failed else "ok"


def _judge_one(gate: Gate, report: Report, baseline: Report | None, where: str) -> list[Verdict]:
    found = facts.find(report, gate.metric, **gate.scope)
    if not found:
        notice = facts.skipped(report, gate.metric, gate.provider, gate.batch)
        if notice is None:
            raise _missing(gate, report, where)
        return [_skipped(gate, None, f"{notice.what}: {notice.reason}", where, report)]
    if gate.against == "baseline" and baseline is None:
        raise ReportError(
            "gate.no-baseline",
            f"the gate on `{gate.metric}` compares with a baseline, but none is given",
            where=where or None,
            hint="give --baseline FILE; `lepton baseline update` writes one",
        )
    if gate.against == "original" and any(compared(gate.comparison, fact) is not None for fact in found):
        # Outputs that a step made have nothing there to be compared with.
        found = tuple(fact for fact in found if compared(gate.comparison, fact) is not None)
    verdicts = []
    for fact in _plain_scope(found):
        if baseline is not None and gate.against == "baseline":
            reason, fact = baselines.against(fact, report, baseline)
            if reason:
                verdicts.append(_skipped(gate, fact, reason, where, report))
                continue
        verdicts.append(_verdict(gate, fact, report, where))
    return verdicts


def _plain_scope(found: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """Without the name of the output where there is only one: it says nothing then."""
    if len({fact.scope.get("output") for fact in found}) > 1:
        return found
    return tuple(
        dataclasses.replace(fact, scope={key: value for key, value in fact.scope.items() if key != "output"})
        for fact in found
    )


def _verdict(gate: Gate, fact: Fact, report: Report, where: str) -> Verdict:
    comparison, limit = gate.comparison, float(gate.limit)
    observed = compared(comparison, fact)
    if observed is None:
        alone = len(report.variants) < 2
        raise ReportError(
            "gate.no-reference",
            f"the gate on `{gate.metric}` compares with the {gate.against}, "
            + ("but the report holds only one model" if alone else "which has no such output"),
            where=where or None,
            hint="use `max` or `min`, or judge the report of `lepton compress` or `lepton compare`",
        )
    better, right = ("lower", "max_increase") if comparison == "max_drop" else ("higher", "max_drop")
    if comparison in ("max_drop", "max_increase") and fact.about.better == better:
        raise ReportError(
            "gate.direction",
            f"the gate on `{gate.metric}` limits what gets better: the report says that {better} is better",
            where=where or None,
            hint=f"write `{right}`",
        )
    upper = comparison in ("max", "max_ratio", "max_drop", "max_increase")
    outcome = _decide(observed, limit, upper, by_interval=fact.about.by_interval)
    return Verdict(
        metric=gate.metric,
        scope=_scope(gate, fact, report),
        level=gate.level,
        limit=_limit_words(gate),
        verdict=outcome,
        observed=_observed_words(comparison, observed, fact),
        excess=_excess(comparison, observed, limit, fact) if outcome == "fail" else "",
        reason=_reason(outcome, observed, limit, upper, fact),
        hint="" if outcome == "pass" else advice.hint(gate.metric, outcome, report, fact.scope),
        where=where,
    )


def _limit_words(gate: Gate) -> str:
    """The limit as the recipe writes it: `max 1 MB`, `max_ratio 0.6 of baseline`."""
    comparison = gate.comparison
    against = f" of {gate.against}" if comparison.endswith("_ratio") else ""
    against = f" from {gate.against}" if comparison in ("max_drop", "max_increase") else against
    return f"{comparison} {gate.limit}{against}"


def compared(comparison: str, fact: Fact) -> BoundedValue | None:
    """The number that is compared with the limit, with its interval."""
    if comparison in ("max", "min"):
        return fact.value
    if comparison.endswith("_ratio"):
        return fact.ratio
    if fact.difference is None or comparison == "max_increase":
        return fact.difference
    return BoundedValue(-fact.difference.value, -fact.difference.high, -fact.difference.low)


def _decide(observed: BoundedValue, limit: float, upper: bool, *, by_interval: bool) -> GateOutcome:
    if math.isnan(observed.value):
        return "fail"
    low, high = (observed.low, observed.high) if by_interval else (observed.value, observed.value)
    best, worst = (low, high) if upper else (high, low)
    if _within(worst, limit, upper):
        return "pass"
    return "inconclusive" if _within(best, limit, upper) else "fail"


def _within(value: float, limit: float, upper: bool) -> bool:
    """Exactly at the limit is within; rounding in the last bits of a share must not fail `0.5 pp`."""
    return (value <= limit if upper else value >= limit) or math.isclose(value, limit, rel_tol=1e-12, abs_tol=1e-12)


def _observed_words(comparison: str, observed: BoundedValue, fact: Fact) -> str:
    counted = f"n = {fact.n:,}" if fact.n and fact.kind in ("share", "coefficient", "number") else ""
    told = ", ".join(filter(None, (words.printable(fact.row, 60), counted)))
    sample = f" ({told})" if told else ""
    if comparison.endswith("_ratio"):
        text = f"{words.significant(observed.value)}{_interval(observed)}"
        return f"{text} ({words.exact(fact.value.value, fact.kind, fact.unit)})"
    if comparison in ("max_drop", "max_increase"):
        return _difference_words(observed.value, fact) + _interval(observed, fact.kind) + sample
    return words.exact(observed.value, fact.kind, fact.unit) + _interval(observed, fact.kind) + sample


def _interval(observed: BoundedValue, kind: Kind = "number") -> str:
    """The interval in the unit of the value before it."""
    if observed.known_exactly:
        return ""
    if kind in ("time", "energy"):
        low, high = (words.value(bound, kind) for bound in (observed.low, observed.high))
        return f" [{low}, {high}]"
    return " " + words.interval(observed.low, observed.high, "percent" if kind == "share" else "")


def _difference_words(difference: float, fact: Fact) -> str:
    if fact.kind == "share":
        return words.points(difference, sign=False)
    return words.exact(difference, fact.kind, fact.unit)


def _excess(comparison: str, observed: BoundedValue, limit: float, fact: Fact) -> str:
    if not math.isfinite(observed.value):
        return ""
    beyond = abs(observed.value - limit)
    direction = "under" if comparison in ("min", "min_ratio") else "over"
    if comparison.endswith("_ratio"):
        return f"{words.percent(beyond / limit, sign=False)} {direction} the limit"
    return f"{direction} by {_difference_words(beyond, fact)}"


def _reason(outcome: GateOutcome, observed: BoundedValue, limit: float, upper: bool, fact: Fact) -> str:
    """What a reader must know besides the numbers."""
    if math.isnan(observed.value):
        return "the measured value is not a number"
    if outcome == "inconclusive":
        return "the limit lies inside the 95 % interval: neither passed nor failed"
    crosses = _within(observed.low, limit, upper) != _within(observed.high, limit, upper)
    if fact.about.by_interval or not crosses:
        return ""
    if outcome == "pass":
        return "within on these samples; the 95 % interval reaches beyond the limit: more samples would tell"
    return "beyond on these samples; the 95 % interval reaches within the limit: more samples would tell"


def _scope(gate: Gate, fact: Fact | None, report: Report) -> dict[str, str | int]:
    """What the verdict is about; the number of threads where several were measured."""
    several = facts.several_threads(report)
    measured = fact.scope if fact else {}
    return {**{key: value for key, value in measured.items() if several or key != "threads"}, **gate.scope}


def _skipped(gate: Gate, fact: Fact | None, reason: str, where: str, report: Report) -> Verdict:
    return Verdict(
        metric=gate.metric,
        scope=_scope(gate, fact, report),
        level=gate.level,
        limit=_limit_words(gate),
        verdict="skipped",
        observed="-" if fact is None else words.exact(fact.value.value, fact.kind, fact.unit),
        reason=reason,
        where=where,
    )


def _strict(verdict: Verdict) -> Verdict:
    if verdict.verdict in ("pass", "fail"):
        return verdict
    reason = f"{verdict.verdict}, which --strict counts as failed: {verdict.reason}"
    return verdict.model_copy(update={"verdict": "fail", "reason": reason})


def _missing(gate: Gate, report: Report, where: str) -> ReportError:
    scope = ", ".join(f"{key} {value}" for key, value in gate.scope.items())
    same, why = facts.find(report, gate.metric), ""
    if same:
        described = ("/".join(str(value) for value in fact.scope.values()) or "once" for fact in same)
        hint = f"`{gate.metric}` was measured for: {', '.join(dict.fromkeys(described))}"
    else:
        hint = f"measured: {', '.join(facts.names(report)) or 'nothing'}"
        why = facts.absent(report, gate.metric)
    return ReportError(
        "gate.metric-missing",
        f"the gate on `{gate.metric}`{f' ({scope})' if scope else ''} has nothing to judge: it was not measured",
        cause=why or None,
        where=where or None,
        hint=hint,
    )
