"""Small models and data sets for the measurement tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def model(text: str, **weights: NDArray[Any]) -> bytes:
    """A model from ONNX text, with initializers added by name."""
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=domains, ir_version=8).SerializeToString())


def identity(shape: str = "N, 3", extra: str = "y = Identity (x)") -> bytes:
    """`y = x`, so that the data itself says what the outputs are."""
    return model(f"g (float[{shape}] x) => (float[{shape}] y) {{ {extra} }}")


def linear(weight: NDArray[Any], name: str = "g") -> bytes:
    """`y = x @ weight`."""
    rows, columns = weight.shape
    return model(f"{name} (float[N, {rows}] x) => (float[N, {columns}] y) {{ y = MatMul (x, w) }}", w=weight)


def chain(count: int, width: int, shared: bool = True) -> bytes:
    """`count` MatMul-Relu pairs of `width` on input `x` [N, width]."""
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for index in range(count):
        name = "w" if shared else f"w{index}"
        if index == 0 or not shared:
            value = (generator.standard_normal((width, width)) / width**0.5).astype(np.float32)
            weights.append(numpy_helper.from_array(value, name))
        target = "y" if index == count - 1 else f"h{index + 1}"
        nodes.append(helper.make_node("MatMul", ["x" if index == 0 else f"h{index}", name], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [target]))
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", io[:1], io[1:], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())
