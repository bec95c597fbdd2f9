"""What is known of candidates before any is tried: widths, bytes and times by tables, and drafts that are counted and
timed. Computed once a search; what takes long is asked for first when a candidate that needs it is the most promising.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import onnx_ir as ir

from lepton_cli.errors import LeptonError, StepError
from lepton_cli.measure import size
from lepton_cli.measure.results import Size
from lepton_cli.model import io
from lepton_cli.prune import prospects as tables
from lepton_cli.prune.allocate import Price
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.prospects import Prospect, Prospects
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.prune.stopwatch import Stopwatch
from lepton_cli.prune.times import Times
from lepton_cli.quantize.draft import coarse, drafter, drafting, filling
from lepton_cli.step import Context
from lepton_cli.steps import STEPS
from lepton_cli.tune.candidate import Point
from lepton_cli.tune.space import FORM, KERNELS, Kernels, SearchSpace, describe

#: Bytes and time of unpruned precisions as shares of float's, before one is drafted: guesses that decide what is
#: drafted first, and nothing else.
_GUESSED = {
    "float": (1.0, 1.0),
    "fp16": (0.5, 1.0),
    "int8": (0.27, 0.5),
    "dynamic": (0.3, 0.6),
    "mixed": (0.2, 0.6),
    "weights8": (0.3, 0.9),
    "weights4": (0.2, 0.9),
    "w4a8": (0.18, 0.5),
}
#: Channels that a layer keeps at least.
_NARROWEST = "1 %"
#: Shares below this are nothing.
_LEAST = 1e-4
#: A loss below this is none.
_NO_LOSS = 1e-6
#: Seconds that a draft is timed, and that tables of times may take.
_GLANCE, _TABLES = 0.5, 8.0


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of a candidate before it is made, as shares of the original's.

    `told`: by tables. `drafted`: counted, and timed, on a draft. Else they are guesses.
    """

    bytes: float
    parameters: float = 1.0
    macs: float = 1.0
    time: float = 1.0
    #: Of quality, by pruning: squared output error as a share of the variance.
    loss: float = 0.0
    told: bool = False
    drafted: bool = False


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Something that could be tried: choices (`point`), and what pruning leaves; `None`: everything."""

    point: Point
    prospect: Prospect | None = None
    #: Which part of the search it comes from, and why; empty: by its outlook alone.
    origin: str = ""
    why: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for proposals that make the same file: a draft knows no ranking, no ranges and no training."""
        widths = None if self.prospect is None else self.prospect.key
        return *(self.point[name] for name in FORM), widths


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What widths may cost: upper bounds as shares of the original's; infinite where nothing bounds."""

    bytes: float = np.inf
    parameters: float = np.inf
    macs: float = np.inf
    time: float = np.inf


class Knowledge(Protocol):
    """What a search asks before it tries."""

    def figures(self, proposal: Proposal) -> Figures:
        """By tables, or of its draft where there is one."""
        ...

    def draft(self, proposal: Proposal) -> str:
        """Make its draft, so that its figures are exact; returns why it cannot be made, or nothing."""
        ...

    def draft_failed(self, proposal: Proposal) -> bool:
        """Whether its draft was tried, and cannot be made."""
        ...

    def floor(self, point: Point, price: str) -> float | None:
        """Least share of a price that pruning can leave; `None` where no channel can go."""
        ...

    def widths(self, point: Point, budget: Bounds) -> Prospect | None:
        """What loses least within a budget; `None` where nothing holds it, or all channels do."""
        ...


