"""Latency: several models timed in turn, so that whatever else the machine does hits all of them alike.

A round creates fresh sessions (memory layout differs from one to the next), warms them up, then times pair after
pair in random order. Results within a round are alike, so intervals rest on the medians of the rounds.
"""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from lepton_cli.errors import LeptonError, MeasurementError, ModelError, ProviderError
from lepton_cli.measure import statistics
from lepton_cli.measure.arms import InputNames, Payload, feeds_for, misfit
from lepton_cli.measure.results import Latency, LatencyChange, LatencyTable, Skipped
from lepton_cli.measure.spec import LatencySpec, ProviderSpec
from lepton_cli.progress import Progress, Silent, Stage
from lepton_cli.runtime import CPU, Arrays, Session, provider_name, usable_threads

#: Rounds before precision may end a measurement, and the fewest that give an interval at all.
ROUNDS, FEWEST_ROUNDS = 10, 3
#: Share of the time limit that one round takes.
_ROUND_SHARE = 0.025
#: Sessions are recreated between rounds as long as that takes less than this share of the time.
_SETUP_SHARE = 0.4
#: Runs shorter than this are timed in blocks of this length: the clock and the call cost a microsecond.
_BLOCK = 100e-6
_DRAWN = 200

Call = Callable[[], object]
#: Seconds per run, shape (pairs, arms).
Times = NDArray[np.float64]


def compare(
    arms: Mapping[str, Payload],
    feeds_for_batch: Callable[[int], Arrays],
    spec: LatencySpec,
    *,
    progress: Progress | None = None,
    seed: int = 0,
    input_names: InputNames | None = None,
) -> LatencyTable:
    """Time all arms on every provider and batch size; the first arm is the reference of the changes.

    `feeds_for_batch` gives model inputs of a batch size. Providers that are optional and missing, and batch sizes
    that the reference cannot run, are listed as skipped. Raises ProviderError for a missing provider that is not
    optional, and MeasurementError when a model fails to run where the reference does, or nowhere.
    """
    progress = progress or Silent()
    results: list[Latency] = []
    changes: list[LatencyChange] = []
    skipped: list[Skipped] = []
    warnings: list[str] = []
    threads = spec.threads or usable_threads()
    if threads > usable_threads():
        warnings.append(f"{threads} threads were asked for but only {usable_threads()} cores are usable")
    for provider in spec.providers:
        failure: LeptonError | None = None
        found = len(results)
        for batch in spec.batch:
            label = f"latency {provider.name} batch {batch}"
            case = _Case(arms, provider.name, batch, threads, feeds_for_batch(batch), input_names or {})
            try:
                case.check()
            except ProviderError as error:
                if not provider.optional:
                    raise
                skipped.append(Skipped(what=f"latency {provider.name}", reason=_reason(error, provider)))
                break
            except _Unsupported as error:
                failure = error
                skipped.append(Skipped(what=label, reason=error.message))
                continue
            with progress.stage(label) as stage:
                rounds = _measure(case, spec, np.random.default_rng([seed, batch]), stage)
            results.extend(rounds.latencies())
            changes.extend(rounds.changes())
            warnings.extend(rounds.warnings(spec))
        if failure is not None and len(results) == found:
            raise MeasurementError(
                "measure.run", f"the model cannot be run on {provider.name}", cause=failure.message, hint=failure.hint
            )
    return LatencyTable(
        results=tuple(results), changes=tuple(changes), skipped=tuple(skipped), warnings=tuple(warnings)
    )


def _reason(error: LeptonError, provider: ProviderSpec) -> str:
    return f"{error.message}{f' ({error.cause})' if error.cause else ''}; `{provider.name}` is optional"


class _Unsupported(MeasurementError):
    """The reference itself cannot run this batch size."""


@dataclasses.dataclass
class _Case:
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
        """One run of every arm. Raises ProviderError, _Unsupported for the reference, MeasurementError for others."""
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
                raise _Unsupported("measure.batch", reason)
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

    def open(self, order: Sequence[int]) -> _Open:
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
            seconds[index] = _warm_up(calls[index])
        arms = range(len(names))
        return _Open([calls[i] for i in arms], [device[i] for i in arms], [seconds[i] for i in arms])


@dataclasses.dataclass
class _Open:
    """Warm sessions: what to call, and about how long a call takes."""

    calls: list[Call]
    device: list[Call | None]
    seconds: list[float]


def _warm_up(call: Call, limit: float = 0.5) -> float:
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


def _measure(case: _Case, spec: LatencySpec, generator: np.random.Generator, stage: Stage) -> _Rounds:
    """Rounds until the wanted precision or the time limit."""
    rounds = _Rounds(case)
    started, setup = perf_counter(), 0.0
    opened: _Open | None = None
    blocks: list[int] = []
    while True:
        if opened is None or setup <= _SETUP_SHARE * (perf_counter() - started):
            before = perf_counter()
            opened = None  # the old sessions go before new ones take their memory
            opened = case.open([int(i) for i in generator.permutation(len(case.arms))])
            setup += perf_counter() - before
            rounds.created += 1
        blocks = blocks or [
            max(1, math.ceil(_BLOCK / seconds)) if seconds < _BLOCK / 2 else 1 for seconds in opened.seconds
        ]
        times, device = _round(opened, blocks, generator, max(0.02, _ROUND_SHARE * spec.time))
        rounds.times.append(times)
        if device is not None:
            rounds.device.append(device)
        stage.advance(len(times))
        out_of_time = perf_counter() - started >= spec.time
        if len(rounds.times) >= (FEWEST_ROUNDS if out_of_time else ROUNDS) and (
            out_of_time or rounds.half_width() <= spec.precision
        ):
            return rounds


