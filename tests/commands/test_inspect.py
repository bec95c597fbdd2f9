"""`inspect` on graphs whose shapes nobody can tell."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser

from lepton_cli.commands.inspect import inspect

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
