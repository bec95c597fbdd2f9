"""The space: dimensions with their values, what is derived from a model, and the steps that a point stands for."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lepton_cli import units
from lepton_cli.errors import RecipeError
from lepton_cli.recipe.tuning import Space
from lepton_cli.report.trial import Value
from lepton_cli.step import Options
from lepton_cli.train.spec import Distill
from lepton_cli.tune.candidate import Candidate, Point, read_steps

#: Below this share a layer may keep less than the 5 % of its channels that pruning keeps by default.
_DEEP = 0.12
#: Dimensions that mean nothing unless another one has a certain value.
_PRUNING = ("prune_by", "importance", "round_to", "distill")
#: Dimensions that fall from 1 in steps.
LADDERS = ("keep", "keep_params")
_CALIBRATED = ("calibration", "guard")
#: Precisions that are calibrated.
_INTEGER = ("int8", "w4a8")
#: Precisions that pruning by time can time its models in.
_TIMED = {"int8": "int8", "w4a8": "int8", "dynamic": "dynamic", "mixed": "dynamic"}
WORDS = {
    "dynamic": "dynamic int8",
    "mixed": "dynamic int8 with 4-bit tables",
    "weights8": "8-bit weights",
    "weights4": "4-bit weights",
    "w4a8": "int8 with 4-bit weights",
}


@dataclasses.dataclass(frozen=True)
class Traits:
    """What the space follows from: facts about model, data, machine and goal."""

    convolutions: bool
    products: bool
    transformer: bool
    quantized: bool
    prunable: bool
    calibrated: bool
    labelled: bool
    provider: str
    #: Nodes that look up large float tables (embeddings).
    tables: tuple[str, ...]
    #: Channels that the processor computes at once.
    block: int
    #: `size` when the goal is a size, else `time`.
    goal: str
    #: Largest loss of accuracy the limits allow, as a share.
    max_drop: float | None
    #: Whether limits bound the size, whatever the goal is.
    sized: bool = False
    #: Whether there is what training needs.
    trainable: bool = False


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Dimensions by name; the first value of each is the one to begin with. `keep` and `keep_params` fall from 1."""

    dimensions: Mapping[str, tuple[Value, ...]]
    #: What was asked for and left out, with the reason.
    dropped: tuple[str, ...] = ()
    #: Nodes that look up large float tables (embeddings).
    tables: tuple[str, ...] = ()
    #: Steps that every candidate begins with.
    first: tuple[Options, ...] = ()

    def __contains__(self, point: Point) -> bool:
        """Whether it is one of this space: trials may be of another, and the recipe's own steps are of none."""
        return self.dimensions.keys() == point.keys() and all(point[name] in self.dimensions[name] for name in point)

    def point(self, **chosen: Value) -> Point:
        """A point: the first value of every dimension not named, and where a dimension means nothing."""
        full = {name: chosen.get(name, values[0]) for name, values in self.dimensions.items()}
        idle: tuple[str, ...] = _CALIBRATED if full["precision"] not in _INTEGER else ()
        idle += _PRUNING if full["keep"] == 1 and full["keep_params"] == 1 else ()
        idle += ("round_to",) if full["prune_by"] == "latency" else ()
        idle += ("keep_params",) if full["prune_by"] in ("params", "size") else ()
        return {name: self.dimensions[name][0] if name in idle else value for name, value in full.items()}

    def candidate(self, point: Point, origin: str) -> Candidate:
        """The steps of a point."""
        steps = read_steps(list(_steps(point, self.tables)))
        return Candidate(describe(point), (*self.first, *steps), point, origin)

    def random(self, source: random.Random) -> Point:
        """A point, every value of a dimension equally likely."""
        return self.point(**{name: source.choice(values) for name, values in self.dimensions.items()})

    def neighbours(self, point: Point) -> Iterator[Point]:
        """Points pruned one level further; that differ in one dimension, and those one level further; then by more.

        What is fastest as a whole need not be when little is left: there float may be as fast as int8 and keep more.
        """
        levels = self.dimensions["keep"]
        at = levels.index(point["keep"])
        for name in LADDERS:
            yield self.point(**{**point, name: self.near(name, point[name], 1)})
        for name, values in self.dimensions.items():
            for value in values:
                if name in LADDERS or value == point[name]:
                    continue
                yield self.point(**{**point, name: value})
                if at + 1 < len(levels) and name != "precision":
                    yield self.point(**{**point, name: value, "keep": levels[at + 1]})
        for name, step in itertools.product(LADDERS, (-1, 2, -2)):
            yield self.point(**{**point, name: self.near(name, point[name], step)})

    def near(self, name: str, value: Value, steps: int) -> Value:
        """The value so many places further, or the last there is."""
        values = self.dimensions[name]
        return values[min(len(values) - 1, max(0, values.index(value) + steps))]

    def __len__(self) -> int:
        """Number of different points."""
        count = 1
        for name in ("fuse", "precision", *LADDERS):
            count *= len(self.dimensions[name])
        return count


