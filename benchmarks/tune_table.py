"""What the files of `tune.py` say: each search against the best known, recipes by hand and blind samplers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from lepton_cli.tune import front

Json = dict[str, Any]

#: How far from the best known a goal still counts, within how many trials limits should be held first, and the share of
#: the time that a search may take for itself.
CLOSE, FIRST, OUTSIDE = 0.03, 4, 0.05
#: Two measurements of one model differ by this much: half the interval at which measuring a result stops.
NOISE = 0.02
SAMPLERS = ("random", "tpe", "gp")
#: Of the table of runs; `start and end`: seconds before the search and behind its last trial.
COLUMNS = (
    "problem",
    "seed",
    "arm",
    "minutes, of the CPU",
    "start and end",
    "held",
    "goal",
    "from best known",
    "trials",
    "first to hold",
    "outside trials",
    "failed, too large, twice",
    "area",
    "ended",
)


def hypervolume(points: Iterable[front.Tradeoff], reference: front.Tradeoff) -> float:
    """Area that the points dominate, both coordinates being better when lower, up to the reference.

    With the points of the front by rising x, each adds (x of the next, at last the reference's - x) * (y of the
    reference - y). Points that are not better than the reference in both add nothing.
    """
    inside = [point for point in points if point[0] < reference[0] and point[1] < reference[1]]
    right = [*(inside[index] for index in front.pareto(inside)), reference]
    return sum((end - x) * (reference[1] - y) for (x, y), (end, _) in itertools.pairwise(right))


def area(run: Json) -> float:
    """Area under the front of all trials that hold the limits: of the logarithm of the cost (as a share of the
    original's), so that twice as small is worth the same everywhere, and of the quality above its floor."""
    trials = [row for row in run["trials"] if row["held"] and row["cost"] is not None and row["spare"] is not None]
    return hypervolume([(math.log(row["cost"]), -row["spare"]) for row in trials], (0.0, 0.0))


def wasted(run: Json) -> dict[str, int]:
    """Trials that could teach only what is known without them.

    `failed`: their steps cannot be done; `size`: they break a limit that arithmetic decides; `twice`: they made what an
    earlier trial made.
    """
    found, seen = {"failed": 0, "size": 0, "twice": 0}, list[Any]()
    for row in run["trials"]:
        if row["reached"] == "failed":
            found["failed"] += row["begun"]
            continue
        if any(breach["source"] == "structure" for breach in row["breaches"]):
            found["size"] += 1
        elif row["made"] in seen:
            found["twice"] += 1
        seen.append(row["made"])
    return found


def first_held(run: Json) -> int | None:
    """Which trial was the first that held the limits, counted from 1."""
    return next((number for number, row in enumerate(run["trials"], 1) if row["held"]), None)


def outside(run: Json) -> float | None:
    """Share of the search, until its last trial ended, that was spent on no trial."""
    rows = [row for row in run["trials"] if row["elapsed"]]
    whole = max((row["elapsed"] for row in rows), default=0.0)
    return 1 - sum(row["seconds"] for row in rows) / whole if whole else None


def goal(run: Json) -> float | None:
    """The goal of a result that holds the limits, better when lower."""
    result = run["result"]
    found: float | None = result["goal"] if result and result["held"] else None
    return found


def gap(value: float | None, best: float | None) -> float | None:
    """How far a goal is from another one, relative to that; below 0 it is better."""
    return None if value is None or best is None else (value - best) / max(abs(best), 1e-12)


def table(runs: Sequence[Json]) -> str:
    """Every run in a row, then what the searches are held to, as Markdown."""
    order = ["tune", "hand", *SAMPLERS]
    runs = sorted(runs, key=lambda run: (run["problem"], run["seed"], order.index(run["arm"])))
    best = {name: _least(goal(run) for run in runs if run["problem"] == name) for name in {r["problem"] for r in runs}}
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [_line(run, best[run["problem"]]) for run in runs]
    return "\n".join([*lines, "", *_totals([run for run in runs if run["arm"] == "tune"], runs, best)])


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _line(run: Json, best: float | None) -> str:
    value, result = goal(run), run["result"]
    shown = "-" if not result or result["goal"] is None else f"{result['goal']:.4g}"
    cells = [
        run["problem"],
        run["seed"],
        run["arm"],
        f"{run['wall'] / 60:.1f}, {run['cpu'] / 60:.1f}",
        f"{run['wall'] - max((row['elapsed'] for row in run['trials']), default=0.0):.0f}",
        "yes" if value is not None else "no",
        shown if value is not None or shown == "-" else f"({shown})",
        _percent(gap(value, best)),
        len(run["trials"]),
        first_held(run) or "-",
        _percent(outside(run)),
        ", ".join(str(count) for count in wasted(run).values()),
        f"{area(run):.4g}",
        run["ended"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _totals(searches: Sequence[Json], runs: Sequence[Json], best: dict[str, float | None]) -> list[str]:
    """Only runs that can be compared count: problems whose limits anything held, opponents that were measured."""
    possible = [run for run in searches if best[run["problem"]] is not None]
    gaps = [gap(goal(run), best[run["problem"]]) for run in possible]
    firsts = [first_held(run) for run in possible]
    shares = [outside(run) or 0.0 for run in searches]
    hands = {run["problem"]: goal(run) for run in runs if run["arm"] == "hand"}
    hand = [_not_worse(goal(run), hands[run["problem"]]) for run in searches if run["problem"] in hands]
    larger = []
    for run in searches:
        others = [
            r for r in runs if r["arm"] in SAMPLERS and (r["problem"], r["seed"]) == (run["problem"], run["seed"])
        ]
        if others:
            larger.append(area(run) > max(map(area, others)))
    waste = sum(sum(wasted(run).values()) for run in searches)
    return [
        _total("limits held", [value is not None for value in gaps], "29 of 30"),
        _total(f"goal within {CLOSE:.0%} of the best known", [g is not None and g <= CLOSE for g in gaps], "24 of 30"),
        _total(f"limits held within {FIRST} trials", [at is not None and at <= FIRST for at in firsts], "24 of 30"),
        _total(f"not worse than the recipes by hand (within {NOISE:.0%})", hand, "all"),
        _total("larger area than every sampler", larger, "27 of 30"),
        _total(f"at most {OUTSIDE:.0%} of the time outside trials", [share <= OUTSIDE for share in shares], "all"),
        f"- trials spent on what is known: {waste} of {sum(len(run['trials']) for run in searches)} (wanted: 0)",
        *_forecasts([row for run in searches for row in run["trials"]]),
    ]


def _forecasts(trials: Sequence[Json]) -> list[str]:
    """Whether as much came as expected as should: within the ends 95 of 100, and limits held as often as was said."""
    inside: dict[str, list[bool]] = {}
    for source, found, low, high in (one for row in trials for one in row["foretold"]):
        inside.setdefault(source, []).append(low <= found <= high)
    squares = [(row["chance"] - row["held"]) ** 2 for row in trials if row["chance"] is not None and row["begun"]]
    if not squares:
        return []
    by_source = ", ".join(f"{source} {sum(some)} of {len(some)}" for source, some in sorted(inside.items()))
    score = sum(squares) / len(squares)
    return [
        f"- found within the 95% expected: {by_source or '-'}",
        f"- Brier score of the chance to hold the limits: {score:.3f} over {len(squares)} trials (always 50%: 0.250)",
    ]


def _not_worse(found: float | None, other: float | None) -> bool:
    between = gap(found, other)
    return other is None or (between is not None and between <= NOISE)


def _total(name: str, counted: Sequence[bool], wanted: str) -> str:
    return f"- {name}: {sum(counted)} of {len(counted)} (wanted: {wanted})"
