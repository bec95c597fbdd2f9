"""All models of a latency comparison on one provider at one batch size: checked once, then opened fresh each round."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np

from lepton_cli.errors import MeasurementError, ModelError
from lepton_cli.measure.arms import InputNames, Payload, feeds_for, misfit
from lepton_cli.runtime import CPU, Arrays, Session, provider_name

Call = Callable[[], object]


class Unsupported(MeasurementError):
    """The reference itself cannot run this batch size."""


@dataclasses.dataclass
class Open:
    """Warm sessions: what to call, and about how long a call takes."""

    calls: list[Call]
    device: list[Call | None]
    seconds: list[float]


@dataclasses.dataclass
class Case:
    """All arms at one provider and batch size."""

    arms: Mapping[str, Payload]
    provider: str
    batch: int
    threads: int
    feeds: Arrays
    input_names: InputNames
    placement: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    fallback: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """One run of every arm. Raises ProviderError, Unsupported for the reference, MeasurementError for others."""
        provider_name(self.provider)
        for position, (name, payload) in enumerate(self.arms.items()):
            session = self.session(payload)
            feeds = feeds_for(session, self.feeds, self.input_names.get(name))
            reason = misfit(session.inputs, feeds)
            if not reason:
                try:
                    session.run(feeds)
                except ModelError as error:
                    reason = error.cause or error.message
            if reason and position == 0:
                raise Unsupported("measure.batch", reason)
            if reason:
                raise MeasurementError(
                    "measure.run",
                    f"`{name}` cannot run batch {self.batch} on {self.provider}, which the original can",
                    cause=reason,
                )
            self.placement[name] = session.placement()
            self.fallback[name] = () if session.provider_name == CPU else session.fallback()

    def session(self, payload: Payload) -> Session:
        return Session(payload, provider=self.provider, threads=self.threads)

    def open(self, order: Sequence[int]) -> Open:
        """Fresh, warm sessions of all arms, created in the given order."""
        names = list(self.arms)
        calls: dict[int, Call] = {}
        device: dict[int, Call | None] = {}
        seconds: dict[int, float] = {}
        for index in order:
            session = self.session(self.arms[names[index]])
            feeds = feeds_for(session, self.feeds, self.input_names.get(names[index]))
            calls[index] = session.caller(feeds)
            device[index] = session.device_caller(feeds)
            seconds[index] = warm_up(calls[index])
        arms = range(len(names))
        return Open([calls[i] for i in arms], [device[i] for i in arms], [seconds[i] for i in arms])


def warm_up(call: Call, limit: float = 0.5) -> float:
    """Run until three runs in a row are no longer faster than the ones before, or `limit` seconds have passed."""
    best, started = math.inf, perf_counter()
    while True:
        times = []
        for _ in range(3):
            before = perf_counter()
            call()
            times.append(perf_counter() - before)
            if perf_counter() - started > limit:
                return min(best, *times)
        typical = float(np.median(times))
        if typical > 0.97 * best:
            return min(best, typical)
        best = typical
