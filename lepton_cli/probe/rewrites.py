"""Rewrites that promise the same function, held to it: the model behind them is run beside the one before.

A rule that recognises a pattern can miss what an operator does besides. What it made is therefore compared on real (or
made-up) inputs before anything is rounded, when an error still stands out; a rewrite that fails is left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.errors import LeptonError, StepError
from lepton_cli.model import io
from lepton_cli.probe import activations
from lepton_cli.probe.comparable import comparable
from lepton_cli.probe.distances import decibel
from lepton_cli.runtime import Session, Values
from lepton_cli.step import Context, Decision

#: Least agreement of equal functions in float32, in dB; an unsteady model may differ from itself by more.
SAME_DB = 80.0
#: What a second way to compute the same model may cost besides.
MARGIN_DB = 6.0
#: Share of whole numbers and decisions (ArgMax) that float rounding may turn.
TURNED = 0.01
#: Below this a single rounded node has little to do with what it was, and rounding never changes the size by so much.
LEAST_DB = 6.0
OTHER_SIZE = 0.2
#: Samples compared.
SAMPLES = 8

_Outputs = list[dict[str, NDArray[Any]]]


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """A change of the graph that keeps the function. `does`: what it does, in words.

    `apply` edits the model in place, or returns another one. `needed`: nothing can follow without it.
    """

    does: str
    apply: Callable[[ir.Model], ir.Model | None]
    needed: bool = False
    hint: str = "exclude the nodes concerned, and report this: it is a defect of lepton"

    def on(self, model: ir.Model) -> ir.Model:
        """A rewritten copy."""
        return self.into(io.clone(model))

    def into(self, model: ir.Model) -> ir.Model:
        """The model itself rewritten, or another one in its place."""
        made = self.apply(model)
        return model if made is None else made


def held(model: ir.Model, rewrites: Sequence[Rewrite], context: Context) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy with all the rewrites that compute the same on the check samples, and a warning for each other one.

    In a dry run and for a draft none is checked. Raises StepError where one that is needed does not compute the same.
    """
    if not rewrites:
        return model, ()
    made = io.clone(model)
    for rewrite in rewrites:
        made = rewrite.into(made)
    if not context.judged:
        return made, ()
    given = Given(model, context)
    if given.difference(made) is None:
        return made, ()
    made, warnings = io.clone(model), []
    for rewrite in rewrites:
        trial = rewrite.on(made)
        difference = given.difference(trial)
        if difference is None:
            made = trial
        elif rewrite.needed:
            raise StepError(
                "step.rewrite",
                f"{rewrite.does} does not compute the same: {difference}",
                hint=rewrite.hint,
            )
        else:
            warnings.append(f"left out, as it does not compute the same here: {rewrite.does} ({difference})")
    return made, tuple(warnings)


