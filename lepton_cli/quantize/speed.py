"""Which layers int8 makes slower, found by measurement of whole models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns, thread_time_ns
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli import cache
from lepton_cli.machine import machine
from lepton_cli.model import io
from lepton_cli.quantize import profiling
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.details import Returned, Speed
from lepton_cli.quantize.effort import EFFORTS
from lepton_cli.runtime import Session, Values
from lepton_cli.step import Context
from lepton_cli.timing import compare as timing
from lepton_cli.timing.bursts import Clock

#: Least gain for a layer to be returned to float.
GAIN = 1.03
#: Of choices that are as fast as the fastest, within this, the one with the fewest layers in float is taken.
NEAR = 1.02
#: So many of the kinds that lose are tried, those that lose most, before all of them.
SHARES = (1, 2, 4)
#: A gain counts when three quarters of the visits show it: on a busy machine the median alone is luck. Of those that
#: count, medians choose.
CAUTIOUS = 0.25
#: A choice is settled when it comes out of this share of so many drawings of the visits; one that is not when time is
#: up is that with the fewest layers in float which one in five comes to.
SETTLED, DRAWS, PERHAPS = 0.95, 40, 0.2
#: Seconds of the processor that one comparison may take for each model; it ends before when it is settled, or, where
#: nothing is to be chosen, at this half-width of the intervals.
SECONDS, PRECISION = 1.2, 0.02
#: Visits at least; runs of a burst and its seconds, at most.
LEAST, RUNS, BURST = 5, 10, 0.02
#: A trial is made where a profile shows that it could gain, if it is wrong by this factor: profiling costs time itself.
DOUBT = 1.2


class Gain(NamedTuple):
    """Speed over the reference's: the median of all visits, and what three quarters of them show."""

    typical: float
    cautious: float


#: What to take, of the gains of all models but the first: a number, 0 for the first itself.
Choose = Callable[[Sequence[Gain]], int]


def compare(
    models: Sequence[ir.Model],
    feeds: Values,
    context: Context,
    seconds: float = SECONDS,
    choose: Choose | None = None,
    clock: Clock | None = None,
) -> tuple[list[Gain], int]:
    """Speed of each model relative to the first, and what is chosen for it; `seconds` are those of all threads.

    Where something is to be chosen, what no drawing of the visits comes to is timed no further.
    On one CPU thread its own time counts, which others that use the machine cannot lengthen by taking turns.
    """
    alone = context.threads == 1 and context.provider == "cpu"
    clock = clock or (thread_time_ns if alone else perf_counter_ns)
    random = np.random.default_rng(context.seed)
    openers = [_opener(model, feeds, context) for model in models]
    seconds /= context.threads
    rule = timing.StopRule(PRECISION, seconds, fewest=LEAST, share=0, setup=0, runs=RUNS, longest=BURST)
    ratios: list[NDArray[np.float64]] = [np.empty(0)] * len(models)
    left, chosen, started = list(range(1, len(models))), 0, clock()
    while left:
        rounds = timing.compare(
            [openers[0], *(openers[index] for index in left)],
            rule,
            random,
            clock=clock,
            answered=lambda found: choose is not None,
        )
        for place, index in enumerate(left, 1):
            ratios[index] = np.concatenate([ratios[index], rounds.ratios(place)])
        if choose is None:
            break
        votes = _votes(ratios[1:], choose, random)
        if max(votes) >= SETTLED or (clock() - started) * 1e-9 >= seconds:
            chosen = next(number for number, share in enumerate(votes) if share >= min(PERHAPS, max(votes)))
            break
        left = [index for index in left if votes[index]]
    return [Gain(1.0, 1.0), *(_gains(found[None])[0] for found in ratios[1:])], chosen


def _opener(model: ir.Model, feeds: Values, context: Context) -> timing.Opener:
    session = Session(io.payload(model, context.workdir), threads=context.threads)
    return lambda: timing.Warm(session.caller(feeds))


def _gains(ratios: NDArray[np.float64]) -> list[Gain]:
    """Of each row of times over the reference's."""
    typical, cautious = 1 / np.quantile(ratios, [0.5, 1 - CAUTIOUS], axis=-1)
    return [Gain(*pair) for pair in zip(typical.tolist(), cautious.tolist(), strict=True)]


def _votes(ratios: Sequence[NDArray[np.float64]], choose: Choose, random: np.random.Generator) -> list[float]:
    """Shares of the choices, the first being 0, when the visits are drawn anew: Efron's bootstrap, model by model."""
    drawn = [_gains(found[random.integers(len(found), size=(DRAWS, len(found)))]) for found in ratios]
    chosen = [choose(gains) for gains in zip(*drawn, strict=True)]
    return [chosen.count(number) / DRAWS for number in range(len(ratios) + 1)]


def _may_gain(slow: float | None, fast: float | None, whole: float) -> bool:
    """Whether microseconds `fast` in the place of `slow` could be a gain, if profiles are wrong by `DOUBT`."""
    if slow is None or fast is None:
        return True
    return whole > GAIN * (whole - (DOUBT * slow - fast))


#: A choice and what was measured about it.
Decided = tuple[Choice, Speed]


