"""What a search may choose: precision and its options, how channels are ranked, which widths they may have, training.

How much is pruned is no choice of the space: widths follow from limits and goal (`search.py`).
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from lepton_cli import units
from lepton_cli.errors import RecipeError
from lepton_cli.prune.prospects import Prospect
from lepton_cli.recipe.tuning import Space
from lepton_cli.report.trial import Value
from lepton_cli.step import Options
from lepton_cli.train.spec import Distill
from lepton_cli.tune.candidate import Candidate, Point, read_steps

#: Choices that mean nothing unless another one has a certain value.
_PRUNING = ("importance", "round_to", "branches", "distill")
_CALIBRATED = ("calibration", "guard", "prefer")
#: What kernels and bytes of a file follow from, besides its widths.
FORM = ("precision", "fuse", "block_size", "prefer")
#: Precisions that are calibrated, and those with weights in blocks.
_INTEGER, _BLOCKED = ("int8", "w4a8"), ("weights4", "mixed")
#: Precisions whose kernels pruning can time its models in.
Kernels = Literal["float", "int8", "dynamic", "fp16"]
KERNELS: dict[str, Kernels] = {
    "int8": "int8",
    "w4a8": "int8",
    "dynamic": "dynamic",
    "mixed": "dynamic",
    "fp16": "fp16",
}
#: Weights of one block in 4 bits: narrower layers stay in float.
_BLOCK = 32
WORDS = {
    "dynamic": "dynamic int8",
    "mixed": "dynamic int8 with 4-bit tables",
    "weights8": "8-bit weights",
    "weights4": "4-bit weights",
    "w4a8": "int8 with 4-bit weights",
}
#: What recipes call what pruning steers by, and what figures do.
_STEERED = {"latency": "time", "size": "bytes", "params": "parameters", "macs": "macs"}


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
    #: `size` when the goal is a size, else `time`.
    goal: str
    #: Largest loss of accuracy the limits allow, as a share.
    max_drop: float | None
    #: Whether there is what training needs.
    trainable: bool = False


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Choices by name; the first value of each is the one to begin with."""

    dimensions: Mapping[str, tuple[Value, ...]]
    #: What pruning may leave, as shares of what it steers by; empty: nothing is pruned. `None`: any share.
    keep: tuple[float, ...] | None = None
    #: What pruning steers by: `time`, `bytes`, `parameters` or `macs`; empty: by the goal.
    steers: tuple[str, ...] = ()
    #: What was asked for and left out, with the reason.
    dropped: tuple[str, ...] = ()
    #: Nodes that look up large float tables (embeddings).
    tables: tuple[str, ...] = ()
    #: Steps that every candidate begins with.
    first: tuple[Options, ...] = ()

    @property
    def prunes(self) -> bool:
        """Whether channels may go."""
        return self.keep is None or len(self.keep) > 0

    def point(self, chosen: Mapping[str, Value], *, pruned: bool = False) -> Point:
        """A point: the first value of every choice not named, and of those that mean nothing here."""
        full = {name: chosen.get(name, values[0]) for name, values in self.dimensions.items()}
        idle: tuple[str, ...] = _CALIBRATED if full["precision"] not in _INTEGER else ()
        idle += () if pruned else _PRUNING
        idle += () if full["precision"] in _BLOCKED else ("block_size",)
        return {name: self.dimensions[name][0] if name in idle else value for name, value in full.items()}

    def candidate(self, point: Point, prospect: Prospect | None = None, origin: str = "") -> Candidate:
        """The steps of a point, pruned to these widths."""
        steps = read_steps(list(_steps(point, prospect, self.tables)))
        return Candidate(describe(point, prospect), (*self.first, *steps), point, origin)

    def quantizing(self, point: Point) -> tuple[Options, ...]:
        """The steps behind pruning and training."""
        return read_steps(list(_quantizing(point, self.tables)))


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
    keep = _shares(given, traits, dropped)
    guards = tuple(None if guard == "none" else float(guard) for guard in given.guard or ())
    epochs = tuple(None if value == "none" else value for value in given.distill or ())
    ranges = tuple(None if name == "auto" else name for name in given.calibration or ())
    dimensions: dict[str, tuple[Value, ...]] = {
        "precision": precision,
        "fuse": given.fuse or _fusions(traits),
        "importance": given.importance or (("hessian", "activation") if traits.calibrated else ("l2", "l1")),
        "round_to": given.round_to or _multiples(traits, precision),
        # Whether residual branches may go as a whole: what tables say of them is the least sure.
        "branches": (True, False) if traits.calibrated else (False,),
        "distill": epochs or ((None, Distill().budget.epochs) if traits.trainable else (None,)),
        "guard": guards or ((None, traits.max_drop) if traits.max_drop and traits.labelled else (None,)),
        "calibration": ranges or (None, "percentile", "minmax"),
        "prefer": given.prefer or ("balance", "size" if traits.goal == "size" else "speed"),
        # A scale for every 32 weights is a fifth of their bytes.
        "block_size": given.block_size or ((_BLOCK, 64, 128, 256) if traits.goal == "size" else (_BLOCK,)),
    }
    space = SearchSpace(
        {name: tuple(dict.fromkeys(values)) for name, values in dimensions.items()},
        keep,
        tuple(_STEERED[name] for name in given.prune_by or ()),
        tuple(dropped),
        traits.tables,
        first,
    )
    if precision in ((), ("float",)) and keep == () and dimensions["fuse"] == (False,):
        raise RecipeError(
            "tune.space-empty",
            "there is nothing to search: the space holds the original only",
            cause="; ".join(dropped) or None,
            hint="give `tune.space` more values, or calibration data (`data.calibration`)",
            option=("tune", "space"),
        )
    return space


