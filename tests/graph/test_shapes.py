"""Shapes that onnx infers, and what stays open."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from lepton_cli.graph import shapes


@pytest.mark.parametrize("rank", ["b, 32", "b", "b, 3, 8, 8, 8"])
def test_a_convolution_of_another_rank_than_its_weight_has_an_open_shape(rank: str) -> None:
    """Nothing valid, but anybody's file may hold it; onnx 1.21 ended the process here, and 1.22 elsewhere."""
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    main (float[{rank}] x) => (float y) <float[1, 3, 1, 1] w = {{1, 1, 1}}> {{ y = Conv (x, w) }}""")
    assert shapes.infer(ir.from_proto(proto))["y"] == shapes.Inferred(None, ir.DataType.FLOAT)