class Foresight:
    """Of one model on one machine."""

    def __init__(
        self,
        model: Callable[[], ir.Model],
        space: SearchSpace,
        context: Context,
        original: Size,
        *,
        metadata: Mapping[str, str],
        timed: bool,
        macs: Callable[[ir.Model], Mapping[str, int]],
        alone: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`model`: what candidates begin with, cleaned up. `metadata`: what written models carry. `timed`: whether
        limits or goal look at times. `alone`: held while something is timed. `note`: told of what takes long."""
        self._model, self._space, self._context, self._original = model, space, context, original
        self._metadata = metadata
        self._timed, self._macs, self._alone, self._note = timed, macs, alone, note
        self._prospects: dict[tuple[object, ...], Prospects | None] = {}
        self._drafts: dict[tuple[object, ...], Figures] = {}
        self._failed: dict[tuple[object, ...], str] = {}
        self._written: dict[tuple[object, ...], ir.Model] = {}
        self._prices: dict[tuple[object, ...], Price] = {}
        self._times: dict[Kernels, Times] = {}
        self._chosen: dict[tuple[object, ...], Prospect | None] = {}
        self._losses: dict[tuple[object, ...], float] = {}
        #: How far the last draft of pruned widths was from what tables said, as a factor.
        self._off: dict[tuple[object, ...], float] = {}
        self._watch: Stopwatch | None = None

    def figures(self, proposal: Proposal) -> Figures:
        """By tables, or of its draft where there is one."""
        point, prospect = proposal.point, proposal.prospect
        found = self._drafts.get(proposal.key)
        if found is not None:
            return found if prospect is None else self._with_loss(found, proposal, prospect)
        if prospect is None:
            share, time = _GUESSED[str(point["precision"])]
            return Figures(bytes=share, time=time)
        names = ("bytes", "parameters", "macs", *(("time",) if self._timed else ()))
        told = {name: self.off(point, name) * self._told(point, name, prospect) for name in names}
        told["loss"] = self._loss(proposal, prospect)
        return dataclasses.replace(Figures(bytes=told["bytes"], told=True), **told)  # type: ignore[arg-type]

    def _with_loss(self, figures: Figures, proposal: Proposal, prospect: Prospect) -> Figures:
        """Two rankings make models of the same size that lose differently."""
        measured = (proposal.point["importance"], prospect.key) in self._losses
        return dataclasses.replace(figures, loss=self._loss(proposal, prospect), drafted=measured)

    def _loss(self, proposal: Proposal, prospect: Prospect) -> float:
        """Measured where it was, else what tables say and as far off as the last of its kind: branches that go together
        with channels lose more than either alone."""
        told = self._off.get(_kind(proposal.point, prospect), 1.0) * prospect.loss
        return self._losses.get((proposal.point["importance"], prospect.key), told)

    def _told(self, point: Point, name: str, prospect: Prospect) -> float:
        """What tables say of widths."""
        found = self._tables(point)
        assert found is not None
        return max(self._price(point, name)(found.widths(prospect)), _LEAST)

    def off(self, point: Point, name: str) -> float:
        """How far tables are off: what the last draft of pruned widths had of a price, over what they said."""
        return self._off.get((*self._family(point), name), 1.0)

    def draft(self, proposal: Proposal) -> str:
        """Make its draft, so that its figures are exact; returns why it cannot be made."""
        if proposal.key in self._failed:
            return self._failed[proposal.key]
        try:
            if proposal.key not in self._drafts:
                self._drafts[proposal.key] = self._counted(proposal)
                self._correct(proposal, self._drafts[proposal.key])
            self._measure_loss(proposal)
        except LeptonError as error:
            self._failed[proposal.key] = error.message + (f": {error.cause}" if error.cause else "")
        return self._failed.get(proposal.key, "")

    def _correct(self, proposal: Proposal, found: Figures) -> None:
        """Remember how far tables were off."""
        point, prospect = proposal.point, proposal.prospect
        if prospect is not None:
            for name in ("bytes", "parameters", "macs", *(("time",) if self._timed else ())):
                self._off[(*self._family(point), name)] = getattr(found, name) / self._told(point, name, prospect)

    def _measure_loss(self, proposal: Proposal) -> None:
        point, prospect = proposal.point, proposal.prospect
        if prospect is not None and (key := (point["importance"], prospect.key)) not in self._losses:
            found = self._tables(point)
            assert found is not None
            self._losses[key] = max(found.loss(prospect), _NO_LOSS)
            self._off[_kind(point, prospect)] = self._losses[key] / max(prospect.loss, _NO_LOSS)

    def draft_failed(self, proposal: Proposal) -> bool:
        """Whether its draft was tried, and cannot be made."""
        return proposal.key in self._failed

    def _counted(self, proposal: Proposal) -> Figures:
        if proposal.prospect is None:
            self._note(f"counting{' and timing' * self._timed} a draft: {describe(proposal.point)}")
        made = self._made(proposal)
        found = size.measure(None, made, macs=self._macs(made), compress=False)
        if proposal.prospect is None:
            self._written[proposal.key] = made
        time = 1.0
        if self._timed:
            with self._alone():
                time = self._timing(made)
        whole = self._original
        return Figures(
            bytes=found.file / whole.file,
            parameters=found.parameters / max(whole.parameters, 1),
            macs=found.macs / whole.macs if found.macs and whole.macs else 1.0,
            time=time,
            drafted=True,
        )

    def _made(self, proposal: Proposal) -> ir.Model:
        """The model with these widths and steps, as small and as fast as the candidate, and as good as nothing."""
        model = self._model()
        if proposal.prospect is not None:
            known = self._tables(proposal.point)
            assert known is not None
            model = known.cut(proposal.prospect)
        for step in self._space.quantizing(proposal.point):
            rough = coarse(step)
            found = STEPS[rough.step].apply(model, rough, drafting(rough, self._context))
            if not found.changed and not rough.if_possible:
                raise _not_drafted(proposal.point, f"`{rough.step}` changes nothing")
            model = found.model
        return io.stamped(model, self._metadata)

    def _timing(self, model: ir.Model) -> float:
        if self._watch is None:
            context = self._context
            batch = next(iter(context.check.batches(context.batch, context.batch)))
            shown = batch.sized(context.check.fixed_batch or context.batch)
            self._watch = Stopwatch(context.original, shown, context.provider, context.threads, context.workdir)
        return float(self._watch.ratios([lambda: model], _GLANCE)[0][0])

    def floor(self, point: Point, price: str) -> float | None:
        """Least share of a price (`bytes`, `parameters`, `macs`, `time`) that pruning can leave."""
        found = self._tables(point)
        return None if found is None else self.off(point, price) * found.least(self._price(point, price))

    def widths(self, point: Point, budget: Bounds) -> Prospect | None:
        """What loses least within a budget; `None` where nothing holds it, or all channels do."""
        found = self._tables(point)
        asked = dataclasses.asdict(budget)
        bounds = {name: _floored(bound / self.off(point, name)) for name, bound in asked.items() if bound < np.inf}
        key = (*self._family(point), *sorted(bounds.items()))
        if found is not None and bounds and key not in self._chosen:
            parts = [(self._price(point, name), bound) for name, bound in bounds.items()]
            full = tables.full(found)
            enough = all(price(full) <= bound for price, bound in parts)
            self._chosen[key] = None if enough else found.choose(parts)
        return self._chosen.get(key)

    def _tables(self, point: Point) -> Prospects | None:
        key = self._ranked(point)
        if key not in self._prospects:
            self._prospects[key] = self._looked_at(point)
        return self._prospects[key]

    def _looked_at(self, point: Point) -> Prospects | None:
        if not point["branches"]:
            whole = self._tables({**point, "branches": True})
            return None if whole is None else whole.without_branches()
        if not any(known[0] == point["importance"] for known in self._prospects):
            self._note(f"ranking channels ({point['importance']}) and measuring what narrower layers lose")
        try:
            return tables.prospects(self._model(), self._pruning(point), self._context)
        except LeptonError:  # a model that cannot be analysed is not pruned
            return None

    def _pruning(self, point: Point) -> PruneChannels:
        """Options that tables of this ranking and these widths follow from."""
        given: dict[str, object] = {"importance": point["importance"], "round_to": point["round_to"]}
        given["min_width"] = _NARROWEST  # what so narrow a layer loses is in its table
        if point["round_to"] is None:
            given["timed_as"] = "int8"  # the machine's vector blocks
        return PruneChannels.model_validate(given)

    def _ranked(self, point: Point) -> tuple[object, ...]:
        return point["importance"], point["round_to"], point["branches"]

    def _family(self, point: Point) -> tuple[object, ...]:
        return *self._ranked(point), *(point[name] for name in FORM)

    def _unpruned(self, point: Point) -> Proposal:
        return Proposal(self._space.point({name: point[name] for name in FORM}))

    def _price(self, point: Point, name: str) -> Price:
        """A share of the original's as a function of the columns' widths."""
        key = (*self._family(point), name)
        if key not in self._prices:
            self._prices[key] = self._priced(point, name)
        return self._prices[key]

    def _priced(self, point: Point, name: str) -> Price:
        found = self._tables(point)
        assert found is not None
        whole = self._unpruned(point)
        if problem := self.draft(whole):
            raise _not_drafted(point, problem)
        figures = self._drafts[whole.key]
        if name == "bytes":
            written = self._written[whole.key]
            stored = found.stored(written, filling(self._space.quantizing(point), written, self._context))
            return Scaled(stored, figures.bytes / stored(tables.full(found)))
        if name == "time":
            times = self._timing_tables(point)
            return Scaled(times, figures.time / max(times(tables.full(found)), 1e-9))
        goal = found.parameters if name == "parameters" else found.macs
        share = figures.parameters if name == "parameters" else figures.macs
        return Scaled(found.price(goal.price), share / max(goal.price(_full_groups(found)), 1e-9))

    def _timing_tables(self, point: Point) -> Price:
        """Times in the precision whose kernels the candidate runs; where drafts have none, multiply-accumulates."""
        found = self._tables(point)
        assert found is not None
        kernels: Kernels = KERNELS.get(str(point["precision"]), "float")
        if kernels not in self._times:  # the same for all rankings and widths
            options = self._pruning(point).model_copy(update={"timed_as": kernels})
            self._note(f"timing narrower layers in {kernels}")
            with self._alone():
                self._times[kernels] = found.times(options, drafter(kernels, self._context), _TABLES)
        return self._times[kernels]


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled:
    """A price in another unit."""

    price: Price
    factor: float

    def __call__(self, widths: Widths) -> float:
        return self.factor * self.price(widths)

    def table(self, widths: Widths, group: int, levels: Widths) -> np.ndarray:
        return np.asarray(self.factor * self.price.table(widths, group, levels))


def _floored(share: float) -> float:
    """Four digits of it: bounds that hardly differ are one."""
    share = max(share, _LEAST)
    unit = 10.0 ** (math.floor(math.log10(share)) - 3)
    return math.floor(share / unit + 1e-6) * unit


def _kind(point: Point, prospect: Prospect) -> tuple[object, ...]:
    """Of widths whose tables are off alike."""
    return "loss", point["importance"], bool(prospect.dropped)


def _full_groups(found: Prospects) -> Widths:
    return np.array([group.channels for group in found.plan.groups], np.int64)


def _not_drafted(point: Point, problem: str) -> LeptonError:
    return StepError("tune.not-drafted", f"`{point['precision']}` cannot be made of this model", cause=problem)
