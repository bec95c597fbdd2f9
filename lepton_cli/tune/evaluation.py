"""What the evaluation data can tell about limits and goal: nothing where all samples are alike, little where few."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lepton_cli.data.dataset import Dataset
from lepton_cli.errors import RecipeError
from lepton_cli.measure import statistics, stream
from lepton_cli.measure.arms import Payload
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.recipe.schema import Gate
from lepton_cli.report import facts, words
from lepton_cli.report.facts import Fact
from lepton_cli.report.trial import Trial
from lepton_cli.runtime import Session
from lepton_cli.tune.alike import ORIGINAL, Alike
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.readings import binding

#: Samples, as a share of all, that are right in one of two models alone: assumed where nothing bounds them further.
DISCORDANT = 0.02

#: A place in the recipe.
Option = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The samples that candidates are judged on, and the original that runs on them."""

    data: Dataset
    original: Payload | Session
    #: What is measured; nothing where that follows from the labels.
    specs: Sequence[AccuracySpec]
    threads: int

    def check(self, judge: Judge, original: Trial, *, at: Option, goal_at: Option) -> list[str]:
        """What to warn of. Raises RecipeError for a limit or goal on quality about which these samples tell nothing.

        `original`: the original, measured on all of them. `at`, `goal_at`: where in the recipe limits and goal stand.
        """
        report = judge.report(original)
        limits = [(gate, (*at, index)) for index, gate in binding(judge.limits)]
        asked = [(option, facts.find(report, gate.metric, **gate.scope)) for gate, option in limits]
        asked.append((goal_at, facts.find(report, judge.goal.metric, **judge.goal.scope)[:1]))
        asked = [(option, found) for option, found in asked if found and found[0].about.quality]
        alike = self._alike([fact for _, found in asked for fact in found])
        warnings = []
        known = dict(asked)
        for gate, option in limits:
            told = [fact for fact in known.get(option, ()) if alike[_key(fact)].counts]
            warnings += [said for fact in told if (said := _few(gate, fact, option))]
        for option, found in asked:
            reasons = [alike[_key(fact)].reason(fact.n or 0) for fact in found]
            if all(reasons):
                raise RecipeError(
                    "tune.metric-constant",
                    f"`{found[0].metric}` tells nothing on the evaluation data: {reasons[0]}",
                    hint="evaluate on samples that differ, or choose another metric",
                    option=option,
                )
        return warnings

    def _alike(self, found: Sequence[Fact]) -> dict[tuple[str, str], Alike]:
        """By metric and output; no more batches are run than it takes to see two samples that differ."""
        asked = {_key(one): Alike(one.about, _key(one)[1], self.specs, self.data.class_names) for one in found}
        if asked:
            for results in stream.run({ORIGINAL: self.original}, self.data, threads=self.threads):
                for one in asked.values():
                    one.add(results)
                if all(one.settled for one in asked.values()):
                    break
        return asked


def _key(fact: Fact) -> tuple[str, str]:
    return fact.metric, str(fact.scope.get("output", ""))


def _few(gate: Gate, fact: Fact, option: Option) -> str:
    """What to say where other samples may well judge otherwise. Raises RecipeError where a single sample decides."""
    allowed, samples = _allowed(gate, fact), fact.n
    if not allowed or not samples:
        return ""
    share = _discordant(allowed, fact)
    enough = max(math.ceil(1 / allowed - 1e-9), statistics.samples_to_tell(allowed, share))
    limit = f"`{gate.metric}: {gate.comparison} {gate.limit}`"
    each = f" of each {fact.about.row}" if fact.about.by_class else ""
    if 1 / samples > allowed * (1 + 1e-9):
        step = words.points(1 / samples, sign=False)
        raise RecipeError(
            "tune.too-few-samples",
            f"{words.plural(samples, 'sample')}{each} cannot tell {limit}: one more that is wrong is {step}",
            hint=f"evaluate on {enough:,} samples{each} or more: what is lost is then known to within the limit",
            option=option,
        )
    if samples >= enough:
        return ""
    width = words.points(statistics.paired_half_width(allowed, share, samples), sign=False)
    return (
        f"{limit}: with {samples:,} samples{each} what is lost is known to about {width} (95 %), no closer than the "
        f"limit; {enough:,} samples{each} would tell"
    )


def _allowed(gate: Gate, fact: Fact) -> float | None:
    """The share of the samples that may get wrong, where the limit says so; `None` where it does not."""
    match gate.comparison:
        case "max_drop":
            return float(gate.limit)
        case "min_ratio" if fact.reference is not None:
            return (1 - float(gate.limit)) * fact.reference.value
        case "min" if fact.about.source == "agreement":
            return 1 - float(gate.limit)
        case _:
            return None


def _discordant(allowed: float, fact: Fact) -> float:
    """The share that is right in one model alone, where as many are lost as the limit allows.

    Where c become right, allowed + c become wrong; and no more can become right than were wrong. In agreement none can.
    """
    wrong = 0.0 if fact.about.source == "agreement" else 1 - fact.value.low
    return max(allowed, min(DISCORDANT, allowed + 2 * wrong))
