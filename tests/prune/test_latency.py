"""The latency asked for is the latency measured, whatever the tables say; no test here looks at a clock's result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.model import io
from lepton_cli.prune import allocate, channels, latency, plan
from lepton_cli.prune.allocate import Table
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.spec import PruneChannels
from tests.coupling.test_shortcuts import network
from tests.prune.context import context, images, redundant


class Linear:
    """Time as a sum over the columns."""

    def __init__(self, *weights: float) -> None:
        self.weights = np.array(weights)

    def __call__(self, widths: Widths) -> float:
        return float(self.weights @ widths)

    def table(self, widths: Widths, group: int, levels: Widths) -> np.ndarray:
        return self(widths) + self.weights[group] * (levels - widths[group])


def tables() -> list[Table]:
    levels = np.array([10, 8, 6, 4, 2, 0])
    return [Table(levels, scale * (10.0 - levels) ** 2) for scale in (1.0, 2.0, 5.0)]


@pytest.mark.parametrize("off", [0.8, 1.0, 1.1])
def test_wrong_tables_are_corrected_by_whole_model_times(off: float) -> None:
    cost, offered = Linear(0.03, 0.03, 0.04), tables()
    asked: list[Widths] = []

    def measure(widths: Widths) -> float:
        asked.append(widths)
        return 1 - off * (1 - cost(widths))

    found = latency.search(0.75, offered, cost, [], "global", measure)
    assert found.widths is not None
    assert found.ratio <= 0.75 * (1 + latency.CLOSE)
    assert found.ratio == pytest.approx(0.75, abs=0.08)
    assert len(asked) <= latency.TRIES


def test_other_limits_hold_beside_the_time() -> None:
    cost, offered = Linear(0.03, 0.03, 0.04), tables()
    size = Linear(0.0, 8.0, 2.0)
    found = latency.search(0.8, offered, cost, [(size, 60.0)], "global", cost)
    assert found.widths is not None
    assert cost(found.widths) <= 0.8 * (1 + latency.CLOSE)
    assert size(found.widths) <= 60
    assert size(allocate.choose(offered, allocate.Limits([(cost, 0.8)]), "global")) > 60


def test_what_cannot_be_reached_says_how_far_it_goes() -> None:
    cost, offered = Linear(0.03, 0.03, 0.04), tables()
    found = latency.search(0.1, offered, cost, [], "global", lambda widths: 0.5 + 0.5 * cost(widths))
    assert found.widths is None
    assert found.ratio == pytest.approx(0.5)


def test_narrower_can_be_slower() -> None:
    class Blocks(Linear):
        def table(self, widths: Widths, group: int, levels: Widths) -> np.ndarray:
            return np.array([self(np.where(np.arange(3) == group, level, widths)) for level in levels])

        def __call__(self, widths: Widths) -> float:
            return float(self.weights @ np.where(widths % 4 == 0, widths, widths + 3))

    cost, offered = Blocks(0.03, 0.03, 0.04), tables()
    assert allocate.fastest(offered, cost).tolist() == [0, 0, 0]
    widths = allocate.best(offered, cost, 0.8)
    assert cost(widths) <= 0.8
    assert not (widths == 2).any()


def params(**options: object) -> PruneChannels:
    return PruneChannels.model_validate({"step": "prune.channels", "target": {"latency": "100 %"}, **options})


def test_a_stored_choice_gives_the_same_bytes_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = redundant(), images(64)
    cached = context(model, tmp_path, data, cache=tmp_path)
    found = latency._decide

    def decide(plan: object, *rest: object) -> dict[str, object]:
        stored = found(plan, *rest)  # type: ignore[arg-type]
        branch = rest[-2][0]  # type: ignore[index]
        return {**stored, "dropped": [branch.add]}

    monkeypatch.setattr(latency, "_decide", decide)
    first = channels.prune(model, params(), cached)
    monkeypatch.delattr(latency, "_decide")
    second = channels.prune(model, params(), cached)
    assert io.to_bytes(first.model) == io.to_bytes(second.model)
    (branch,) = first.details["branches"]
    rows = {row["node"]: row for row in first.details["widths"]}
    assert all(rows[node]["after"] == 0 for node in branch["nodes"] if node in rows)
    assert {d.action for d in first.decisions if d.node in branch["nodes"]} == {"dropped"}
    assert "1 branch" in first.summary


def test_plan_says_how_many_branches_could_go(tmp_path: Path) -> None:
    model = redundant()
    outcome = channels.prune(model, params(), context(model, tmp_path, images(4), dry=True))
    assert "2 residual branches can go as a whole" in outcome.summary


def test_branches_stay_where_the_options_say_so(tmp_path: Path) -> None:
    found = plan.analysed(redundant(), params(), {"x": (2, 3, 8, 8)})
    data = context(redundant(), tmp_path, images(4))
    both = latency.droppable(found, params(), data)
    assert len(both) == 2
    assert not latency.droppable(found, params(drop_branches=False), data)
    assert not latency.droppable(found, params(scope="layer"), data)
    assert not latency.droppable(found, params(recover=[]), data)
    assert not latency.droppable(found, params(), context(redundant(), tmp_path, check=images(4)))
    assert latency.droppable(found, params(exclude=[both[0].nodes[-1]]), data) == both[1:]


def test_shortcuts_are_rewritten_for_latency_only() -> None:
    model, shape = network(), {"x": (2, 3, 8, 8)}
    assert plan.analysed(model, params(), shape).rewritten == ("Pad_4",)
    assert not plan.analysed(model, params(exclude=["Pad*"]), shape).rewritten
    assert not plan.analysed(model, PruneChannels(step="prune.channels"), shape).rewritten


def test_what_is_timed_decides_what_is_remembered(tmp_path: Path) -> None:
    model, data, other = redundant(), images(8), images(8)
    other.fingerprint = "1"
    first, second = (
        latency._timed_on(params(), context(model, tmp_path, data, check=check)) for check in (data, other)
    )
    assert first != second
