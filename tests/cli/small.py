"""A tiny classifier with data and a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES, CLASSES, SAMPLES = 8, 3, 60
#: Measuring stops soon: these tests are about what is said, not about the numbers.
QUICK = ("--time", "50 ms", "--threads", "1")


def weights(seed: int = 0) -> np.ndarray:
    """Weights that tell the classes of `data` apart."""
    return np.random.default_rng(seed).standard_normal((FEATURES, CLASSES)).astype(np.float32)


def model(
    path: Path, *, scale: float = 1.0, noise: float = 0.0, name: str = "x", hidden: int = 1, nan: bool = False
) -> Path:
    """`hidden` identity layers, then a linear classifier whose weights carry `noise`; `nan`: its outputs are NaN."""
    matrix = weights() * scale + noise * weights(1)
    nodes, initializers, current = [], [numpy_helper.from_array(matrix, "w")], name
    for index in range(hidden):
        eye = np.eye(FEATURES, dtype=np.float32)
        initializers.append(numpy_helper.from_array(eye, f"eye{index}"))
        nodes.append(helper.make_node("MatMul", [current, f"eye{index}"], [f"h{index}"], f"hidden{index}"))
        current = f"h{index}"
    nodes.append(helper.make_node("MatMul", [current, "w"], ["scores" if nan else "y"], "classifier"))
    if nan:
        nodes += [
            helper.make_node("Sub", ["scores", "scores"], ["zero"], "zero"),
            helper.make_node("ReduceMax", ["zero"], ["one"], "one", keepdims=1),
            helper.make_node("Add", ["one", "limit"], ["row"], "row"),
            helper.make_node("Greater", ["scores", "row"], ["large"], "large"),
            helper.make_node("Where", ["large", "nan", "scores"], ["y"], "where"),
        ]
        initializers += [
            numpy_helper.from_array(np.array(0.5, np.float32), "limit"),
            numpy_helper.from_array(np.array(np.nan, np.float32), "nan"),
        ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def data(path: Path, *, labels: np.ndarray | None = None) -> Path:
    """Samples with the labels that the noiseless model gives them."""
    x = np.random.default_rng(2).standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    np.savez(path, x=x, labels=(x @ weights()).argmax(1) if labels is None else labels)
    return path


def recipe(path: Path, *, evaluate: str = "accuracy: {metric: top1}", gates: str = "", labels: str = "labels") -> Path:
    """A recipe that measures quickly."""
    path.write_text(
        f"""version: 1
name: small
data:
  evaluation: {{path: data.npz, inputs: {{x: x}}, labels: {labels}}}
steps:
  - step: simplify
evaluate:
  {evaluate}
  latency: {{time: 50 ms, threads: 1}}
  memory: false
{gates}"""
    )
    return path
