"""A made-up network of one group of channels, whose figures and measurements follow closed forms."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lepton_cli.prune.prospects import Prospect
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.report.trial import Trial
from lepton_cli.tune.bench import Bench
from lepton_cli.tune.candidate import Candidate, Point
from lepton_cli.tune.journal import Journal
from lepton_cli.tune.known import Bounds, Figures, Proposal
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.search import Search
from lepton_cli.tune.space import SearchSpace
from lepton_cli.tune.yardsticks import yardsticks
from tests.tune.builders import accuracy, latency, size, trial

CHANNELS = 1000
#: Share of the channels that pruning leaves at least.
LEAST = 0.05


@dataclasses.dataclass
class Network:
    """`worse`: how much pruning costs; `off`: how much slower and larger things are than tables say."""

    worse: float = 1.0
    off: float = 1.0
    noise: float = 0.0
    #: Factor on the time of what prefers speed, which no draft knows.
    hurried: float = 1.0
    bits: dict[str, float] = dataclasses.field(default_factory=lambda: {"float": 1.0, "int8": 0.265})
    speed: dict[str, float] = dataclasses.field(default_factory=lambda: {"float": 1.0, "int8": 0.45})
    lost: dict[str, float] = dataclasses.field(default_factory=lambda: {"float": 0.0, "int8": 0.002})

    def loss(self, kept: float, importance: object = "hessian") -> float:
        """What tables say is lost."""
        return 0.15 * (1 / kept - 1) ** 1.2 * (1.0 if importance == "hessian" else 1.3)

    def drop(self, kept: float, point: Point) -> float:
        """Accuracy that is lost, as a share of 1."""
        healed = 0.3 if point.get("distill") and kept < 1 else 1.0
        pruned = 0.3 * self.loss(kept, point["importance"]) * self.worse * healed
        drop = self.lost[str(point["precision"])] + pruned
        drop -= 0.001 if point["calibration"] == "percentile" else 0
        wave = math.sin(1e4 * drop + 7 * kept)  # the same candidate measures the same
        return min(drop + self.noise * wave, 0.9)

    def bytes(self, kept: float, precision: object) -> float:
        return self.bits[str(precision)] * kept + 0.01

    def time(self, kept: float, precision: object, multiple: object = None) -> float:
        whole = 1.0 if multiple is None or kept == 1 else 1.05
        return self.speed[str(precision)] * (0.15 + 0.85 * kept) * whole


class MadeUp:
    """What can be told of the network before a trial."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.drafts: dict[tuple[object, ...], Figures] = {}

    def figures(self, proposal: Proposal) -> Figures:
        off = self.network.off if self._corrected(proposal.point) else 1.0
        return self.drafts.get(proposal.key) or dataclasses.replace(self._figures(proposal, off), drafted=False)

    def _figures(self, proposal: Proposal, off: float) -> Figures:
        point, kept = proposal.point, share(proposal.prospect)
        pruned = proposal.prospect is not None
        net, precision = self.network, point["precision"]
        factor = off if pruned else 1.0
        return Figures(
            bytes=net.bytes(kept, precision) * factor,
            parameters=kept,
            macs=kept,
            time=net.time(kept, precision, point["round_to"]) * factor,
            loss=0.0 if proposal.prospect is None else proposal.prospect.loss,
            told=pruned,
        )

    def draft(self, proposal: Proposal) -> str:
        found = self._figures(proposal, self.network.off)
        self.drafts[proposal.key] = dataclasses.replace(found, drafted=True)
        return ""

    def draft_failed(self, proposal: Proposal) -> bool:
        return False

    def floor(self, point: Point, price: str) -> float | None:
        return self._price(point, price, LEAST)

    def _price(self, point: Point, price: str, kept: float) -> float:
        if price == "bytes":
            return self.network.bytes(kept, point["precision"])
        return self.network.time(kept, point["precision"], point["round_to"]) if price == "time" else kept

    def widths(self, point: Point, bounds: Bounds) -> Prospect | None:
        step = 40 if point["round_to"] is None else 1
        most = dataclasses.asdict(bounds)
        off = self.network.off if self._corrected(point) else 1.0

        def holds(width: int) -> bool:
            return all(self._price(point, name, width / CHANNELS) * off <= bound for name, bound in most.items())

        if all(self._price(point, name, 1.0) <= bound for name, bound in most.items()):
            return None
        offered = range(int(LEAST * CHANNELS) // step * step + step, CHANNELS, step)
        # Costs rise with the width: the first that is too dear ends what holds.
        at = bisect.bisect_left(offered, True, key=lambda width: not holds(width))
        if at == 0:
            return None
        kept = offered[at - 1] / CHANNELS
        return Prospect({"g": offered[at - 1]}, (), self.network.loss(kept, point["importance"]), kept, kept)

    def _corrected(self, point: Point) -> bool:
        return any(key[0] == point["precision"] and key[-1] is not None for key in self.drafts)


def share(prospect: Prospect | None) -> float:
    return 1.0 if prospect is None else prospect.widths["g"] / CHANNELS


def measured(candidate: Candidate, judge: Judge, network: Network, half: float = 0.003) -> Trial:
    """The trial of a candidate."""
    point: dict[str, Any] = dict(candidate.point)
    pruned = next((step for step in candidate.steps if isinstance(step, PruneChannels)), None)
    kept = 1.0 if pruned is None or pruned.widths is None else pruned.widths["g"] / CHANNELS
    off = network.off if pruned is not None else 1.0
    hurried = network.hurried if point["prefer"] == "speed" else 1.0
    made = trial(
        candidate.name,
        accuracy=accuracy(network.drop(kept, point), half=half),
        latency=latency(network.time(kept, point["precision"], point["round_to"]) * off * hurried),
        size=size(int(1e6 * network.bytes(kept, point["precision"]) * off)),
        point=point,
        origin=candidate.origin,
        why=candidate.why,
        forecast=candidate.forecast,
        seconds=100.0 if point.get("distill") and pruned else 10.0,
    )
    made = made.model_copy(update={"steps": tuple(candidate.plain_steps())})
    breaches = judge.breaches(made)
    return made.model_copy(update={"reason": breaches[0].text}) if breaches else made


def search(
    folder: Path, judge: Judge, space: SearchSpace, network: Network, most: int | None = 60, seconds: float = 1e6
) -> Search:
    """A search that has not begun."""
    bench = Bench(
        Journal(folder, "s"), judge, "s", lambda one: measured(one, judge, network), seconds, most, "cpu", usual=10.0
    )
    original = trial("original", accuracy=accuracy(), latency=latency(1.0), size=size(int(1e6)))
    return Search(space, bench, MadeUp(network), yardsticks(judge, original))


def optimum(
    space: SearchSpace,
    network: Network,
    holds: Callable[[float, float, float], bool],
    goal: Callable[[float, float, float], float],
) -> float:
    """The best goal of any widths and choices that hold the limits; both of (drop, bytes, time)."""
    values = []
    for precision, calibration, multiple in itertools.product(
        space.dimensions["precision"], space.dimensions["calibration"], space.dimensions["round_to"]
    ):
        point = space.point({"precision": precision, "calibration": calibration, "round_to": multiple}, pruned=True)
        for width in range(int(LEAST * CHANNELS), CHANNELS + 1):
            if multiple is None and width % 40:
                continue
            kept = width / CHANNELS
            off = network.off if width < CHANNELS else 1.0
            figures = (
                network.drop(kept, point),
                network.bytes(kept, precision) * off,
                network.time(kept, precision, multiple) * off,
            )
            if holds(*figures):
                values.append(goal(*figures))
    return min(values)
