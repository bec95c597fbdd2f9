"""`inspect` on graphs whose shapes nobody can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from lepton_cli.commands.inspect import inspect
from lepton_cli.model import io
from tests.quantize.builders import Graph

ELU = """
<ir_version: 8, opset_import: ["" : 18]>
elu (float[3, 4, 5] x) => (float[3, 4, 5] y) {
    two = Constant <value_float: float = 2.0> ()
    alpha = CastLike (two, x)
    zero = Constant <value: tensor = float {0}> ()
    nothing = CastLike (zero, x)
    below = Less (x, nothing)
    grown = Exp (x)
    scaled = Mul (alpha, grown)
    y = Where (below, scaled, x)
}
"""


def test_shapes_that_inference_gets_wrong(tmp_path: Path) -> None:
    path = tmp_path / "elu.onnx"
    onnx.save(onnx.parser.parse_model(ELU), path)
    found = inspect(path)
    assert found["operators"]["Where"] == 1
    assert not any(group["prunable"] for group in found["channel_groups"])


def test_weights_in_constant_nodes_and_of_every_operator_are_seen(tmp_path: Path) -> None:
    """Exporters of other frameworks keep weights in Constant nodes, and not all weights belong to a Conv."""
    graph = Graph()
    x = graph.take("x", ["b", 3, 8, 8])
    kernel = numpy_helper.from_array(np.ones((16, 3, 3, 3), np.float32))
    found = graph.op("Conv", x, graph.op("Constant", value=kernel), pads=[1, 1, 1, 1])
    path = tmp_path / "constants.onnx"
    path.write_bytes(
        io.to_bytes(graph.model(graph.op("ConvTranspose", found, graph.constant(np.ones((16, 4, 2, 2), np.float32)))))
    )
    told = inspect(path)
    assert told["quantizable"] == "1 of 1 Conv, Gemm and MatMul nodes; weights of other operators: 1 ConvTranspose"
    fates = {layer["op"]: layer["int8"] for layer in told["layers"]}
    assert fates["Conv"] == "yes"
    assert fates["ConvTranspose"].startswith("ConvTranspose stays float")
