"""What widths cost in measured time: the whole model is timed with one kind of layer narrowed or dropped at a time.

Layers of the same kind (operators, attributes and shapes) share one measurement, taken with all of them narrowed at
once. Savings of different groups add up, except where they meet in the same node: there the product is taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling.links import Group, Port
from lepton_cli.graph import cost as node_cost
from lepton_cli.machine import machine
from lepton_cli.prune import cost as cost_model
from lepton_cli.prune.cost import Widths
from lepton_cli.prune.depth import Columns
from lepton_cli.prune.stopwatch import LEAST, Stopwatch

#: Models that are timed at most, as far as every kind of layer gets one.
MODELS = 72
#: Widths of one kind that are timed at most, down to this share of the channels; between them time is interpolated.
POINTS, LOWEST = 6, 0.01
#: Seconds of timing, about; of slow models fewer are timed, so that it takes at most some times as long.
SECONDS, PATIENCE = 60.0, 3
#: How far multiply-accumulates may mislead about time, relatively: what a noisy measurement is weighed against.
TRUST = 0.5

Saved = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Times:
    """Time of a set of widths as a share of the original's, and how it follows from one group's width."""

    #: The analysed model with all its channels.
    full: float
    #: Share of the time that each node takes, [nodes], and the nodes that each column touches, [nodes, columns].
    nodes: NDArray[np.float64]
    touches: NDArray[np.bool_]
    #: Columns that belong to a branch when it is dropped: nodes of the branch, by column.
    gone: Mapping[int, NDArray[np.bool_]]
    #: By column: widths, rising, and the time saved at each with everything else at full width.
    saved: Sequence[tuple[Widths, Saved]]
    #: What `_one` found, by column and width: the same few are asked for again and again.
    _known: dict[tuple[int, int], tuple[NDArray[np.int64], float, float]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, widths: Widths) -> float:
        """Predicted share of the original's time."""
        left, rest = self._all(widths)
        return self.full - float(np.sum(self.nodes * (1 - left))) - rest

    def table(self, widths: Widths, group: int, levels: Widths) -> NDArray[np.float64]:
        """Time at every level of one column, the others as in `widths`."""
        left, rest = self._all(widths, group)
        return self.full - float(np.sum(self.nodes * (1 - left))) - rest - self._saved(group, levels, left)

    def _all(self, widths: Widths, but: int = -1) -> tuple[NDArray[np.float64], float]:
        """What all columns but one leave of every node's time, and what they save beyond."""
        left, rest = np.ones(len(self.nodes)), 0.0
        for column, width in enumerate(widths):
            if column != but and width != self.saved[column][0][-1]:
                where, share, remainder = self._one(column, int(width))
                left[where] *= 1 - share
                rest += remainder
        return left, rest

    def _one(self, column: int, width: int) -> tuple[NDArray[np.int64], float, float]:
        """The nodes that a column at this width makes faster, by which share, and what it saves beyond them."""
        found = self._known.get((column, width))
        if found is None:
            gain = np.interp(width, *self.saved[column])
            where = self.gone[column] if width == 0 else self.touches[:, column]
            share, remainder = _split(np.array([gain]), float(self.nodes[where].sum()), width == 0)
            found = np.flatnonzero(where), float(share[0]), float(remainder[0])
            self._known[column, width] = found
        return found

    def _saved(self, column: int, levels: Widths, left: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a column saves at each level of the time that the others leave."""
        gains = np.interp(levels, *self.saved[column])
        found = np.empty(len(levels))
        for zero in (False, True):
            these = (levels == 0) == zero
            if these.any():
                where = self.gone[column] if zero else self.touches[:, column]
                share, remainder = _split(gains[these], float(self.nodes[where].sum()), zero)
                found[these] = share * float(np.sum(self.nodes[where] * left[where])) + remainder
        return found


def _split(gains: NDArray[np.float64], own: float, dropped: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Savings as a share of the nodes' own time, at most all of it, and what is beyond; all goes with a branch."""
    part = np.minimum(gains / own, 1.0) if own > 0 else np.zeros(len(gains))
    share = np.ones(len(gains)) if dropped else part
    return share, gains - share * own


@dataclasses.dataclass(frozen=True)
class Timed:
    """One model to time: these columns, which are alike, all at one width."""

    members: tuple[int, ...]
    width: int


def trials(columns: Columns, run: float = 0.0, seconds: float = SECONDS, setup: float = 0.0) -> list[Timed]:
    """What to time so that every kind of layer is known at all widths, whichever will be offered.

    `run`, `setup`: seconds that one run of the model takes, and that it takes to be made; `seconds`: of all of it,
    about.
    """
    kinds = _kinds(columns)
    each = 2 * LEAST * run + setup
    most = min(MODELS, int(PATIENCE * seconds / each)) if each > 0 else MODELS
    points = max(1, min(POINTS, most // max(len(kinds), 1)))
    found = []
    for members, choice in kinds:
        places = np.unique(np.linspace(len(choice) - 1, 0, min(points, len(choice))).round().astype(int))
        found += [Timed(members, int(choice[place])) for place in places]
    return found


def measure(
    columns: Columns,
    chosen: Sequence[Timed],
    watch: Stopwatch,
    done: Callable[[], object],
    seconds: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ratios to the original's time and their standard errors: of the analysed model as it is, then of every trial.

    `done` is called after each model has been started.
    """
    orders = [np.arange(group.channels) for group in columns.plan.groups]

    def candidate(trial: Timed) -> Callable[[], ir.Model]:
        widths = columns.full
        widths[list(trial.members)] = trial.width
        return lambda: columns.cut(widths, orders)

    return watch.ratios([lambda: columns.plan.model, *map(candidate, chosen)], seconds, done)


def fitted(
    columns: Columns, chosen: Sequence[Timed], ratios: NDArray[np.float64], errors: NDArray[np.float64]
) -> Times:
    """What every width costs, as the ratios and errors of `measure` tell."""
    full = float(ratios[0])
    nodes, touches, gone = _shares(columns, full)
    expected = _expected(columns, chosen, nodes, gone, full)
    tables: list[dict[int, float]] = [{int(width): 0.0} for width in columns.full]
    alike = _signatures(columns)
    for trial, ratio, error, guess in zip(chosen, ratios[1:], errors[1:], expected, strict=True):
        noise = full * float(np.hypot(error, errors[0])) / len(trial.members)
        gain = _weighed((full - float(ratio)) / len(trial.members), noise, guess)
        for column in range(columns.count):
            if alike[column, trial.width == 0] == alike[trial.members[0], trial.width == 0]:
                tables[column][trial.width] = gain
    saved = [(np.array(sorted(t), np.int64), np.array([t[w] for w in sorted(t)])) for t in tables]
    return Times(full, _balanced(nodes, gone, saved), touches, gone, saved)


def _weighed(measured: float, noise: float, guess: float) -> float:
    """The measurement where it is precise, the guess where it is not: else the luckiest noise would be chosen."""
    doubt = TRUST * abs(guess)
    return (measured * doubt**2 + guess * noise**2) / max(doubt**2 + noise**2, 1e-30)


def _expected(
    columns: Columns,
    chosen: Sequence[Timed],
    nodes: NDArray[np.float64],
    gone: Mapping[int, NDArray[np.bool_]],
    full: float,
) -> list[float]:
    """What each trial should save, for one of its columns, if time were multiply-accumulates."""
    plan = columns.plan
    widths = np.array([group.channels for group in plan.groups], np.int64)
    macs = cost_model.macs(plan.model, plan.coupling, plan.groups)
    whole = max(macs(widths), 1.0)
    return [
        float(nodes[gone[trial.members[0]]].sum())
        if trial.width == 0
        else full * (1 - float(macs.table(widths, trial.members[0], np.array([trial.width]))[0]) / whole)
        for trial in chosen
    ]


def block(group: Group) -> int:
    """Channels of the group that fill a vector block of the machine, or half of one where the layer is narrow."""
    whole = machine().vector_block
    each: int = max(group.slices[(port.weight, port.axis)].shape[1] for port in group.producers)
    narrow = group.channels * each < 2 * whole
    return max(1, (whole // 2 if narrow else whole) // each)


def _narrower(group: Group) -> Widths:
    """Widths below the full one, widest first: in between time is a matter of whole blocks."""
    step, least = block(group), math.ceil(LOWEST * group.channels)
    widths = {least, *range(step, group.channels, step)}
    return np.array(sorted((width for width in widths if least <= width < group.channels), reverse=True), np.int64)


def _kinds(columns: Columns) -> list[tuple[tuple[int, ...], Widths]]:
    """Columns alike that share no node, with the widths below the full one (0 apart from the others)."""
    alike = _signatures(columns)
    nodes = {key: _nodes_of(columns, *key) for key in alike}
    found: dict[object, tuple[list[int], Widths]] = {}
    groups = columns.plan.groups
    for column in range(columns.count):
        offered = [(False, _narrower(groups[column]))] if column < len(groups) else []
        offered += [(True, np.zeros(1, np.int64))] if column in columns.branches else []
        for zero, widths in offered:
            if not len(widths):
                continue
            members, _ = found.setdefault((alike[column, zero], zero), ([], widths))
            if all(nodes[column, zero].isdisjoint(nodes[other, zero]) for other in members):
                members.append(column)
    return [(tuple(members), widths) for members, widths in found.values()]


def _nodes_of(columns: Columns, column: int, dropped: bool) -> set[str]:
    if dropped:
        return set(columns.branches[column].nodes) if column in columns.branches else set()
    if column >= len(columns.plan.groups):
        return set()
    group = columns.plan.groups[column]
    return {port.node for port in (*group.producers, *group.consumers)}


def _signatures(columns: Columns) -> dict[tuple[int, bool], object]:
    """What makes two columns cost the same, for a width (`False`) and for dropping the branch (`True`)."""
    plan = columns.plan
    shapes = plan.coupling.facts.shapes
    nodes = {node.name or "": node for node in plan.model.graph}

    def of(node: ir.Node) -> object:
        values = [
            None if v is None else (shapes.get(v.name or ""), v.is_initializer()) for v in (*node.inputs, *node.outputs)
        ]
        return node.op_type, repr(values), repr(sorted((k, repr(a.value)) for k, a in node.attributes.items()))

    def at(group: Group, port: Port) -> object:
        return port.side, port.axis, group.slices[(port.weight, port.axis)].shape, of(nodes[port.node])

    found: dict[tuple[int, bool], object] = {}
    for column in range(columns.count):
        found[column, False] = column if column >= len(plan.groups) else None
        if column < len(plan.groups):
            group = plan.groups[column]
            found[column, False] = repr([at(group, port) for port in (*group.producers, *group.consumers)])
        branch = columns.branches.get(column)
        found[column, True] = repr([of(nodes[name]) for name in branch.nodes]) if branch else ("none", column)
    return found


def _shares(
    columns: Columns, full: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_], dict[int, NDArray[np.bool_]]]:
    """A first guess of every node's time from its multiply-accumulates; who touches it."""
    plan = columns.plan
    counted = node_cost.macs(plan.model, plan.coupling.facts.shapes)
    names = list(counted)
    total = max(sum(counted.values()), 1)
    nodes = np.array([full * counted[name] / total for name in names])
    touches = np.zeros((len(names), columns.count), np.bool_)
    for column in range(len(plan.groups)):
        mine = _nodes_of(columns, column, False)
        touches[:, column] = [name in mine for name in names]
    gone = {column: np.array([name in set(b.nodes) for name in names]) for column, b in columns.branches.items()}
    return nodes, touches, gone


def _balanced(
    nodes: NDArray[np.float64], gone: Mapping[int, NDArray[np.bool_]], saved: Sequence[tuple[Widths, Saved]]
) -> NDArray[np.float64]:
    """Nodes of a branch together take the time that dropping it saves."""
    scaled = nodes.copy()
    for column, where in gone.items():
        widths, gains = saved[column]
        if widths[0] == 0 and scaled[where].sum() > 0 and gains[0] > 0:
            scaled[where] *= gains[0] / scaled[where].sum()
    return scaled
