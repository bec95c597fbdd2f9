"""Latency of several models on every provider and batch size, and what a reader of the numbers must know."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lepton_cli import units
from lepton_cli.errors import Interrupted, LeptonError, MeasurementError, ProviderError
from lepton_cli.machine import usable_threads
from lepton_cli.measure.arms import InputNames, Payload
from lepton_cli.measure.case import Case, Unsupported
from lepton_cli.measure.results import Latency, LatencyChange, LatencyTable, Skipped
from lepton_cli.measure.spec import LatencySpec, ProviderSpec
from lepton_cli.progress import Progress, Silent
from lepton_cli.runtime import Values
from lepton_cli.timing import compare as timing
from lepton_cli.timing.compare import Rounds, StopRule
from lepton_cli.timing.intervals import percentile

#: Most raw times kept for drawing.
_DRAWN = 200
#: Providers that run on the processor which the CPU provider runs on: whoever has the one can choose the other.
_SAME_PROCESSOR = frozenset({"cpu", "openvino", "dnnl", "xnnpack"})
#: A machine on which a smaller share of the bursts is undisturbed is worth a warning.
_BUSY = 0.5


def compare(
    arms: Mapping[str, Payload],
    feeds_for_batch: Callable[[int], Values],
    spec: LatencySpec,
    *,
    progress: Progress | None = None,
    seed: int = 0,
    input_names: InputNames | None = None,
    beside: Mapping[str, Payload] | None = None,
) -> LatencyTable:
    """Time all arms on every provider and batch size, and on the processor with every number of threads; the first arm
    is the reference of the changes.

    `beside`: further arms on the first of each alone; those that do not run are left out.
    `feeds_for_batch` gives model inputs of a batch size. Providers that are optional and missing, and batch sizes
    that the reference cannot run, are listed as skipped. Raises ProviderError for a missing provider that is not
    optional, MeasurementError when a model fails to run where the reference does, or nowhere, and Interrupted with
    the table so far.
    """
    counts = spec.threads or (usable_threads(),)
    measured: list[_Measured] = []
    skipped: list[Skipped] = []
    try:
        more = beside or {}

        def case(provider: ProviderSpec, threads: int, batch: int) -> Case:
            first = (provider, threads, batch) == (spec.providers[0], counts[0], spec.batch[0])
            chosen = {**arms, **more} if first else arms
            feeds, names = feeds_for_batch(batch), input_names or {}
            told = f", {threads} {'thread' if threads == 1 else 'threads'}" if len(counts) > 1 else ""
            return Case(chosen, provider.name, batch, threads, feeds, names, optional=frozenset(more), beside=told)

        for provider in spec.providers:
            used = counts if _on_processor(provider.name) else counts[:1]
            cases = itertools.starmap(case, itertools.product((provider,), used, spec.batch))
            _on_provider(provider, cases, spec, seed, progress or Silent(), measured, skipped)
    except KeyboardInterrupt as stop:
        enough = [one for one in measured if len(one.rounds.rounds) >= one.rule.fewest]
        raise Interrupted(_table(enough, skipped, counts) if enough else None) from stop
    return _table(measured, skipped, counts)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """One provider and batch size: what was asked for and what was timed."""

    case: Case
    rule: StopRule
    rounds: Rounds

    def latencies(self) -> list[Latency]:
        """One result per arm."""
        return [self._latency(arm, name) for arm, name in enumerate(self.case.arms)]

    def _latency(self, arm: int, name: str) -> Latency:
        estimate, times, device = self.rounds.absolute(arm), self.rounds.times(arm), self.rounds.device(arm)
        return Latency(
            variant=name,
            provider=self.case.provider,
            batch=self.case.batch,
            threads=self.case.threads,
            median=estimate.value,
            low=estimate.low,
            high=estimate.high,
            undisturbed=self.rounds.undisturbed_share(arm),
            p90=percentile(times, 0.9),
            p99=percentile(times, 0.99),
            n=len(times),
            throughput=self.case.batch / estimate.value,
            device_median=None if device is None else float(np.median(device)),
            times=tuple(float(t) for t in times[:: max(1, math.ceil(len(times) / _DRAWN))]),
            placement=self.case.placement[name],
        )

    def changes(self) -> list[LatencyChange]:
        """One paired comparison per arm after the first."""
        case, rounds = self.case, self.rounds
        return [
            LatencyChange(
                provider=case.provider,
                batch=case.batch,
                threads=case.threads,
                original=rounds.absolute(0).value,
                compressed=rounds.absolute(arm).value,
                ratio=ratio.value,
                low=ratio.low,
                high=ratio.high,
                pairs=rounds.visits,
                variant=name,
                rounds=len(rounds.rounds),
            )
            for arm, name in enumerate(case.arms)
            if arm > 0
            for ratio in [rounds.ratio(arm)]
        ]

    def warnings(self) -> list[str]:
        """What a reader of these numbers must know."""
        case, found = self.case, []
        where = f"latency on {case.provider}, batch {case.batch}{case.beside}"
        own = len(case.arms) - len(case.optional & case.arms.keys())
        if (width := self.rounds.half_width(own)) > self.rule.precision:
            waited, wanted = units.write_duration(units.Seconds(self.rule.seconds)), 100 * self.rule.precision
            found.append(f"{where}: ±{100 * width:.2g} % after {waited}, wanted ±{wanted:.2g} %: measure longer")
        if (share := self.rounds.undisturbed_share(0)) < _BUSY:
            slowed = f"{100 * (1 - share):.0f} % of the bursts"
            found.append(f"{where}: other work on this machine slowed {slowed}, which do not count")
        if self.rounds.created == 1:
            found.append(f"{where}: starting the models takes too long to start them anew in each round")
        for name, nodes in case.fallback.items():
            if nodes:
                shown = ", ".join(nodes[:5]) + (", …" if len(nodes) > 5 else "")
                total = sum(case.placement[name].values())
                found.append(f"{where}: `{name}` ran {len(nodes)} of {total} nodes elsewhere: {shown}")
        return found


def _on_processor(provider: str) -> bool:
    return provider.lower().removesuffix("executionprovider") in _SAME_PROCESSOR


def _faster_elsewhere(results: Sequence[Latency]) -> list[str]:
    """Where another provider for the same processor runs the last arm clearly faster than the first provider does."""
    if not results:
        return []
    first, last, found = results[0].provider, results[-1].variant, dict[str, list[str]]()
    own = {one.setting[1:]: one for one in results if (one.provider, one.variant) == (first, last)}
    for one in results:
        beside = own.get(one.setting[1:])
        if one.variant == last and _on_processor(one.provider) and beside is not None and one.high < beside.low:
            found.setdefault(one.provider, []).append(f"{beside.median / one.median:.2f}x (batch {one.batch})")
    return [f"`{last}` is faster on {name} than on {first}: {', '.join(told)}" for name, told in found.items()]


def _table(measured: Sequence[_Measured], skipped: Sequence[Skipped], counts: Sequence[int]) -> LatencyTable:
    warnings = [warning for one in measured for warning in one.warnings()]
    if max(counts) > usable_threads():
        warnings.insert(0, f"{max(counts)} threads were asked for but only {usable_threads()} cores are usable")
    results = tuple(result for one in measured for result in one.latencies())
    return LatencyTable(
        results=results,
        changes=tuple(change for one in measured for change in one.changes()),
        skipped=tuple(skipped),
        warnings=(*warnings, *_faster_elsewhere(results)),
    )


def _on_provider(
    provider: ProviderSpec,
    cases: Iterable[Case],
    spec: LatencySpec,
    seed: int,
    progress: Progress,
    measured: list[_Measured],
    skipped: list[Skipped],
) -> None:
    """Measure all batch sizes on one provider; what cannot be measured is skipped, unless that is all of them.

    Results go into the last two lists as they come: an interrupt must not lose them.
    """
    failure: Unsupported | None = None
    before = len(measured)
    for case in cases:
        label = f"latency {provider.name} batch {case.batch}{case.beside}"
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
            rule = StopRule(precision=float(spec.precision), seconds=float(spec.time))
            measured.append(_Measured(case, rule, Rounds(len(case.arms))))
            timing.compare(
                case.openers(),
                rule,
                np.random.default_rng([seed, case.batch]),
                advance=stage.advance,
                into=measured[-1].rounds,
            )
    if failure is not None and len(measured) == before:
        raise MeasurementError(
            "measure.run", f"the model cannot be run on {provider.name}", cause=failure.message, hint=failure.hint
        )


def _reason(error: LeptonError, provider: ProviderSpec) -> str:
    return f"{error.message}{f' ({error.cause})' if error.cause else ''}; `{provider.name}` is optional"
