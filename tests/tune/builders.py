"""A judge, trials and a small network, made in code."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.measure.results import Accuracy, Latency, LatencyChange, LatencyTable, MetricChange, MetricValue, Size
from lepton_cli.recipe.schema import Gate
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report.trial import Trial
from lepton_cli.tune.limits import Judge
from tests.report.builders import environment

FEATURES, CLASSES, SAMPLES = 8, 4, 120


def size(file: int = 1000) -> Size:
    return Size(file=file, external=0, gzip=file, parameters=file // 4, nonzeros=file // 4, macs=file, nodes=5)


def accuracy(drop: float = 0.0, *, n: int = 1000, half: float = 0.01) -> Accuracy:
    """Top-1 of 90 % that falls by `drop`, with an interval of `half` on each side."""

    def value(amount: float) -> MetricValue:
        return MetricValue(metric="top1", output="y", value=amount, low=amount - half, high=amount + half, n=n)

    change = MetricChange(
        metric="top1",
        output="y",
        original=0.9,
        compressed=0.9 - drop,
        difference=-drop,
        low=-drop - half,
        high=-drop + half,
        n=n,
        method="newcombe",
    )
    return Accuracy(values={"original": (value(0.9),), "compressed": (value(0.9 - drop),)}, changes=(change,))


def latency(ratio: float, *, batch: int = 1, half: float = 0.01) -> LatencyTable:
    """`half`: of the ratio's interval, as a share of it."""

    def row(variant: str, median: float) -> Latency:
        low, high = median * 0.99, median * 1.01
        return Latency(variant=variant, provider="cpu", batch=batch, threads=1, median=median, low=low, high=high,
                       n=100, throughput=batch / median)  # fmt: skip

    change = LatencyChange(provider="cpu", batch=batch, threads=1, original=1e-3, compressed=1e-3 * ratio,
                           ratio=ratio, low=ratio * (1 - half), high=ratio * (1 + half), pairs=100)  # fmt: skip
    return LatencyTable(results=(row("original", 1e-3), row("compressed", 1e-3 * ratio)), changes=(change,))


def trial(name: str = "a", **fields: Any) -> Trial:
    """A trial measured to the end; its key is its name."""
    given: dict[str, Any] = {"reached": "latency", "size": size(500), "accuracy": accuracy(), "latency": latency(0.5)}
    return Trial(key=fields.pop("key", name), name=name, steps=({"step": "simplify"},), **{**given, **fields})


def gate(metric: str, **limits: Any) -> Gate:
    return Gate.model_validate({"metric": metric, **limits})


def judge(*limits: Gate, goal: str | Objective = "latency.median") -> Judge:
    objective = Objective(metric=goal) if isinstance(goal, str) else goal
    return Judge(limits, objective, size(1000), environment())


def network(path: Path) -> Path:
    """8 -> 48 -> 32 -> 4 with ReLU, wide enough to lose most of its channels."""
    source = np.random.default_rng(0)
    widths = (FEATURES, 48, 32, CLASSES)
    nodes, weights, current = [], [], "x"
    for index, (rows, columns) in enumerate(itertools.pairwise(widths)):
        matrix = source.standard_normal((rows, columns)).astype(np.float32) / np.sqrt(rows).astype(np.float32)
        bias = source.standard_normal(columns).astype(np.float32) * np.float32(0.1)
        weights += [numpy_helper.from_array(matrix, f"w{index}"), numpy_helper.from_array(bias, f"b{index}")]
        last = index == len(widths) - 2
        out = "y" if last else f"g{index}"
        nodes.append(helper.make_node("Gemm", [current, f"w{index}", f"b{index}"], [out], f"layer{index}"))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"h{index}"], f"relu{index}"))
            current = f"h{index}"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def data(path: Path, model: Path) -> Path:
    """Samples with the labels that the network itself gives them."""
    from lepton_cli.runtime import Session

    x = np.random.default_rng(1).standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    np.savez(path, x=x, labels=Session(model.read_bytes(), threads=1).run({"x": x})["y"].argmax(1))
    return path


def recipe(path: Path, tune: str, *, steps: str = "", latency: str = "false", memory: str = "false") -> Path:
    """A recipe to tune that measures nothing but accuracy and size unless told to."""
    path.write_text(
        f"""version: 1
name: net
data:
  calibration: {{path: data.npz, inputs: {{x: x}}}}
  evaluation: {{path: data.npz, inputs: {{x: x}}, labels: labels}}
{steps}
evaluate: {{accuracy: {{metric: top1}}, latency: {latency}, memory: {memory}}}
tune: {tune}
"""
    )
    return path