def decided_once(
    model: ir.Model,
    choice: Choice,
    target: str,
    activations: str,
    context: Context,
    decide: Callable[[], Decided],
    prefixes: Sequence[int] = EFFORTS["normal"].prefixes,
    prefer: str = "speed",
) -> Decided:
    """What `decide` says, or what it said before where everything that it depends on was the same.

    The clock decides which layers int8 does not pay for; decided once, a second run gives the same bytes.
    """
    if io.weight_bytes(model) >= io.EXTERNAL_ABOVE:
        return decide()
    key = cache.key(
        model=io.fingerprint(model),
        anchors=choice.anchors,
        between=choice.between,
        target=target,
        activations=activations,
        prefixes=list(prefixes),
        prefer=prefer,
        machine=machine(),
        provider=context.provider,
        batch=context.batch,
        threads=context.threads,
        data=None if context.calibration is None else context.calibration.fingerprint,
    )
    stored = context.cache.get("speed", key, "dropped", "measured")
    if stored is not None:
        for reason, nodes in stored["dropped"].items():
            choice = choice.without(nodes, reason, model)
        return choice, Speed.model_validate(stored["measured"])
    decided, measured = decide()
    dropped: dict[str, list[str]] = {}
    for decision in decided.kept:
        if decision.node in choice.anchors - decided.anchors:
            dropped.setdefault(decision.reason, []).append(decision.node)
    context.cache.put(
        "speed", key, {"dropped": dropped, "measured": measured.model_dump(mode="json", exclude_none=True)}
    )
    return decided, measured


def faster_choice(
    model: ir.Model,
    choice: Choice,
    write: Callable[[Choice], ir.Model],
    feeds: Values,
    context: Context,
    prefixes: Sequence[int] = EFFORTS["normal"].prefixes,
    given: ir.Model | None = None,
    bytes_count: bool = False,
) -> Decided:
    """The choice without the layers that measurably lose time, and what was measured.

    `given`: the model that `model` was prepared from, to which the speed is told; not what suits int8 better.
    `bytes_count`: layers stay in int8 where that saves a greater share of the bytes than it costs of the time.

    Tried: the kinds of layers whose int8 kernel is slower than the float one, those that lose most and more and more of
    the others with them, as each layer in float costs conversions at its ends; then the first few layers of the graph,
    so many as `prefixes` says, where images are large and channels few.
    """
    made = write(choice)
    slow = profiling.profile(made, feeds, context)
    if unfused := profiling.unfused(model, choice, slow):
        choice = choice.without(unfused, "onnxruntime finds no int8 kernel for it in this place", model)
        if not choice.anchors:
            return choice, Speed(speedup=1.0)
        made = write(choice)
        slow = profiling.profile(made, feeds, context)
    search = _Search(model, choice, made, write, feeds, context, bytes_count)
    fast, whole = profiling.profile(model, feeds, context), profiling.whole(slow)
    lost = profiling.losing(model, choice, slow, fast)
    search.attempt([[name for names in lost[:count] for name in names] for count in (*SHARES, len(lost))])
    order = [node for node in model.graph if node.name in choice.anchors and node.op_type == "Conv"]
    first = []
    for count in prefixes:
        if count < len(order):
            last = order[count - 1]
            if _may_gain(profiling.until(slow, last, int8=True), profiling.until(fast, last, int8=False), whole):
                first.append([node.name or "" for node in order[:count]])
    search.attempt(first)
    speedup = compare([model if given is None else given, search.made], feeds, context)[0][1].typical
    layers = tuple(profiling.times(node, slow, fast) for node in model.graph if node.name in choice.anchors)
    return search.choice, Speed(speedup=round(speedup, 3), returned=tuple(search.returned), layers=layers)


class _Trial(NamedTuple):
    """A choice with anchors `names` in float. `larger`: its bytes over those before."""

    names: tuple[str, ...]
    choice: Choice
    made: ir.Model
    larger: float


class _Search:
    """The fastest choice so far."""

    def __init__(
        self,
        model: ir.Model,
        choice: Choice,
        made: ir.Model,
        write: Callable[[Choice], ir.Model],
        feeds: Values,
        context: Context,
        bytes_count: bool,
    ) -> None:
        self.bytes_count = bytes_count
        self.model, self.choice, self.made, self.write = model, choice, made, write
        self.feeds, self.context = feeds, context
        self.returned: list[Returned] = []

    def attempt(self, sets: Sequence[Sequence[str]]) -> None:
        """Return one of `sets` of anchors, each within the next, to float: the fastest one, or the smallest that is
        about as fast. Where bytes count, only for more than it adds of them."""
        trials: dict[frozenset[str], _Trial] = {}
        for names in sets:
            names = [name for name in names if name in self.choice.anchors]
            if names and self.choice.anchors - set(names) and frozenset(names) not in trials:
                choice = self.choice.without(names, "float is faster here (measured)", self.model)
                made = self.write(choice)
                larger = io.weight_bytes(made) / io.weight_bytes(self.made) if self.bytes_count else 1.0
                trials[frozenset(names)] = _Trial(tuple(names), choice, made, max(larger, 1.0))
        if not trials:
            return
        tried = list(trials.values())

        def choose(gains: Sequence[Gain]) -> int:
            counts = [gain.cautious >= GAIN * trial.larger for gain, trial in zip(gains, tried, strict=True)]
            worth = [gain.typical / trial.larger * yes for gain, trial, yes in zip(gains, tried, counts, strict=True)]
            least = max(worth) / NEAR
            return next(number for number, value in enumerate(worth, 1) if value >= least) if any(counts) else 0

        models = [self.made, *(trial.made for trial in tried)]
        gains, chosen = compare(models, self.feeds, self.context, SECONDS * len(tried), choose)
        if not chosen:
            return
        at = chosen - 1
        self.choice, self.made = tried[at].choice, tried[at].made
        self.returned.append(Returned(nodes=tried[at].names, gain=round(gains[chosen].typical, 3)))