class Given:
    """A function, as the outputs (`comparable`) of a model on the check samples."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        self._model, self._context = model, context
        self._feeds: list[Values] = []
        seen = 0
        for batch in activations.batches(model, context.check):
            self._feeds.append(batch.feeds)
            seen += batch.count
            if seen >= SAMPLES:
                break
        self._outputs = self._run(model)
        self._least: float | None = None

    def difference(self, made: ir.Model) -> str | None:
        """What is different in `made`, in words; `None` when it computes the same."""
        try:
            found = self._run(made)
        except LeptonError as error:
            return f"onnxruntime cannot run it: {error.cause or error.message}"
        ratio, worst = _distance(self._outputs, found)
        if ratio >= SAME_DB or ratio >= self._steadiness() - MARGIN_DB:
            return None
        return f"output `{worst}` at {ratio:.0f} dB" if math.isfinite(ratio) else f"output `{worst}`"

    def _steadiness(self) -> float:
        """How near the model comes to itself when it is computed in another order."""
        if self._least is None:
            self._least = _distance(self._outputs, self._run(self._model, optimise=False))[0]
        return self._least

    def _run(self, model: ir.Model, optimise: bool = True) -> _Outputs:
        source = io.payload(comparable(model), self._context.workdir)
        session = Session(source, threads=self._context.threads, optimise=optimise, spin=False)
        results = [session.run(feeds) for feeds in self._feeds]
        return [{name: v for name, v in found.items() if isinstance(v, np.ndarray)} for found in results]


def _distance(given: _Outputs, found: _Outputs) -> tuple[float, str]:
    """Least ratio of signal to difference in dB over the outputs, each batch on its own, and the output it is of."""
    ratios = [
        (_ratio(array, new.get(name)), name)
        for old, new in zip(given, found, strict=True)
        for name, array in old.items()
    ]
    return min(ratios, default=(math.inf, ""))


def _ratio(old: NDArray[Any], new: NDArray[Any] | None) -> float:
    if new is None or old.shape != new.shape or old.dtype != new.dtype:
        return -math.inf
    if old.dtype.kind != "f":
        return math.inf if np.mean(old != new) <= TURNED else -math.inf
    first, second = old.astype(np.float64), new.astype(np.float64)
    usable = np.isfinite(first)
    if not np.array_equal(first[~usable], second[~usable], equal_nan=True) or not np.isfinite(second[usable]).all():
        return -math.inf
    first, second = first[usable], second[usable]
    return decibel(float(np.square(first).sum()), float(np.square(first - second).sum()))


def strayed(before: ir.Model, after: ir.Model, names: Collection[str], context: Context) -> dict[str, str]:
    """Nodes `names` that rounding cannot have made of what they were, by name with what was seen.

    Each is fed what it reads in `before`, so that errors do not add up: rounding leaves a result of the same size and
    direction, a lost factor, bias or transposition does not. Nodes whose result `after` does not hold are left out.
    """
    made = {value.name for node in after.graph for value in node.outputs}
    nodes = [node for node in before.graph if node.name in names and node.outputs[0].name in made - {""}]
    if not nodes:
        return {}
    reads = {v.name or "" for node in nodes for v in node.inputs if v is not None and v.const_value is None and v.name}
    results = {node.outputs[0].name or "": node for node in nodes}
    feeds = next((batch.feeds for batch in activations.batches(before, context.check, limit=SAMPLES)), None)
    if feeds is None:
        return {}
    seen = activations.Activations(before, [*reads, *results], context.workdir, context.threads).run(feeds)
    inner = {name: seen[name] for name in reads & made}
    part = io.payload(activations.piece(after, inner, list(results)), context.workdir)
    session = Session(part, threads=context.threads, spin=False)
    given = feeds | {name + activations.GIVEN: array for name, array in inner.items()}
    found = session.run({info.name: given[info.name] for info in session.inputs}, list(results))
    said = {node.name or "": _strayed(seen[name], found[name]) for name, node in results.items()}
    return {name: text for name, text in said.items() if text is not None}


def kept(decisions: Sequence[Decision], wrong: Mapping[str, str]) -> list[Decision]:
    """The decisions where the nodes `wrong` stay as they are, each for the reason given."""
    return [
        one.model_copy(update={"action": "kept", "reason": wrong[one.node]}) if one.node in wrong else one
        for one in decisions
    ]


def _strayed(old: NDArray[Any], new: NDArray[Any]) -> str | None:
    if old.shape != new.shape:
        return f"its result has the shape {list(new.shape)}, not {list(old.shape)}"
    first, second = old.astype(np.float64).ravel(), new.astype(np.float64).ravel()
    usable = np.isfinite(first)
    first, second = first[usable], second[usable]
    if not first.any():
        return None
    size = float(first @ second / (first @ first))
    ratio = _ratio(old, new)
    if ratio >= LEAST_DB and abs(size - 1) < OTHER_SIZE:
        return None
    return f"stays float: in 8 or fewer bits its result is {size:.2f} times what it was, at {ratio:.0f} dB"
