"""A trial: what was measured of one candidate, as far as it was worth measuring. One line of the journal."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from lepton_cli.measure.results import Accuracy, Costs, LatencyTable, Memory, Size

#: What a point of the search space holds by dimension.
Value = str | float | int | bool | None


class Band(BaseModel):
    """A number and the interval that 95 of 100 such numbers lie in."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    value: float
    low: float
    high: float


class Forecast(BaseModel):
    """What a search expected of a candidate before it was measured.

    `chance`: of holding all limits. `goal`: as the judge counts it, lower is better, times as ratios to the original.
    `limits`: what each limit looks at (a drop, a ratio, a value); `None` where nothing was expected.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    chance: float
    goal: Band | None = None
    limits: tuple[Band | None, ...] = ()


class Trial(BaseModel):
    """Measurements of one candidate. Keys a later version adds are left out, not errors."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    name: str
    origin: str = ""
    point: dict[str, Value] = {}
    #: As a recipe writes them, defaults left out.
    steps: tuple[dict[str, JsonValue], ...] = ()
    #: How far it went; `failed`: a step or a measurement broke.
    reached: Literal["failed", "size", "proxy", "accuracy", "latency"]
    #: `False`: left out for now, as its training takes longer than the search has left.
    begun: bool = True
    #: Why it ended there: the limit it breaks, or the error. Empty for what was measured to the end.
    reason: str = ""
    #: The code of the error that it ended with.
    code: str = ""
    #: Why the search chose it, and what it expected.
    why: str = ""
    forecast: Forecast | None = None
    size: Size | None = None
    #: On some samples when `reached` is `proxy`, else on all.
    accuracy: Accuracy | None = None
    latency: LatencyTable | None = None
    memory: Memory | None = None
    cost: Costs = None
    #: Latency is comparable on the same processor only.
    cpu: str = ""
    #: Seconds this trial took.
    seconds: float = 0.0
    #: Seconds into the search when it ended, runs before an interruption included; 0 for one from another report.
    elapsed: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether it was measured to the end."""
        return self.reached in ("accuracy", "latency") and not self.reason


def slim_size(size: Size) -> Size:
    """Without layers: they belong to the report of the best."""
    return size.model_copy(update={"layers": ()})


def slim_accuracy(accuracy: Accuracy) -> Accuracy:
    """Values, changes, fidelity and how the loss is spread alone."""
    return Accuracy(
        values=accuracy.values, changes=accuracy.changes, fidelity=accuracy.fidelity, spread=accuracy.spread
    )


def slim_latency(table: LatencyTable) -> LatencyTable:
    """Without raw times."""
    rows = tuple(row.model_copy(update={"times": (), "placement": {}}) for row in table.results)
    return table.model_copy(update={"results": rows, "warnings": ()})
