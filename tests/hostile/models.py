"""Small models in text, and helpers to put them on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def parse(text: str, opset: int = 17, ir_version: int = 8, domains: str = "") -> onnx.ModelProto:
    """A model from ONNX text: the graph only, the header is made here."""
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}{domains}]>\n{text}')


def weights(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Random weights of about unit gain."""
    return (np.random.default_rng(seed).standard_normal(shape) / max(1, shape[-1]) ** 0.5).astype(dtype)


def tensor(name: str, array: np.ndarray) -> TensorProto:
    """An initializer."""
    return numpy_helper.from_array(array, name)


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str | None]]],
    outputs: dict[str, tuple[int, list[int | str | None] | None]],
    initializers: list[TensorProto] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model from nodes; `inputs` and `outputs`: name -> (element type, shape)."""
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in group.items()]
        for group in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", *infos, initializer=initializers or [])
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def mlp(width: int = 16) -> onnx.ModelProto:
    """Two Gemm layers with a Relu between: the model to damage."""
    return model(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "first"),
            helper.make_node("Relu", ["h"], ["r"], "act"),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], "second"),
        ],
        {"x": (FLOAT, ["n", 8])},
        {"y": (FLOAT, ["n", 4])},
        [
            tensor("w1", weights(8, width)),
            tensor("b1", weights(width)),
            tensor("w2", weights(width, 4, seed=1)),
            tensor("b2", weights(4)),
        ],
    )


def save(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a model."""
    path.write_bytes(proto.SerializeToString())
    return path


def edited(edit: Callable[[onnx.ModelProto], object]) -> bytes:
    """The MLP's bytes after `edit`."""
    proto = mlp()
    edit(proto)
    return proto.SerializeToString()
