"""The report as Markdown for pull requests: verdict first, then the table, then everything else folded away."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from lepton_cli.report import classes, sections, table, tune_facts, words
from lepton_cli.report.model import Report, StepRecord, Verdict
from lepton_cli.report.sections import Section

#: GitHub cuts comments at 65,536 characters; this leaves room for what a bot adds.
LARGEST = 60_000
_NODES_SHOWN = 40
_CLASSES_SHOWN = 20
_SPECIAL = re.compile(r"([\\`*_<>|\[\]~&$])")
WORDS = {"pass": "pass", "fail": "FAIL", "inconclusive": "inconclusive", "skipped": "skipped"}


def render(report: Report) -> str:
    """Markdown of at most 60 KB. For reading: scripts take report.json."""
    name = report.recipe.name if report.recipe and report.recipe.name else report.command
    marker = re.sub(r"[^A-Za-z0-9._-]+", "-", name) or "report"
    opening = f"<!-- lepton:{marker} -->\n"
    return _fit(opening, [part for part in _parts(report) if part])


def _parts(report: Report) -> Iterator[str]:
    """Sections, the most important first."""
    yield f"**{text(report.headline, 2000)}**\n"
    if report.error:
        yield f"Error `{_plain_code(report.error.code)}`: {text(report.error.message, 2000)}\n"
    yield _table(report)
    yield _gates(report.gates)
    yield _warnings(report)
    yield _classes(report)
    yield from map(_section, sections.sections(report, _NODES_SHOWN))
    yield _search(report)
    for step in report.steps:
        yield _step(step)
    yield _section(sections.environment(report))
    if report.reproduce:
        yield _folded("How to reproduce", f"```sh\n{_fenced(report.reproduce)}\n```")
    yield f"<sub>lepton {text(report.environment.lepton)}, {text(report.created)}</sub>\n"


def _fit(opening: str, parts: list[str]) -> str:
    """As many sections as fit; the first that do not are replaced by where the rest is."""
    note = "\n_truncated, full report in report.html and report.json_\n"
    room = LARGEST - len(note.encode())
    document = opening
    for part in parts:
        if len((document + "\n" + part).encode()) <= room:
            document += "\n" + part
            continue
        if "<details>" not in part:
            left = room - len(document.encode()) - 1
            whole = part.encode()[: max(left, 0)].decode(errors="ignore")
            document += "\n" + whole.rpartition("\n")[0] + "\n"
        return document + note
    return document


def text(value: object, longest: int = 300) -> str:
    """Foreign text as literal Markdown text: no markup, no HTML, no mention, one line."""
    return _SPECIAL.sub(r"\\\1", words.printable(value, longest)).replace("@", "@\u200b")


def code(name: object) -> str:
    """A name as a code span, safe inside tables and against backticks in the name."""
    shown = words.printable(name, 120).replace("|", "\\|")
    ticks = max((len(run) for run in re.findall("`+", shown)), default=0)
    if not ticks:
        return f"`{shown}`" if shown.strip() else "` `"
    fence = "`" * (ticks + 1)
    return f"{fence} {shown} {fence}"


def _plain_code(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "", str(value))


def _fenced(value: str) -> str:
    return "\n".join(words.printable(line, 2000) for line in value.splitlines()).replace("```", "'''")


def _table(report: Report) -> str:
    listed = table.rows(report)
    if not listed:
        return ""
    if not any(row.compressed for row in listed):
        lines = ["| | measured | |", "|---|---:|---|"]
        lines += [f"| {_label(row)} | {text(row.original)} | {text(row.skipped or row.remark)} |" for row in listed]
        return "\n".join(lines) + "\n"
    lines = ["| | original | compressed | change | |", "|---|---:|---:|---:|---|"]
    for row in listed:
        if row.skipped:
            lines.append(f"| {_label(row)} | | | | skipped: {text(row.skipped)} |")
        else:
            cells = (row.original, row.compressed, row.change, row.remark)
            lines.append(f"| {_label(row)} | {' | '.join(text(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _label(row: table.TableRow) -> str:
    return text(f"{row.label} {row.detail}".strip())


def _gates(gates: tuple[Verdict, ...]) -> str:
    if not gates:
        return ""
    lines = ["| gate | limit | found | verdict | set in |", "|---|---|---|---|---|"]
    for gate in sorted(gates, key=severity):
        about = "<br>".join(text(part) for part in (gate.excess, gate.reason, gate.hint) if part)
        verdict = WORDS[gate.verdict] + (" (warning)" if gate.verdict == "fail" and gate.level == "warn" else "")
        found = text(gate.observed) + (f"<br>{about}" if about else "")
        where = code(gate.where) if gate.where else ""
        lines.append(f"| {code(gate_name(gate))} | {text(gate.limit)} | {found} | {verdict} | {where} |")
    return "\n".join(lines) + "\n"


def severity(gate: Verdict) -> int:
    """Sorting key, worst first: failed errors, failed warnings, inconclusive, skipped, passed."""
    if gate.verdict == "fail":
        return 0 if gate.level == "error" else 1
    return {"inconclusive": 2, "skipped": 3, "pass": 4}[gate.verdict]


def gate_name(gate: Verdict) -> str:
    """The metric with its scope: `latency.median cpu batch 32`."""
    return " ".join(filter(None, (gate.metric, words.scope(gate.scope))))


def warnings(report: Report) -> list[str]:
    """All warnings of the run, each once."""
    listed = [
        *report.warnings,
        *(report.accuracy.warnings if report.accuracy else ()),
        *(report.latency.warnings if report.latency else ()),
        *report.environment.warnings,
        *(f"{step.step}: {warning}" for step in report.steps for warning in step.warnings),
    ]
    return list(dict.fromkeys(listed))


def _warnings(report: Report) -> str:
    listed = warnings(report)
    return "\n".join(f"- warning: {text(warning, 600)}" for warning in listed) + "\n" if listed else ""


def _classes(report: Report) -> str:
    """The classes that lost most; all are in report.html."""
    rows = classes.ranked(report)
    if not rows:
        return ""
    shown = tuple(classes.cells(report, one) for one in rows[:_CLASSES_SHOWN])
    listed = _listed(classes.HEADER, shown, len(rows) - len(shown))
    return _folded(classes.title(rows), "\n".join([text(classes.summary(report), 600), *listed]))


def _section(section: Section) -> str:
    lines = ["| | |", "|---|---|"] if section.facts else []
    lines += [f"| {text(label)} | {text(said, 2000)} |" for label, said in section.facts]
    return _folded(section.title, "\n".join([*lines, *_listed(section.header, section.rows, section.more)]))


def _listed(header: tuple[str, ...], rows: tuple[tuple[str, ...], ...], more: int) -> list[str]:
    """The lines of a table, names first, and how many of its rows are left out."""
    lines = []
    if rows:
        lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        lines += [f"| {code(row[0])} | {' | '.join(text(cell) for cell in row[1:])} |" for row in rows]
    return [*lines, *([f"\nand {more} more in report.json"] if more else [])]


def _search(report: Report) -> str:
    """The front of `tune`; every trial is in report.html."""
    tuned = tune_facts.search(report)
    if tuned is None:
        return ""
    cost, quality = (text(tune_facts.label(axis)) for axis in (tuned.axes.cost, tuned.axes.quality))
    on_front = [trial for trial in tune_facts.trials(tuned) if trial.kind == "front"]
    lines = [f"| candidate | {cost} | {quality} | file | limits |", "|---|---:|---:|---:|---|"] if on_front else []
    for trial in on_front:
        name = f"**{text(trial.name)}**" if trial.best else text(trial.name)
        margins = "<br>".join(text(one.text) for one in trial.margins)
        lines.append(f"| {name} | {trial.cost} | {trial.quality} | {trial.file} | {margins} |")
    if nearest := tune_facts.nearest(tuned):
        lines += ["", "Nothing holds all limits:", "", *(f"- {text(one.text, 600)}" for one in nearest)]
    title = f"Search: {words.plural(len(tuned.trials), 'trial')}, the front within the limits"
    return _folded(title, "\n".join(lines))


def _step(step: StepRecord) -> str:
    title = f"{step.index + 1}. {step.step}: {step.summary or words.plural(step.changed, 'change')}"
    lines = [f"{words.plural(step.changed, 'change')} in {step.seconds:.1f} s", ""]
    lines += [
        f"- {text(key)}: {text(chosen)}" for key, chosen in words.settings(step.details, tried=bool(step.left_because))
    ]
    for (action, reason), nodes in grouped(step).items():
        shown = ", ".join(code(node) for node in nodes[:_NODES_SHOWN])
        more = f" and {len(nodes) - _NODES_SHOWN} more" if len(nodes) > _NODES_SHOWN else ""
        why = f", {text(reason)}" if reason else ""
        lines.append(f"- **{text(action)}** {len(nodes)}{why}: {shown}{more}")
    return _folded(title, "\n".join(lines))


def grouped(step: StepRecord) -> dict[tuple[str, str], list[str]]:
    """Nodes by what was done with them and why, the largest groups first within an action."""
    groups: dict[tuple[str, str], list[str]] = {}
    for decision in step.decisions:
        groups.setdefault((decision.action, decision.reason), []).append(decision.node)
    actions = list(dict.fromkeys(action for action, _ in groups))
    return dict(sorted(groups.items(), key=lambda item: (actions.index(item[0][0]), -len(item[1]))))


def _folded(title: str, body: str) -> str:
    """A folded section; its summary is HTML, where Markdown escapes do not work."""
    summary = html.escape(words.printable(title)).replace("@", "@\u200b")
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>\n"
