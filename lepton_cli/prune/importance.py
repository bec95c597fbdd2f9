"""How much every channel of a group matters, by six measures, and the order in which channels go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling.links import Group
from lepton_cli.probe import activations, linear, moments, parts
from lepton_cli.probe.linear import Linear, Matrix
from lepton_cli.prune import hessian, recover
from lepton_cli.prune.hessian import Ranking, Side

Scores = NDArray[np.float64]
#: Gram matrices kept at once, in bytes.
MEMORY = 600_000_000


def data_free(kind: str, model: ir.Model, group: Group, scales: Mapping[str, Scores]) -> Scores:
    """`l1`, `l2`, `zscore` or `bn_scale` of every channel, aggregated over the group, as shares of the group's sum.

    Weight measures sum over the producing and consuming slices, each tensor first normalised by its mean so that no
    tensor dominates. `bn_scale` multiplies over the group's normalisations; a group without any is measured by `l2`.
    """
    if kind == "bn_scale":
        known = [
            scales[port.node]
            for port in group.producers
            if port.node in scales and len(scales[port.node]) == group.channels
        ]
        if known:
            return _shares(np.prod([_shares(scale) for scale in known], axis=0))
        kind = "l2"
    total = np.zeros(group.channels)
    ports = {(port.weight, port.axis) for port in (*group.producers, *group.consumers)}
    for weight, axis in sorted(ports):
        value = model.graph.initializers[weight].const_value
        if value is None:
            continue
        rows = np.moveaxis(np.asarray(value.numpy(), np.float64), axis, 0)
        rows = rows.reshape(len(rows), -1)
        if kind == "zscore":
            rows = (rows - rows.mean()) / max(float(rows.std()), 1e-12)
        size = np.abs(rows).sum(axis=1) if kind == "l1" else np.square(rows).sum(axis=1)
        total += _shares(size[group.slices[(weight, axis)]].sum(axis=1))
    return _shares(total)


def _shares(values: Scores) -> Scores:
    return np.asarray(values / max(float(values.sum()), 1e-30))


def by_scores(scores: Scores) -> Ranking:
    """Least score first; the loss is the share of importance that is gone."""
    order = np.argsort(scores, kind="stable")
    return Ranking(order, np.cumsum(scores[order])[:-1])


def consumers(group: Group, layers: Mapping[str, Linear]) -> list[tuple[Linear, NDArray[np.int64]]]:
    """Linear layers that read the group, with the features [channels, features] each channel has in them."""
    found = []
    for port in group.consumers:
        layer = layers.get(port.node)
        if layer is not None and layer.weight == port.weight and port.axis == layer.in_axis:
            positions = group.slices[(port.weight, port.axis)]
            size = layer.per_channel
            found.append((layer, (positions[:, :, None] * size + np.arange(size)).reshape(group.channels, -1)))
    return found


def chunks(groups: Sequence[Group], layers: Mapping[str, Linear], model: ir.Model) -> list[list[Group]]:
    """Groups whose Gram matrices fit into memory together."""
    found: list[list[Group]] = [[]]
    used = 0
    for group in groups:
        need = sum(16 * (linear.matrix_of(model, layer).shape[0] + 1) ** 2 for layer, _ in consumers(group, layers))
        if found[-1] and used + need > MEMORY:
            found.append([])
            used = 0
        found[-1].append(group)
        used += need
    return found


def grams(
    model: ir.Model, groups: Sequence[Group], layers: Mapping[str, Linear], source: recover.Calibration
) -> dict[str, Matrix]:
    """Gram matrices of all layers that read these groups, by node."""
    needed = list({layer.node: layer for group in groups for layer, _ in consumers(group, layers)}.values())
    if not needed:
        return {}
    sizes = [len(linear.matrix_of(model, layer)) for layer in needed]
    inner = activations.Activations(model, [layer.input for layer in needed], source.workdir, source.threads)
    return moments.grams(
        needed, sizes, recover.fitting(model, source), inner.run, 1 / recover.count(model, source), source.seed
    )


def with_data(
    kind: str, model: ir.Model, group: Group, layers: Mapping[str, Linear], grams: Mapping[str, Matrix]
) -> Ranking:
    """`hessian` or `activation` ranking of one group."""
    sides = []
    last = _last(model, layers)
    for layer, blocks in consumers(group, layers):
        weight = linear.matrix_of(model, layer)
        bias = linear.bias_of(model, layer)
        row = np.zeros((1, weight.shape[1])) if bias is None else bias[None]
        gram, weight = grams[layer.node], np.concatenate([weight, row])
        sides.append(Side(gram, _weighed(gram, weight) if layer.node in last else weight, blocks))
    if kind == "hessian":
        return hessian.rank(sides)
    scores = np.zeros(group.channels)
    for side in sides:
        energy = np.diag(side.gram) * np.sum(side.weight**2, axis=1)
        scores += energy[side.blocks].sum(axis=1) / hessian.energy(side.gram, side.weight)
    return by_scores(scores)


def _last(model: ir.Model, layers: Mapping[str, Linear]) -> set[str]:
    """Layers with no other one between them and an output: their columns may be of different kinds, as outputs are."""
    found, seen = set[str](), set[ir.Node]()
    waiting = [output.producer() for output in model.graph.outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (name := node.name or "") in layers:
            found.add(name)
        else:
            waiting += [value.producer() for value in node.inputs if value is not None]
    return found


def _weighed(gram: Matrix, weight: Matrix) -> Matrix:
    """Weights for outputs over the spread of their kind (boxes, scores), so that every kind counts alike.

    `weight`: [features + 1, outputs]. Kinds are told apart by what is computed, as in the model's outputs.
    """
    if not 1 < weight.shape[1] <= parts.NARROW:
        return weight
    rows = max(float(gram[-1, -1]), 1.0)
    squares = np.sum(weight * (gram @ weight), axis=0)
    spread = squares - np.square(gram[-1] @ weight) / rows
    _, kinds = parts.kinds_of(np.sqrt(np.maximum(squares, 0.0) / rows), parts.COLUMNS_APART)
    power = np.ones(len(squares))
    for kind in kinds:
        # What never changes has no spread: it counts as if it did a little.
        power[kind] = max(float(spread[kind].sum()), hessian.RIDGE * float(squares[kind].sum()), 1e-12)
    return weight if len(kinds) == 1 else np.asarray(weight / np.sqrt(power))
