"""Limits that no model can hold, by arithmetic alone, and those that a search cannot judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lepton_cli import gates, metrics
from lepton_cli.errors import RecipeError
from lepton_cli.recipe.schema import Gate
from lepton_cli.report import facts, words
from lepton_cli.report.facts import Fact
from lepton_cli.report.trial import Trial
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.readings import UPPER, binding


def check_contradictions(
    limits: Sequence[Gate],
    judge: Judge,
    original: Trial,
    floors: Mapping[str, float] | None = None,
    *,
    at: tuple[str, ...] = ("tune", "limits"),
) -> None:
    """Raise RecipeError for two limits that no model can hold together, for one that none can hold, and for one that
    compares with what there is not.

    `original`: the original, measured. `floors`: metric -> the least that any candidate can have of it, in the metric's
    own unit (`size.file` in bytes). `at`: where in the recipe the limits stand.
    """
    report = judge.report(original)
    for index, gate in enumerate(limits):
        _check_comparable(gate, facts.find(report, gate.metric, **gate.scope), (*at, index))
    bounds: dict[tuple[object, ...], dict[bool, tuple[float, int]]] = {}
    for index, gate in binding(limits):
        for fact in facts.find(report, gate.metric, **gate.scope):
            key = (gate.metric, *sorted(fact.scope.items()))
            upper, bound = bound_of(gate, fact.value.value)
            _check_reachable(gate, upper, bound, (floors or {}).get(gate.metric, -math.inf), (*at, index))
            known = bounds.setdefault(key, {}).get(upper)
            if known is None or (bound < known[0] if upper else bound > known[0]):
                bounds[key][upper] = (bound, index)
    for sides in bounds.values():
        if True in sides and False in sides and sides[False][0] > sides[True][0]:
            low, high = limits[sides[False][1]], limits[sides[True][1]]
            raise RecipeError(
                "tune.limits-contradict",
                f"no model can hold both `{low.comparison} {low.limit}` and `{high.comparison} {high.limit}` "
                f"of `{low.metric}`",
                cause=_why(low, high, sides[False][0], sides[True][0]),
                hint="widen one of the two",
                option=(*at, sides[True][1]),
            )


def _check_comparable(gate: Gate, found: Sequence[Fact], option: tuple[str | int, ...]) -> None:
    if gate.against == "baseline":
        raise RecipeError(
            "tune.no-baseline",
            f"a search compares with the original: the limit on `{gate.metric}` is against a baseline",
            hint="leave `against` out, and judge the result with `lepton gate --baseline`",
            option=option,
        )
    if found and all(gates.compared(gate.comparison, fact) is None for fact in found):
        raise RecipeError(
            "tune.no-reference",
            f"`{gate.comparison}` compares `{gate.metric}` with the original's, which has none",
            hint="use `min`" if found[0].about.better == "higher" else "use `max`",
            option=option,
        )


def _check_reachable(gate: Gate, upper: bool, bound: float, floor: float, option: tuple[str | int, ...]) -> None:
    metric = metrics.of(gate.metric)
    most = 1.0 if metric.kind in ("share", "coefficient") and metric.name != "accuracy.python" else math.inf
    # A ratio times the original's value may end a last bit beyond.
    near = 1e-9 * max(1.0, abs(bound))
    if not (bound < floor - near if upper else bound > most + near):
        return
    end = words.exact(floor if upper else most, metric.kind)
    asked = words.exact(bound, metric.kind)
    raise RecipeError(
        "tune.limit-impossible",
        (f"no candidate can have less `{metric.name}` than {end}" if upper else f"no `{metric.name}` is above {end}")
        + f", and `{gate.comparison} {gate.limit}` asks for at {'most' if upper else 'least'} {asked}",
        hint="raise the limit, or widen `tune.space`" if upper else "lower the limit",
        option=option,
    )


def bound_of(gate: Gate, original: float) -> tuple[bool, float]:
    """Whether the gate bounds from above, and the bound in the metric's own unit."""
    limit = float(gate.limit)
    match gate.comparison:
        case "max_ratio" | "min_ratio":
            bound = limit * original
        case "max_increase":
            bound = original + limit
        case "max_drop":
            # A drop bounds from below: the value must stay above.
            return False, original - limit
        case _:
            bound = limit
    return gate.comparison in UPPER, bound


def _why(low: Gate, high: Gate, least: float, most: float) -> str:
    kind = metrics.of(low.metric).kind
    return f"with this original they mean at least {words.value(least, kind)} and at most {words.value(most, kind)}"