def _multiples(traits: Traits, precision: Sequence[Value]) -> tuple[Value, ...]:
    """Widths that are a multiple of these; `None`: of the machine's vector blocks. A size is least with any width, but
    for weights in blocks."""
    blocks = (_BLOCK,) if {"weights4", "mixed"} & set(precision) and traits.products else ()
    return (1, *blocks, None) if traits.goal == "size" else (None, 1, *blocks)


def _shares(given: Space, traits: Traits, dropped: list[str]) -> tuple[float, ...] | None:
    """What may remain after pruning, most first; `None`: any share."""
    if traits.quantized or not traits.prunable:
        reason = "the model is quantized already" if traits.quantized else "no channel can be removed"
        if given.keep and min(given.keep) < 1:
            raise RecipeError("tune.impossible", f"it cannot be pruned: {reason}", option=("tune", "space", "keep"))
        dropped.append(f"pruning: {reason}")
        return ()
    if given.keep is None:
        return None
    for index, share in enumerate(given.keep):
        if not 0 < share <= 1:
            raise RecipeError(
                "recipe.wrong-value",
                f"`tune.space.keep`: {units.write_percent(share)} is not above 0 % and at most 100 %",
                option=("tune", "space", "keep", index),
            )
    return tuple(sorted({float(share) for share in given.keep if share < 1}, reverse=True))


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


def _steps(point: Point, prospect: Prospect | None, tables: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The steps of a point as a recipe writes them."""
    yield {"step": "simplify"}
    if prospect is not None:
        yield prospect.options(str(point["importance"])).model_dump(mode="json", exclude_defaults=True)
        if point["distill"] is not None:
            yield {"step": "distill", "budget": {"epochs": point["distill"]}}
    yield from _quantizing(point, tables)


def _quantizing(point: Point, tables: Sequence[str]) -> Iterator[dict[str, Any]]:
    if point["fuse"]:
        yield {"step": "fuse", "if_possible": True}
    match point["precision"]:
        case "int8" | "w4a8":
            static: dict[str, Any] = {"step": "quantize.static", "calibration": point["calibration"]}
            if point["prefer"] != "balance":
                static["prefer"] = point["prefer"]
            if point["guard"] is not None:
                static["accuracy_guard"] = {"max_drop": units.write_points(float(point["guard"]))}
            yield static
            if point["precision"] == "w4a8":
                yield {"step": "quantize.aware", "weight_bits": 4}
        case "dynamic":
            yield {"step": "quantize.dynamic"}
        case "mixed":
            yield {**_in_blocks(point), "include": [glob.escape(name) for name in tables]}
            yield {"step": "quantize.dynamic"}
        case "weights8":
            yield {"step": "quantize.weights", "bits": 8}
        case "weights4":
            yield _in_blocks(point)
        case "fp16":
            yield {"step": "convert.fp16"}


def _in_blocks(point: Point) -> dict[str, Any]:
    step: dict[str, Any] = {"step": "quantize.weights", "bits": 4}
    return step if point["block_size"] == _BLOCK else {**step, "block_size": point["block_size"]}


def describe(point: Point, prospect: Prospect | None = None) -> str:
    """A point in a few words: `keep 81 % params, 74 % macs (hessian), int8 (guard 0.5 pp)`."""
    words = []
    if prospect is not None:
        kept = (("params", prospect.parameters), ("macs", prospect.macs))
        shares = ", ".join(f"{100 * share:.1f} % {name}" for name, share in kept)
        gone = len(prospect.dropped)
        branches = f", {gone} {'branch' if gone == 1 else 'branches'} less" if gone else ""
        words.append(f"keep {shares} ({point['importance']}{branches})")
        words += [] if point["distill"] is None else [f"distilled {point['distill']:g} epochs"]
    if point["fuse"]:
        words.append("fused")
    precision = str(point["precision"])
    options = [] if point["calibration"] is None else [str(point["calibration"])]
    if point["guard"] is not None:
        options.append(f"guard {units.write_points(float(point['guard']))}")
    if point["prefer"] != "balance" and precision in _INTEGER:
        options.append(f"for {point['prefer']}")
    if point["block_size"] != _BLOCK and precision in _BLOCKED:
        options.append(f"blocks of {point['block_size']}")
    words.append(WORDS.get(precision, precision) + (f" ({', '.join(options)})" if options else ""))
    return ", ".join(words)
