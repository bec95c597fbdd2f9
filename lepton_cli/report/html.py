"""The report as one HTML file: no network, readable without scripts, on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepton_cli import metrics
from lepton_cli.report import facts, figures, markdown, sections, store, table, tune_chart, words
from lepton_cli.report.model import Report, StepRecord, Verdict

if TYPE_CHECKING:
    import jinja2

#: A file stays below this: the embedded JSON gives up its longest lists first.
LARGEST = 290_000
#: Decisions listed for one step; the rest is in report.json.
_DECISIONS = 400
_FLIPS = 30
_CONFUSIONS = 20
_WORDS = {
    "pass": ("passed", "good"),
    "fail": ("failed", "bad"),
    "inconclusive": ("inconclusive", "open"),
    "skipped": ("skipped", "plain"),
}
_TEMPLATES = Path(__file__).with_name("templates")


def render(report: Report) -> str:
    """HTML of at most about 300 KB."""
    from markupsafe import Markup

    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = _template()
    page = ""
    for listed, embedded in ((_DECISIONS, 2), (150, 1), (40, 0)):
        context = _context(report, listed)
        page = template.render(
            **context,
            style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=digest,
            embedded=Markup(_embedded(report, embedded)),
        )
        if len(page.encode()) <= LARGEST:
            break
    return page


@functools.cache
def _template() -> jinja2.Template:
    """Compiled once: `tune` writes a page for every better candidate."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["name"] = words.printable
    return environment.get_template("report.html.j2")


