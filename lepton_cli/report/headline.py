"""The first line of every output: what was gained, what it cost, and the worst news first."""

from __future__ import annotations

from lepton_cli.measure.results import ClassChange
from lepton_cli.quantize.details import QuantizeStaticDetails
from lepton_cli.report import bought, facts, words
from lepton_cli.report.model import Report, Verdict

#: Losses of shares below this are not worth leading with (0.5 percentage points).
NOTABLE_LOSS = 0.005
#: File sizes closer than this are the same: the note of where a model comes from is a few hundred bytes.
NOTABLE_GROWTH = 1.005


#: Agreement below this is worth leading with where no accuracy was measured.
POOR_AGREEMENT = 0.95
#: Errors of more than 10 % of an output are worth leading with where nothing is decided.
POOR_SQNR = 20.0
#: A part of an output below so many dB, and so many below the best part, is worth leading with.
POOR_PART, FAR_BEHIND = 20.0, 10.0


def headline(report: Report) -> str:
    """One line in plain words: `5.3x smaller, 2.5x faster (cpu, batch 1), -0.36 pp top-1: all 5 gates passed`."""
    bad, good = _bad(report), _good(report)
    opening = _broken(report) or _failed(report.gates)
    told = ", ".join([*bad, *good])
    if opening:
        return f"{opening}: {told}" if told else opening
    closing = _gates(report.gates)
    if not told:
        return closing or ("nothing was compared" if len(report.variants) < 2 else "no difference was measured")
    return f"{told}: {closing}" if closing else told


def _broken(report: Report) -> str:
    """Why the run is not whole, if it is not."""
    if report.status == "interrupted":
        return "INTERRUPTED, partial results"
    if report.status == "failed":
        message = report.error.message.strip() if report.error else ""
        return f"FAILED ({message}), partial results" if message else "FAILED, partial results"
    return "" if report.complete else "UNFINISHED, partial results"


def _failed(gates: tuple[Verdict, ...]) -> str:
    failed = [gate for gate in gates if gate.verdict == "fail" and gate.level == "error"]
    if not failed:
        return ""
    listed = ", ".join(f"{gate.metric} {gate.excess}".strip() for gate in failed[:2])
    more = f" and {len(failed) - 2} more" if len(failed) > 2 else ""
    return f"{len(failed)} of {words.plural(len(gates), 'gate')} FAILED ({listed}{more})"


def _gates(gates: tuple[Verdict, ...]) -> str:
    """How the gates ended when none failed at level error."""
    passed = sum(gate.verdict == "pass" for gate in gates)
    if not gates:
        return ""
    if passed == len(gates):
        return "the gate passed" if passed == 1 else f"all {passed} gates passed"
    counts = [f"{passed} of {words.plural(len(gates), 'gate')} passed"]
    for verdict, said in (("fail", "failed as a warning"), ("inconclusive", "inconclusive"), ("skipped", "skipped")):
        count = sum(gate.verdict == verdict for gate in gates)
        counts += [f"{count} {said}"] if count else []
    return ", ".join(counts)


def _bad(report: Report) -> list[str]:
    """Slower, larger, less accurate: whatever got worse, said first."""
    size = _size(report)
    return [
        *(f"{step.step} LEFT THE MODEL AS IT WAS ({step.left_because})" for step in report.steps if step.left_because),
        *filter(None, [bought.said(report)]),
        *_no_gain(report),
        *_other_answers(report),
        *_poor_parts(report),
        *_slower(report),
        *([size] if size.endswith("LARGER") else []),
        *(text for fact, loss in _losses(report) if _leads(report, fact, loss) and (text := _loss(fact))),
        *_paying(report),
    ]


def _good(report: Report) -> list[str]:
    size = _size(report)
    speeds = [_not_slower(report, fact) for fact in facts.find(report, "latency.median")]
    told = [speed for speed in speeds if speed][:1]
    small = [text for fact, loss in _losses(report) if not _leads(report, fact, loss) and (text := _loss(fact))]
    return [*([size] if size and not size.endswith("LARGER") else []), *told, *small]


def _no_gain(report: Report) -> list[str]:
    """What a step measured itself: that its kind of model does not pay on this machine, and what does."""
    applied = [step.details for step in report.steps if not step.left_because]
    found = [details.speed for details in applied if isinstance(details, QuantizeStaticDetails)]
    return [speed.verdict for speed in found if speed is not None and speed.verdict]


def _other_answers(report: Report) -> list[str]:
    """Without labels, agreement tells whether the model does its work, else SQNR: said where it is poor."""
    if report.accuracy is None or report.accuracy.changes:
        return []
    worst = min(facts.find(report, "agreement"), key=lambda fact: fact.value.value, default=None)
    if worst is None:
        wholes = [fact for fact in facts.find(report, "fidelity.sqnr") if "part" not in fact.scope]
        far = min(wholes, key=lambda fact: fact.value.value, default=None)
        if far is None or far.value.value >= POOR_SQNR:
            return []
        return [
            f"ERRORS of {words.error_share(far.value.value)} of the output ({words.value(far.value.value, 'decibel')})"
        ]
    if worst.value.value >= POOR_AGREEMENT:
        return []
    return [f"only {words.value(worst.value.value, 'share')} AGREEMENT with the original"]