def _round(
    opened: _Open, blocks: Sequence[int], generator: np.random.Generator, seconds: float
) -> tuple[Times, Times | None]:
    """Pairs in random order for `seconds`, at least one; garbage is collected before, not during."""
    arms = len(opened.calls)
    with_device = all(call is not None for call in opened.device)
    host: list[list[float]] = []
    device: list[list[float]] = []
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        end = perf_counter() + seconds
        while not host or perf_counter() < end:
            order = generator.permutation(arms)
            row, device_row = [0.0] * arms, [0.0] * arms
            for index in order:
                row[index] = _time(opened.calls[index], blocks[index])
                call = opened.device[index]
                if with_device and call is not None:
                    device_row[index] = _time(call, blocks[index])
            host.append(row)
            device.append(device_row)
    finally:
        if enabled:
            gc.enable()
    return np.array(host), np.array(device) if with_device else None


def _time(call: Call, runs: int) -> float:
    """Seconds per run of a block of runs."""
    if runs == 1:
        before = perf_counter_ns()
        call()
        return (perf_counter_ns() - before) * 1e-9
    before = perf_counter_ns()
    for _ in range(runs):
        call()
    return (perf_counter_ns() - before) * 1e-9 / runs


class _Rounds:
    """What was timed, and the statistics of it."""

    def __init__(self, case: _Case) -> None:
        self.case = case
        self.times: list[Times] = []
        self.device: list[Times] = []
        self.created = 0

    def ratio(self, arm: int) -> statistics.Estimate:
        """Paired ratio of an arm to the reference: centre of the rounds' medians, on a log scale."""
        medians = [float(np.median(np.log(round_[:, arm] / round_[:, 0]))) for round_ in self.times]
        return _exp(statistics.centre(np.array(medians)))

    def absolute(self, arm: int) -> statistics.Estimate:
        """Median of all times of an arm; the interval is that of the rounds' medians."""
        spread = _exp(statistics.centre(np.array([np.log(np.median(round_[:, arm])) for round_ in self.times])))
        value = float(np.median(np.concatenate([round_[:, arm] for round_ in self.times])))
        return statistics.Estimate(value, min(value, spread.low), max(value, spread.high))

    def half_width(self) -> float:
        """Relative half-width of the widest ratio's interval; of the time itself when there is one arm only."""
        arms = len(self.case.arms)
        estimates = [self.ratio(arm) for arm in range(1, arms)] or [self.absolute(0)]
        return max((estimate.high - estimate.low) / 2 / estimate.value for estimate in estimates)

    def latencies(self) -> list[Latency]:
        """One result per arm."""
        case, results = self.case, []
        for arm, name in enumerate(case.arms):
            estimate = self.absolute(arm)
            times = np.concatenate([round_[:, arm] for round_ in self.times])
            device = np.concatenate([round_[:, arm] for round_ in self.device]) if self.device else None
            results.append(
                Latency(
                    variant=name,
                    provider=case.provider,
                    batch=case.batch,
                    threads=case.threads,
                    median=estimate.value,
                    low=estimate.low,
                    high=estimate.high,
                    p90=statistics.percentile(times, 0.9),
                    p99=statistics.percentile(times, 0.99),
                    n=len(times),
                    throughput=case.batch / estimate.value,
                    device_median=None if device is None else float(np.median(device)),
                    times=tuple(float(t) for t in times[:: max(1, math.ceil(len(times) / _DRAWN))]),
                    placement=case.placement[name],
                )
            )
        return results

    def changes(self) -> list[LatencyChange]:
        """One paired comparison per arm after the first."""
        case = self.case
        return [
            LatencyChange(
                provider=case.provider,
                batch=case.batch,
                threads=case.threads,
                original=self.absolute(0).value,
                compressed=self.absolute(arm).value,
                ratio=ratio.value,
                low=ratio.low,
                high=ratio.high,
                pairs=sum(len(round_) for round_ in self.times),
                variant=name,
                rounds=len(self.times),
            )
            for arm, name in enumerate(case.arms)
            if arm > 0
            for ratio in [self.ratio(arm)]
        ]

    def warnings(self, spec: LatencySpec) -> list[str]:
        """What a reader of these numbers must know."""
        case, found = self.case, []
        where = f"latency on {case.provider}, batch {case.batch}"
        if (width := self.half_width()) > spec.precision:
            found.append(f"{where}: ±{100 * width:.2g} % after {spec.time}, wanted ±{spec.precision}: measure longer")
        if self.created == 1:
            found.append(f"{where}: starting the models takes too long to start them anew in each round")
        for name, nodes in case.fallback.items():
            if nodes:
                shown = ", ".join(nodes[:5]) + (", …" if len(nodes) > 5 else "")
                total = sum(case.placement[name].values())
                found.append(f"{where}: `{name}` ran {len(nodes)} of {total} nodes elsewhere: {shown}")
        return found


def _exp(estimate: statistics.Estimate) -> statistics.Estimate:
    return statistics.Estimate(*(math.exp(min(value, 700.0)) for value in estimate))
