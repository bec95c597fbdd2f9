"""Which layers cost accuracy, and returning the worst of them to float until a limit holds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir

from lepton_cli.data.dataset import Dataset, Slice
from lepton_cli.probe.distances import Closeness, Reference
from lepton_cli.quantize import details, stored
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.details import Guard, GuardTrial
from lepton_cli.quantize.effort import EFFORTS, Effort
from lepton_cli.quantize.prepare import LEAST_SHARED
from lepton_cli.step import Context

NORMAL = EFFORTS["normal"]
#: Outputs further from the float model's than this are repaired, or at least spoken of.
FLOOR_DB = 20.0
#: One calibration sample in so many is kept apart to judge by, where there are at least `FEWEST` of them.
EVERY, FEWEST = 4, 16
#: What is fitted to samples may be this much closer on them than on others (4.5 dB were seen): from so far above the
#: floor on, nothing is fitted anew to find out.
OPTIMISM_DB = 6.0
#: Share of the layers whose return costs enough of the gain to be spoken of (MobileNetV2: 2.8 times became 1.9).
MANY = 0.1
#: Noise without end, as good as: of an output that is constant in float it is beyond what numbers hold.
LOST_DB = -1000.0
#: Where what is assured is so much less than what was seen, the samples seen say little about others.
UNLIKE_DB = 3.0


@dataclasses.dataclass(frozen=True)
class GroupSensitivity:
    """SQNR of the outputs when only these neighbouring anchors are quantized; lower is worse."""

    nodes: tuple[str, ...]
    op: str
    sqnr_db: float


def split(context: Context) -> tuple[Context, Dataset | None]:
    """The calibration data cut in two: a context with what to fit to, and what to judge by, which nothing is fitted to.

    What is fitted to samples comes out closer on them than on any others. `None`: there are too few to keep some apart,
    and what is fitted is judged by the same.
    """
    data = context.calibration
    if data is None or data.count // (data.fixed_batch or 1) < FEWEST:
        return context, None
    return dataclasses.replace(context, calibration=Slice(data, EVERY, rest=True)), Slice(data, EVERY)


def too_few(data: Dataset) -> str:
    """A warning for whoever gives too few samples to `split`."""
    return (
        f"`{data.name}` has {data.count} samples, too few to keep some apart: how close the outputs come is known of "
        f"these only, and of others perhaps not ({FEWEST} are needed)"
    )


def sensitivity(
    model: ir.Model,
    choice: Choice,
    write: Callable[[Choice], ir.Model],
    fidelity: Reference,
    context: Context,
    effort: Effort = NORMAL,
) -> list[GroupSensitivity]:
    """Every anchor (or group of neighbours) quantized alone, worst first."""
    anchors = _bound([node for node in model.graph.all_nodes() if node.name in choice.anchors])
    size = -(-len(anchors) // effort.groups)
    groups = [
        [node for members in anchors[start : start + size] for node in members]
        for start in range(0, len(anchors), size)
    ]
    found = []
    with context.progress.stage("sensitivity", len(groups)) as stage:
        for group in groups:
            names = tuple(node.name or "" for node in group)
            made = write(choice.without(choice.anchors - set(names), "", model))
            found.append(GroupSensitivity(names, group[0].op_type, fidelity.sqnr(made)))
            stage.advance()
    return sorted(found, key=lambda entry: entry.sqnr_db)


def _bound(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """The nodes, those together that read one weight: with some of them in float it would be stored in both forms."""
    groups: list[tuple[set[ir.Value], list[ir.Node]]] = []
    for node in nodes:
        weights, members = set(_weights(node)), [node]
        for group in [group for group in groups if group[0] & weights]:
            groups.remove(group)
            weights, members = group[0] | weights, [*group[1], *members]
        groups.append((weights, members))
    return [members for _, members in groups]


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    for value in node.inputs:
        source, _ = stored.behind(value)
        if source is not None and source.const_value is not None and source.const_value.size >= LEAST_SHARED:
            yield source


def table(
    ranking: list[GroupSensitivity], rates: Mapping[str, tuple[float | None, float | None]]
) -> tuple[details.Sensitivity, ...]:
    """The ranking as the report draws it; `rates`: GMAC/s in int8 and in float of nodes that were timed."""
    found = []
    for one in ranking:
        int8, plain = rates.get(one.nodes[0], (None, None)) if len(one.nodes) == 1 else (None, None)
        name, ratio = ", ".join(one.nodes), round(one.sqnr_db, 2)
        found.append(details.Sensitivity(node=name, op=one.op, sqnr_db=ratio, int8_gmacs=int8, float_gmacs=plain))
    return tuple(found)


def hold(
    model: ir.Model,
    choice: Choice,
    write: Callable[[Choice], ir.Model],
    ranking: Callable[[], Sequence[GroupSensitivity]],
    score: Callable[[ir.Model], float],
    max_drop: float,
    *,
    reference: float | None = None,
    first: tuple[ir.Model, float] | None = None,
    guess: Callable[[Sequence[GroupSensitivity], float], int] = lambda ranked, drop: 1,
    reason: str = "returned to float by accuracy_guard",
    wide_first: bool = False,
    effort: Effort = NORMAL,
) -> tuple[Choice, ir.Model, Guard]:
    """Return groups to float, worst first, until at most `max_drop` is lost: all of them, and `model` itself, at last.

    `ranking` is asked for where the limit does not hold at once. What is known is not scored again: `reference`, the
    model's own score, and `first`, what the choice as it is makes of it with its score.

    The least number of them that holds is looked for from `guess` on (of the ranking and what is lost without any), in
    steps that double, and then by halves; a few of the mildest are quantized again where that costs nothing.
    `wide_first`: activations of 16 bits are tried before float.
    """
    reference = score(model) if reference is None else reference
    trials: list[GuardTrial] = []

    def attempt(dropped: Sequence[GroupSensitivity], wide: bool = False) -> tuple[bool, Choice, ir.Model]:
        names = [name for entry in dropped for name in entry.nodes]
        smaller = choice.widened(names) if wide else choice.without(names, reason, model)
        if first is not None and not names:
            made, drop = first[0], reference - first[1]
        else:
            made = write(smaller) if smaller.anchors else model
            drop = reference - score(made) if smaller.anchors else 0.0
        groups, said = len(dropped), round(drop, 5) if math.isfinite(drop) else None
        trials.append(GuardTrial(in_float=None if wide else groups, int16=groups if wide else None, drop=said))
        return drop <= max_drop, smaller, made

    failed, count, step, wide = 0, 0, 1, False
    holds, best, made = attempt([])
    ranked = [] if holds else ranking()
    if ranked:
        count = min(max(guess(ranked, math.inf if trials[0].drop is None else trials[0].drop), 1), len(ranked))
    while not holds and failed < len(ranked):
        wide = wide_first
        holds, best, made = attempt(ranked[:count], wide)
        if wide and not holds:
            wide = False
            holds, best, made = attempt(ranked[:count])
        if not holds:
            failed, count, step = count, min(count + step, len(ranked)), 2 * step
    while holds and count - failed > 1:
        middle = max(count - step, (failed + count) // 2)
        again, choice_again, made_again = attempt(ranked[:middle], wide)
        if again:
            count, step, best, made = middle, 2 * step, choice_again, made_again
        else:
            failed = middle
    dropped = ranked[:count]
    mildest = ranked[: count - 1][::-1] if holds and count else []
    for entry in mildest[: effort.second_tries]:
        fewer = [other for other in dropped if other is not entry]
        again, choice_again, made_again = attempt(fewer, wide)
        if again:
            dropped, best, made = fewer, choice_again, made_again
    return (
        best,
        made,
        Guard(max_drop=float(max_drop), reference=round(reference, 5), holds=holds, trials=tuple(trials)),
    )


def hold_fidelity(
    model: ir.Model,
    choice: Choice,
    write: Callable[[Choice], ir.Model],
    ranking: Callable[[], Sequence[GroupSensitivity]],
    fidelity: Reference,
    form: str,
    effort: Effort = NORMAL,
    first: tuple[ir.Model, Closeness] | None = None,
) -> tuple[Choice, ir.Model, Guard]:
    """`hold` until other samples too have `FLOOR_DB` in all parts of the outputs, with 95 % confidence.

    A trial that is hopeless by the first few samples is not run on the others.
    """

    def capped(came: Closeness) -> float:
        return min(came.assured_db, FLOOR_DB)

    return hold(
        model,
        choice,
        write,
        lambda: [group for group in ranking() if choice.anchors & set(group.nodes)],
        lambda candidate: capped(fidelity.closeness(candidate, effort.few, FLOOR_DB)),
        max_drop=0.0,
        reference=FLOOR_DB,
        first=None if first is None else (first[0], capped(first[1])),
        guess=_as_noise,
        reason=f"returned to float: with it in {form} a part of the outputs may come out below {FLOOR_DB:.0f} dB",
        effort=effort,
    )


def _as_noise(ranked: Sequence[GroupSensitivity], drop: float) -> int:
    """How many of the groups go back, worst first, if their noise adds up to that of all, `drop` below `FLOOR_DB`."""
    noise = [math.inf if group.sqnr_db < LOST_DB else 10 ** (-group.sqnr_db / 10) for group in ranked]
    endless = sum(map(math.isinf, noise))
    if endless or math.isinf(drop):
        return endless
    allowed = sum(noise) * 10 ** (-drop / 10)
    left = itertools.accumulate(reversed(noise))
    return len(noise) - sum(some <= allowed for some in left)


def many_returned(before: Choice, after: Choice, came: Closeness, what: str, form: str) -> tuple[str, ...]:
    """A warning where many of the `what` are float again. `came`: how the outputs were with all of them in `form`."""
    whole, returned = len(before.anchors), len(before.anchors) - len(after.anchors)
    if returned <= MANY * whole:
        return ()
    return (
        f"all in {form}, the worst part of the outputs came out at {came.sqnr_db:.1f} dB{_at_worst(came)}: {returned} "
        f"of {whole} {what} are float again, to hold {FLOOR_DB:.0f} dB (`fidelity_guard: false` keeps them in {form})",
    )


def _at_worst(came: Closeness) -> str:
    """What samples that nobody has seen may have, where that is why."""
    known = came.sqnr_db >= FLOOR_DB and math.isfinite(came.assured_db)
    return f" (others like these samples may have {came.assured_db:.1f})" if known else ""


def told(came: Closeness) -> dict[str, float]:
    """What the details of a step say about how close it came."""
    return {"sqnr_db": round(came.sqnr_db, 2), "assured_db": round(came.assured_db, 2)}


def far(came: Closeness, context: Context) -> tuple[str, ...]:
    """A warning where the outputs are further than `FLOOR_DB` from those of the model before the step.

    Or where they are near it, and of other samples so much less is assured that these say little about them.
    """
    sqnr_db = came.sqnr_db
    if sqnr_db >= FLOOR_DB:
        near = came.assured_db < FLOOR_DB + OPTIMISM_DB and math.isfinite(came.assured_db)
        if not near or sqnr_db - came.assured_db < UNLIKE_DB:
            return ()
        return (
            f"the samples are unlike each other: the worst part of the outputs has {sqnr_db:.1f} dB on these, and of "
            f"others no more than {came.assured_db:.1f} dB is assured (more calibration samples tell more)",
        )
    where = "made-up inputs, which may say little: give calibration data" if context.calibration is None else "the data"
    how = f"comes out at {sqnr_db:.1f} dB" if math.isfinite(sqnr_db) else "is not usable"
    return (f"the worst part of the outputs {how} on {where}",)