def derive(given: Space, traits: Traits, first: tuple[Options, ...] = ()) -> SearchSpace:
    """The space for a model; every candidate begins with the steps of `first`.

    Raises RecipeError for values that cannot work here, and when nothing is left to try.
    """
    dropped: list[str] = []
    precision = tuple(dict.fromkeys(given.precision or _precisions(traits)))
    for index, value in enumerate(given.precision or ()):
        if reason := _impossible(value, traits):
            raise RecipeError(
                "tune.impossible",
                f"`{value}` cannot be tried: {reason}",
                option=("tune", "space", "precision", index),
            )
    keep = _levels(given, traits, dropped)
    besides = _besides(given, traits, keep)
    guards = tuple(None if guard == "none" else float(guard) for guard in given.guard or ())
    epochs = tuple(None if value == "none" else value for value in given.distill or ())
    ranges = tuple(None if name == "auto" else name for name in given.calibration or ())
    # In the order in which neighbours are tried: what changes most comes first.
    dimensions: dict[str, tuple[Value, ...]] = {
        "keep": keep,
        "precision": precision,
        "round_to": given.round_to or ((1, 8) if traits.goal == "size" else (8, traits.block, 1)),
        "guard": guards or ((None, traits.max_drop) if traits.max_drop and traits.labelled else (None,)),
        "prune_by": given.prune_by or _prices(traits),
        "importance": given.importance or (("hessian", "activation") if traits.calibrated else ("l2", "l1")),
        "fuse": given.fuse or _fusions(traits),
        "distill": epochs or ((None, Distill().budget.epochs) if traits.trainable else (None,)),
        "keep_params": besides,
        "calibration": ranges or (None, "percentile", "minmax"),
    }
    space = SearchSpace(
        {name: tuple(dict.fromkeys(values)) for name, values in dimensions.items()},
        tuple(dropped),
        traits.tables,
        first,
    )
    if precision in ((), ("float",)) and keep == (1,) == besides and dimensions["fuse"] == (False,):
        raise RecipeError(
            "tune.space-empty",
            "there is nothing to search: the space holds the original only",
            cause="; ".join(dropped) or None,
            hint="give `tune.space` more values, or calibration data (`data.calibration`)",
            option=("tune", "space"),
        )
    return space


def _precisions(traits: Traits) -> Sequence[Value]:
    """What may pay off for this goal, the most promising first: a budget may end before the last."""
    integer = ["int8"] if traits.calibrated and (traits.convolutions or not traits.transformer) else []
    dynamic = ["dynamic"] if traits.products and not traits.convolutions else []
    dynamic = ["mixed", *dynamic] if dynamic and traits.tables else dynamic
    stored = traits.products and (traits.transformer or traits.goal == "size")
    device = traits.provider in ("cuda", "tensorrt")
    if traits.goal == "size":
        found = [*(["weights4"] if stored else []), *dynamic, *integer, *(["weights8"] if stored else []), "fp16"]
    else:
        found = [*(["fp16"] if device else []), *dynamic, *integer, *(["weights4", "weights8"] if stored else [])]
    return [value for value in (*found, "float") if not _impossible(value, traits)]


def _prices(traits: Traits) -> tuple[Value, ...]:
    """What pruning counts. Measured time knows vector blocks and whole branches; models too small for it have size."""
    if traits.goal == "size" or not (traits.convolutions or traits.transformer):
        return ("params",)
    return ("latency", "macs") if traits.calibrated else ("macs", "latency")


def _fusions(traits: Traits) -> tuple[bool, ...]:
    if not traits.transformer:
        return (False,)
    return (False, True) if traits.goal == "size" else (True, False)


def _impossible(precision: str, traits: Traits) -> str:
    """Why a precision cannot work for this model; empty when it can."""
    if precision == "float":
        return ""
    if traits.quantized:
        return "the model is quantized already"
    if precision in _INTEGER and not traits.calibrated:
        return "it needs calibration data (`data.calibration`)"
    if precision in ("dynamic", "mixed", "weights8", "weights4") and not traits.products:
        return "the model has no MatMul and no Gemm"
    if precision == "mixed" and not traits.tables:
        return "the model has no embedding table"
    return ""


