"""Graphs for one sample at a time, and `batch.free` run on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lepton_cli.data.memory import Arrays
from lepton_cli.data.synthetic import synthetic
from lepton_cli.graph import batch
from lepton_cli.graph.spec import BatchFree
from lepton_cli.model import io
from lepton_cli.step import Outcome
from tests.quantize.builders import Graph, context

#: One sample (without the axis of the samples) -> what comes out, as numpy has it.
Formula = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass
class Case:
    """A frozen graph, what it computes of a sample `[1, ...]`, where samples lie in its output, and what changed."""

    model: ir.Model
    formula: Formula
    changed: dict[str, str] = dataclasses.field(default_factory=dict)
    axis: int = 0
    shape: tuple[Any, ...] | None = None


def freed(model: ir.Model, folder: Path, data: Arrays | None = None, **options: Any) -> Outcome:
    made_up = synthetic(io.inputs(model), seed=0, samples=8, batch=1)
    check = made_up if data is None else data.of(io.inputs(model), "check")
    return batch.free(model, BatchFree(**options), context(None, folder, check=check))


def softmax(x: np.ndarray) -> np.ndarray:
    made = np.exp(x - x.max(-1, keepdims=True))
    return made / made.sum(-1, keepdims=True)


def weight(graph: Graph, *shape: int) -> tuple[str, np.ndarray]:
    array = graph.random.normal(size=shape).astype(np.float32)
    return graph.constant(array), array


def numbers(graph: Graph, *sizes: int) -> str:
    return graph.constant(np.array(sizes, np.int64))


def rows() -> Case:
    """Boxes as detectors give them: `[1, -1, 4]`."""
    graph = Graph()
    turned = graph.op("Transpose", graph.take("x", [1, 4, 2, 3]), perm=[0, 2, 3, 1])
    made = graph.op("Softmax", graph.op("Reshape", turned, numbers(graph, 1, -1, 4)), axis=-1)
    formula = lambda x: softmax(x.transpose(0, 2, 3, 1).reshape(1, 6, 4))  # noqa: E731
    return Case(graph.model(made), formula, {"Reshape_1": "[1, -1, 4] became [0, -1, 4]"})


def simple(*shape: int | str, opset: int = 17, then: Callable[[Graph, str], str]) -> ir.Model:
    graph = Graph(opset)
    return graph.model(then(graph, graph.take("x", list(shape))))