def _poor_parts(report: Report) -> list[str]:
    """Parts of an output that fell far behind its others: what was lost where the whole looks well."""
    said = []
    for close in report.accuracy.fidelity if report.accuracy else ():
        if len(close.parts) > 1:
            worst, best = (choose(close.parts, key=lambda part: part.sqnr_db) for choose in (min, max))
            if worst.sqnr_db < POOR_PART and best.sqnr_db - worst.sqnr_db > FAR_BEHIND:
                lowest, highest = (words.value(part.sqnr_db, "decibel") for part in (worst, best))
                said.append(f"`{close.output}`{worst.where} at only {lowest} SQNR ({best.where} at {highest})")
    return said


def _slower(report: Report) -> list[str]:
    """For each provider the worst clear slowdown, with every batch size that is slower."""
    slower: dict[str, list[tuple[float, str]]] = {}
    for fact in facts.find(report, "latency.median"):
        if fact.ratio is not None and _speed(fact.ratio) == "slower":
            where = f"{fact.scope['batch']}{_threads(report, fact)}"
            slower.setdefault(str(fact.scope["provider"]), []).append((fact.ratio.value, where))
    lines = []
    for provider, found in slower.items():
        batches = " and ".join(batch for _, batch in found)
        lines.append(f"{_short(max(found)[0])} SLOWER ({provider}, batch {batches})")
    return lines


def _not_slower(report: Report, fact: facts.Fact) -> str:
    """A clear gain in speed, or the absence of a difference."""
    found = _speed(fact.ratio) if fact.ratio is not None else "slower"
    if fact.ratio is None or found == "slower":
        return ""
    where = f"({fact.scope['provider']}, batch {fact.scope['batch']}{_threads(report, fact)})"
    if found == "faster":
        return f"{_short(1 / fact.ratio.value)} faster {where}"
    return f"{'same speed' if found == 'same' else 'no clear difference in speed'} {where}"


def _threads(report: Report, fact: facts.Fact) -> str:
    """With how many threads, where that has to be told."""
    if not facts.several_threads(report):
        return ""
    return f" on {words.plural(int(fact.scope['threads']), 'thread')}"


def _speed(ratio: facts.BoundedValue) -> words.SpeedWord:
    return words.speed(ratio.value, ratio.low, ratio.high)


def _size(report: Report) -> str:
    found = facts.find(report, "size.file")
    ratio = found[0].ratio if found else None
    if ratio is None or ratio.value <= 0:
        return ""
    if ratio.value > NOTABLE_GROWTH:
        return f"{_short(ratio.value)} LARGER"
    return f"{_short(1 / ratio.value)} smaller" if ratio.value < 1 / NOTABLE_GROWTH else "same size"


def _leads(report: Report, fact: facts.Fact, loss: float) -> bool:
    """Whether a loss is said first: it is large, or some classes pay for it and are compared with it."""
    compared = fact.kind == "share" and fact.scope.get("output") in {one.output for one in _payers(report)}
    return loss >= NOTABLE_LOSS or compared


def _payers(report: Report) -> tuple[ClassChange, ...]:
    return report.accuracy.payers if report.accuracy else ()


def _paying(report: Report) -> list[str]:
    """The class that lost most, where it lost clearly more than the whole and not by chance."""
    several = len({one.output for one in report.accuracy.spread}) > 1 if report.accuracy else False
    return [
        f"{words.printable(one.title, 40)}{f' of {one.output}' if several else ''} {words.points(one.change, 1)}"
        for one in _payers(report)[:1]
    ]


def _losses(report: Report) -> list[tuple[facts.Fact, float]]:
    """Accuracy metrics with what they lost, as a share of 1 (relative to the original for unbounded metrics)."""
    listed: list[tuple[facts.Fact, float]] = []
    for fact in facts.facts(report):
        if fact.about.source != "accuracy" or fact.about.by_class or fact.difference is None or fact.reference is None:
            continue
        loss = -fact.difference.value if fact.about.better == "higher" else fact.difference.value
        scale = 1.0 if fact.kind in ("share", "coefficient") else abs(fact.reference.value) or 1.0
        listed.append((fact, loss / scale))
    return listed


def _loss(fact: facts.Fact) -> str:
    if fact.difference is None:
        return ""
    name = fact.about.label
    if fact.difference.value == 0:
        return f"{name} unchanged"
    if fact.kind == "share":
        return f"{words.points(fact.difference.value)} {name}"
    return f"{fact.difference.value:+.3g} {name}"


def _short(ratio: float) -> str:
    """Two significant digits, or whole numbers from 10 on; three near 1, where the third matters."""
    if ratio < 1.1:
        return f"{ratio:.2f}x"
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"