def _levels(given: Space, traits: Traits, dropped: list[str]) -> tuple[Value, ...]:
    """What may remain after pruning, most first."""
    if traits.quantized or not traits.prunable:
        reason = "the model is quantized already" if traits.quantized else "no channel can be removed"
        if given.keep and min(given.keep) < 1:
            raise RecipeError("tune.impossible", f"it cannot be pruned: {reason}", option=("tune", "space", "keep"))
        dropped.append(f"pruning: {reason}")
        return (1,)
    if given.keep is not None:
        return _shares("keep", given.keep)
    return tuple(ladder())


def _besides(given: Space, traits: Traits, keep: tuple[Value, ...]) -> tuple[Value, ...]:
    """Parameters that may remain besides `keep`: less than all only where the goal is a time and size is limited."""
    if given.keep_params is not None:
        return _shares("keep_params", given.keep_params)
    return tuple(ladder(least=0.05)) if traits.sized and traits.goal == "time" and len(keep) > 1 else (1,)


def _shares(name: str, given: Sequence[float]) -> tuple[Value, ...]:
    for index, share in enumerate(given):
        if not 0 < share <= 1:
            raise RecipeError(
                "recipe.wrong-value",
                f"`tune.space.{name}`: {units.write_percent(share)} is not above 0 % and at most 100 %",
                option=("tune", "space", name, index),
            )
    return tuple(sorted({float(share) if share < 1 else 1 for share in given}, reverse=True))


def ladder(factor: float = 0.95, least: float = 0.005) -> Iterator[Value]:
    """1, 0.95, 0.9, … as shares of two digits: close where accuracy begins to fall, and few steps to the end."""
    level, before = 1.0, 0.0
    while level >= least:
        rounded = float(f"{level:.2g}")
        if rounded != before:
            yield 1 if rounded == 1 else rounded
        before, level = rounded, level * factor


def _steps(point: Point, tables: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The steps of a point as a recipe writes them."""
    yield {"step": "simplify"}
    shares = _targets(point)
    if shares:
        prune: dict[str, Any] = {
            "step": "prune.channels",
            "target": {metric: units.write_percent(share) for metric, share in shares.items()},
            "importance": point["importance"],
        }
        if "latency" not in shares:  # by time, widths are those that the machine is fast at
            prune |= {"round_to": point["round_to"], "timed_as": "float"}
        elif point["precision"] in _TIMED:
            prune["timed_as"] = _TIMED[str(point["precision"])]
        if min(shares.values()) < _DEEP:
            prune["min_width"] = "1 %"
        yield prune
        if point["distill"] is not None:
            yield {"step": "distill", "budget": {"epochs": point["distill"]}}
    if point["fuse"]:
        yield {"step": "fuse", "if_possible": True}
    match point["precision"]:
        case "int8" | "w4a8":
            static: dict[str, Any] = {"step": "quantize.static", "calibration": point["calibration"]}
            if point["guard"] is not None:
                static["accuracy_guard"] = {"max_drop": units.write_points(float(point["guard"]))}
            yield static
            if point["precision"] == "w4a8":
                yield {"step": "quantize.aware", "weight_bits": 4}
        case "dynamic":
            yield {"step": "quantize.dynamic"}
        case "mixed":
            yield {"step": "quantize.weights", "bits": 4, "include": [glob.escape(name) for name in tables]}
            yield {"step": "quantize.dynamic"}
        case "weights8" | "weights4":
            yield {"step": "quantize.weights", "bits": 8 if point["precision"] == "weights8" else 4}
        case "fp16":
            yield {"step": "convert.fp16"}


def _targets(point: Point) -> dict[str, float]:
    """What pruning leaves, by metric; empty without pruning."""
    given = {str(point["prune_by"]): float(point["keep"] or 1)}
    given.setdefault("params", float(point["keep_params"] or 1))
    return {metric: share for metric, share in given.items() if share < 1}


def describe(point: Point) -> str:
    """A point in a few words: `keep 40 % macs (hessian, x16), int8 (guard 0.5 pp)`."""
    words = []
    shares = _targets(point)
    if shares:
        kept = " and ".join(f"{units.write_percent(share)} {metric}" for metric, share in shares.items())
        multiple = "" if point["prune_by"] == "latency" else f", x{point['round_to']}"
        words.append(f"keep {kept} ({point['importance']}{multiple})")
        words += [] if point["distill"] is None else [f"distilled {point['distill']:g} epochs"]
    if point["fuse"]:
        words.append("fused")
    precision = str(point["precision"])
    options = [] if point["calibration"] is None else [str(point["calibration"])]
    if point["guard"] is not None:
        options.append(f"guard {units.write_points(float(point['guard']))}")
    words.append(WORDS.get(precision, precision) + (f" ({', '.join(options)})" if options else ""))
    return ", ".join(words)
