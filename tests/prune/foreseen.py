"""Networks whose files are foreseen, and the files that drafts of them make."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lepton_cli.coupling import branches
from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.prune import depth
from lepton_cli.prune.allocate import Table
from lepton_cli.prune.analysis import analysed, feeds
from lepton_cli.prune.prospects import Prospects
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.quantize.draft import coarse, drafting
from lepton_cli.step import Context, Options
from lepton_cli.steps import STEPS
from lepton_cli.tune.candidate import read_steps
from tests.coupling.networks import Network
from tests.prune.context import context, images
from tests.quantize.builders import Graph, mlp, rows

#: Steps of every precision as a recipe writes them.
STORED: dict[str, list[dict[str, Any]]] = {
    "float": [],
    "fp16": [{"step": "convert.fp16"}],
    "int8": [{"step": "quantize.static"}],
    "dynamic": [{"step": "quantize.dynamic"}],
    "weights8": [{"step": "quantize.weights", "bits": 8}],
    "weights4": [{"step": "quantize.weights", "bits": 4}],
    "zeros": [{"step": "quantize.weights", "bits": 4, "symmetric": False}],
}


def convolutions() -> ir.Model:
    """A chain of four convolutions and a classifier, input `x` [batch, 3, 8, 8]."""
    n = Network()
    x = n.input("x", "batch", 3, 8, 8)
    for before, after in ((3, 32), (32, 48), (48, 64), (64, 32)):
        x = n.node("Relu", n.conv(x, before, after))
    pooled = n.node("Flatten", n.node("GlobalAveragePool", x))
    return n.model(n.node("Gemm", pooled, n.weight(10, 32), n.weight(10), transB=1))


def unfilled() -> ir.Model:
    """Three convolutions, of which the first lacks four channels of a block, input `x` [batch, 3, 8, 8]."""
    n = Network()
    x = n.input("x", "batch", 3, 8, 8)
    for before, after in ((3, 60), (60, 64), (64, 32)):
        x = n.node("Relu", n.conv(x, before, after))
    return n.model(n.node("GlobalAveragePool", x))


def nested() -> ir.Model:
    """A block of two convolutions, both inside and behind one of two, input `x` [batch, 3, 8, 8]."""
    n = Network()
    x = n.node("Relu", n.conv(n.input("x", "batch", 3, 8, 8), 3, 32))
    y = n.conv(x, 32, 48)
    y = n.node("Add", y, n.conv(n.node("Relu", n.conv(y, 48, 40)), 40, 48))
    x = n.node("Relu", n.node("Add", x, n.conv(y, 48, 32)))
    pooled = n.node("Flatten", n.node("GlobalAveragePool", x))
    return n.model(n.node("Gemm", pooled, n.weight(10, 32), n.weight(10), transB=1))


def residual() -> ir.Model:
    """Three blocks of two or three convolutions around a stream of 32 channels, input `x` [batch, 3, 8, 8]."""
    n = Network()
    x = n.node("Relu", n.conv(n.input("x", "batch", 3, 8, 8), 3, 32))
    for inner in ((32,), (48, 32), (32,)):
        y = x
        for before, after in itertools.pairwise((32, *inner)):
            y = n.node("Relu", n.conv(y, before, after))
        x = n.node("Relu", n.node("Add", x, n.conv(y, inner[-1], 32)))
    pooled = n.node("Flatten", n.node("GlobalAveragePool", x))
    return n.model(n.node("Gemm", pooled, n.weight(10, 32), n.weight(10), transB=1))


def transformer() -> ir.Model:
    """A block of attention, four heads of 32, and of a layer of 256, input `x` [b, 4, 128]."""
    g = Graph()
    x = g.linear(g.take("x", ["b", 4, 128]), 128, 128, gemm=False)
    shape, flat = g.constant(np.array([0, 4, -1, 32])), g.constant(np.array([0, 4, -1]))
    query, keys, values = (
        g.op("Transpose", g.op("Reshape", g.linear(x, 128, 128, gemm=False), shape), perm=perm)
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    weights = g.op("Softmax", g.op("MatMul", query, keys), axis=-1)
    mixed = g.op("Transpose", g.op("MatMul", weights, values), perm=[0, 2, 1, 3])
    x = g.op("Add", x, g.linear(g.op("Reshape", mixed, flat), 128, 128, gemm=False))
    wide = g.op("Relu", g.linear(x, 128, 256, gemm=False))
    x = g.op("Add", x, g.linear(wide, 256, 128, gemm=False))
    return g.model(g.linear(x, 128, 128, gemm=False))


#: By name: how the model is made, and its data.
NETWORKS: dict[str, tuple[Callable[[], ir.Model], Callable[[], Arrays]]] = {
    "convolutions": (convolutions, images),
    "residual": (residual, images),
    "unfilled": (unfilled, images),
    "nested": (nested, images),
    "mlp": (mlp, rows),
    "transformer": (
        transformer,
        lambda: Arrays({"x": np.random.default_rng(1).normal(size=(8, 4, 128)).astype(np.float32)}),
    ),
}


def looked_at(name: str, folder: Path) -> tuple[Prospects, Context]:
    """What may go of a network, with made-up losses: ranking takes longer than all that is tested with it."""
    make, data = NETWORKS[name]
    model = make()
    for node in model.graph:  # cutting forgets the shapes in between, a hundredth of so small a file
        for value in node.outputs:
            value.shape = None
    given = context(model, folder, check=data())
    plan = analysed(model, PruneChannels(), feeds(model, given))
    columns = depth.columns(plan, branches.find(plan.model, plan.coupling.facts))
    random = np.random.default_rng(0)
    tables = []
    for column, channels in enumerate(columns.full):
        levels = np.arange(channels, 0, -1)
        levels = np.append(levels, 0) if column in columns.branches else levels
        steps = random.exponential(1, len(levels) - 1) / channels
        tables.append(Table(levels, np.concatenate([[0.0], np.cumsum(steps)])))
    return Prospects(plan, columns, tables, given), given


def steps(precision: str) -> tuple[Options, ...]:
    return read_steps(STORED[precision])


def written(model: ir.Model, precision: str, given: Context) -> ir.Model:
    """The model as a draft of these steps leaves it."""
    for step in steps(precision):
        rough = coarse(step)
        model = STEPS[rough.step].apply(model, rough, drafting(rough, given)).model
    return model


def length(model: ir.Model) -> int:
    """Bytes of a file."""
    return len(io.to_bytes(model))