def _embedded(report: Report, detail: int) -> str:
    """The report as JSON that cannot end its own script element. Detail 2: all but raw times; 0: the numbers alone."""
    latency = report.latency and report.latency.model_copy(
        update={"results": tuple(result.model_copy(update={"times": ()}) for result in report.latency.results)}
    )
    tuned = report.tune and report.tune.model_copy(update={"records": ()})
    kept = report.model_copy(update={"latency": latency, "tune": tuned})
    if detail < 2:
        kept = kept.model_copy(update={"steps": tuple(step.without_lists() for step in report.steps)})
    if detail < 1:
        sizes = [one.model_copy(update={"size": one.size.model_copy(update={"layers": ()})}) for one in report.variants]
        accuracy = report.accuracy and report.accuracy.model_copy(update={"flips": (), "classes": ()})
        least = {"variants": tuple(sizes), "accuracy": accuracy, "recipe": None, "diff": None, "tune": None}
        kept = kept.model_copy(update=least)
    text = json.dumps(json.loads(store.to_json(kept)), separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _context(report: Report, listed: int) -> dict[str, Any]:
    name = report.recipe.name if report.recipe and report.recipe.name else report.command
    model = report.variants[0].file.path if report.variants else ""
    return {
        "report": report,
        "name": words.printable(name, 80),
        "model": words.printable(model, 120),
        # A line break inside `top-1` or a negative number would read wrongly.
        "headline": _unbroken(words.printable(report.headline, 2000).replace("-", "\N{NON-BREAKING HYPHEN}")),
        "created": words.printable(report.created[:16].replace("T", " ") + (" UTC" if report.created[16:] else "")),
        "verdict": _verdict(report),
        "cards": cards(report),
        "rows": table.rows(report),
        "compared": len(report.variants) > 1 or any(row.compressed for row in table.rows(report)),
        "gates": [_gate(gate) for gate in sorted(report.gates, key=markdown.severity)],
        "warnings": [words.printable(warning, 600) for warning in markdown.warnings(report)],
        "tune": tune_chart.section(report),
        "figures": figures.figures(report),
        "sections": sections.sections(report, listed),
        "flips": report.accuracy.flips[:_FLIPS] if report.accuracy else (),
        "confusions": report.accuracy.confusions[:_CONFUSIONS] if report.accuracy else (),
        "flips_total": report.accuracy.flips_total if report.accuracy else 0,
        "steps": [_step(step, listed) for step in report.steps],
        "environment": sections.environment(report),
    }


def _verdict(report: Report) -> tuple[str, str]:
    """The word of the badge and its style; the word alone carries the meaning."""
    if report.status in ("failed", "interrupted"):
        return report.status, "bad"
    if not report.complete:
        return "unfinished", "bad"
    if any(gate.verdict == "fail" and gate.level == "error" for gate in report.gates):
        return "gate failed", "bad"
    if any(gate.verdict != "pass" for gate in report.gates):
        return "passed with remarks", "open"
    return ("all gates passed", "good") if report.gates else ("measured, no gates set", "plain")


def cards(report: Report) -> list[dict[str, Any]]:
    """The figures people look for first: size, speed, accuracy, agreement. `left`: what remains, in per cent."""
    made: list[dict[str, Any]] = []
    for label, name in (("File size", "size.file"), ("Latency", "latency.median")):
        found = facts.find(report, name)
        if found and found[0].ratio and found[0].reference:
            fact, ratio = found[0], found[0].ratio
            big = words.percent(ratio.value - 1) if name == "size.file" else _speed(ratio)
            before, after = (_unbroken(words.value(one.value, fact.kind)) for one in (found[0].reference, fact.value))
            where = f"{fact.scope['provider']}, batch {fact.scope['batch']}" if "batch" in fact.scope else ""
            made.append({"label": label, "big": big, "small": f"{before} → {after}", "note": where})
            if ratio.value <= 1:
                made[-1]["left"] = 100 * ratio.value
    for change in (report.accuracy.changes if report.accuracy else ())[:1]:
        metric = metrics.accuracy(change.metric)
        big = words.difference(change.difference, metric.kind)
        small = f"{words.value(change.original, metric.kind)} → {words.value(change.compressed, metric.kind)}"
        label = f"Accuracy, {metric.label}"
        made.append({"label": label, "big": big, "small": small, "note": f"n = {change.n:,}"})
    return made + _closeness(report)


def _closeness(report: Report) -> list[dict[str, Any]]:
    """Agreement and fidelity where they are worst: the first output may be the one that lost nothing."""
    agreed, close = facts.find(report, "agreement"), facts.find(report, "fidelity.sqnr")
    in_parts = {fact.scope["output"] for fact in close if "part" in fact.scope}
    close = tuple(fact for fact in close if "part" in fact.scope or fact.scope["output"] not in in_parts)
    cards = []
    for label, found, small in (("Agreement", agreed, "same answer as the original"), ("Fidelity", close, "")):
        if found:
            worst = min(found, key=lambda fact: fact.value.value)
            value = worst.value.value
            note = _which(worst, len(found))
            if worst.metric == "fidelity.sqnr":
                small = f"errors are {words.error_share(value) if value < math.inf else '0 %'} of the output"
                note = f"SQNR, {note}" if note else "SQNR"
            big = words.value(value, worst.kind) if value < math.inf else "identical"
            cards.append({"label": label, "big": big, "small": small, "note": note})
    if len(agreed) == len(close) == 1:
        agreement, fidelity = cards
        return [agreement | {"note": f"SQNR {fidelity['big']}" if close[0].value.value < math.inf else ""}]
    return cards


def _which(worst: facts.Fact, count: int) -> str:
    """Which output, or part of one, is the worst of several."""
    name = words.printable(f"{worst.scope['output']}{worst.scope.get('part', '')}", 60)
    return f"worst of {count}: {name}" if count > 1 else ""


def _unbroken(text: str) -> str:
    """Numbers stay on one line with what they count: `1.11 MB`, `batch 64`."""
    text = re.sub(r"(?<=[0-9]) (?=[A-Za-z%])", "\N{NO-BREAK SPACE}", text)
    return re.sub(r"(?<=batch) (?=[0-9])", "\N{NO-BREAK SPACE}", text)


def _speed(ratio: facts.BoundedValue) -> str:
    found = words.speed(ratio.value, ratio.low, ratio.high)
    if found == "slower":
        return f"{words.significant(ratio.value)}x slower"
    if found == "faster":
        return f"{words.significant(1 / ratio.value)}x faster"
    return "same speed" if found == "same" else "no clear change"


def _gate(gate: Verdict) -> dict[str, str]:
    word, style = _WORDS[gate.verdict]
    if gate.verdict == "fail" and gate.level == "warn":
        word, style = "warning", "open"
    return {
        "name": words.printable(markdown.gate_name(gate), 160),
        "limit": words.printable(gate.limit),
        "observed": words.printable(gate.observed),
        "excess": words.printable(gate.excess),
        "reason": words.printable(gate.reason, 600),
        "hint": words.printable(gate.hint, 600),
        "where": words.printable(gate.where),
        "word": word,
        "style": style,
    }


def _step(step: StepRecord, listed: int) -> dict[str, Any]:
    """A step with its decisions, of each kind of action some when there are too many for the page."""
    by_action: dict[str, list[Any]] = {}
    for decision in step.decisions:
        by_action.setdefault(decision.action, []).append(decision)
    each = max(1, listed // max(1, len(by_action)))
    shown = [decision for group in by_action.values() for decision in group[:each]]
    return {
        "record": step,
        "title": words.printable(step.summary) or words.plural(step.changed, "change"),
        "settings": words.settings(step.details, tried=bool(step.left_because)),
        "actions": [(action, len(group)) for action, group in by_action.items()],
        "decisions": shown,
        "more": len(step.decisions) - len(shown),
        "size": "" if step.size_after is None else words.value(step.size_after, "size"),
    }
