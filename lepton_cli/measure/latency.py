"""Latency: several models timed in turn, so that whatever else the machine does hits all of them alike.

A round creates fresh sessions (memory layout differs from one to the next), warms them up, then times pair after
pair in random order. Results within a round are alike, so intervals rest on the medians of the rounds.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter, perf_counter_ns

import numpy as np

from lepton_cli.errors import Interrupted, LeptonError, MeasurementError, ProviderError
from lepton_cli.machine import usable_threads
from lepton_cli.measure.arms import InputNames, Payload
from lepton_cli.measure.case import Call, Case, Open, Unsupported
from lepton_cli.measure.results import LatencyTable, Skipped
from lepton_cli.measure.rounds import Rounds, Times
from lepton_cli.measure.spec import LatencySpec, ProviderSpec
from lepton_cli.progress import Progress, Silent, Stage
from lepton_cli.runtime import Arrays

#: Rounds before precision may end a measurement, and the fewest that give an interval at all.
ROUNDS, FEWEST_ROUNDS = 10, 3
#: Share of the time limit that one round takes.
_ROUND_SHARE = 0.025
#: Sessions are recreated between rounds as long as that takes less than this share of the time.
_SETUP_SHARE = 0.4
#: Runs shorter than this are timed in blocks of this length: the clock and the call cost a microsecond.
_BLOCK = 100e-6
#: Random orders drawn at once.
_ORDERS = 256


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
    optional, MeasurementError when a model fails to run where the reference does, or nowhere, and Interrupted with
    the table so far.
    """
    threads = spec.threads or usable_threads()
    measured: list[Rounds] = []
    skipped: list[Skipped] = []
    try:
        for provider in spec.providers:
            cases = (
                Case(arms, provider.name, batch, threads, feeds_for_batch(batch), input_names or {})
                for batch in spec.batch
            )
            _on_provider(provider, cases, spec, seed, progress or Silent(), measured, skipped)
    except KeyboardInterrupt as stop:
        enough = [rounds for rounds in measured if len(rounds.times) >= FEWEST_ROUNDS]
        raise Interrupted(_table(enough, skipped, spec, threads) if enough else None) from stop
    return _table(measured, skipped, spec, threads)


def _table(measured: Sequence[Rounds], skipped: Sequence[Skipped], spec: LatencySpec, threads: int) -> LatencyTable:
    warnings = [warning for rounds in measured for warning in rounds.warnings(spec)]
    if threads > usable_threads():
        warnings.insert(0, f"{threads} threads were asked for but only {usable_threads()} cores are usable")
    return LatencyTable(
        results=tuple(result for rounds in measured for result in rounds.latencies()),
        changes=tuple(change for rounds in measured for change in rounds.changes()),
        skipped=tuple(skipped),
        warnings=tuple(warnings),
    )


def _on_provider(
    provider: ProviderSpec,
    cases: Iterable[Case],
    spec: LatencySpec,
    seed: int,
    progress: Progress,
    measured: list[Rounds],
    skipped: list[Skipped],
) -> None:
    """Measure all batch sizes on one provider; what cannot be measured is skipped, unless that is all of them.

    Results go into the last two lists as they come: an interrupt must not lose them.
    """
    failure: Unsupported | None = None
    before = len(measured)
    for case in cases:
        label = f"latency {provider.name} batch {case.batch}"
        try:
            case.check()
        except ProviderError as error:
            if not provider.optional:
                raise
            skipped.append(Skipped(what=f"latency {provider.name}", reason=_reason(error, provider)))
            return
        except Unsupported as error:
            failure = error
            skipped.append(Skipped(what=label, reason=error.message))
            continue
        with progress.stage(label) as stage:
            measured.append(Rounds(case))
            _measure(measured[-1], spec, np.random.default_rng([seed, case.batch]), stage)
    if failure is not None and len(measured) == before:
        raise MeasurementError(
            "measure.run", f"the model cannot be run on {provider.name}", cause=failure.message, hint=failure.hint
        )


def _reason(error: LeptonError, provider: ProviderSpec) -> str:
    return f"{error.message}{f' ({error.cause})' if error.cause else ''}; `{provider.name}` is optional"


def _measure(rounds: Rounds, spec: LatencySpec, generator: np.random.Generator, stage: Stage) -> None:
    """Rounds until the wanted precision or the time limit."""
    case = rounds.case
    started, setup = perf_counter(), 0.0
    opened: Open | None = None
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
            return


def _round(
    opened: Open, blocks: Sequence[int], generator: np.random.Generator, seconds: float
) -> tuple[Times, Times | None]:
    """Pairs in random order for `seconds`, at least one; garbage is collected before, not during."""
    arms = len(opened.calls)
    with_device = all(call is not None for call in opened.device)
    orders: list[list[int]] = []
    host: list[list[float]] = []
    device: list[list[float]] = []
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        end = perf_counter() + seconds
        while not host or perf_counter() < end:
            # Drawn many at a time: work between two runs would cool the caches.
            orders = orders or generator.permuted(np.tile(np.arange(arms), (_ORDERS, 1)), axis=1).tolist()
            order = orders.pop()
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
