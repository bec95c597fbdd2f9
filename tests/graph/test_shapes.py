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


@pytest.mark.parametrize("stated", ["2, 2", "5, 5"])
def test_branches_say_what_shape_an_if_has(stated: str) -> None:
    """Whatever a file says of it, and with axes that stand outside."""
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    main (bool c, float[2, 1, 3] x) => (float y) <int64[1] axis = {{1}}> {{
      y = If (c) <then_branch = a () => (float[{stated}] u) {{ u = Squeeze (x, axis) }},
                  else_branch = b () => (float[{stated}] v) {{ s = Squeeze (x, axis) v = Relu (s) }}>
    }}""")
    model: ir.Model = ir.from_proto(proto)
    assert shapes.infer(model)["y"].shape == (2, 3)
    assert model.graph.initializers["axis"].const_value.name == "axis", "tensors are shared with what is inferred from"


@pytest.mark.parametrize(
    ("body", "fails"),
    [
        ("y = Gemm (x, w)", True),
        ("y = MatMul (x, w)", False),
        ("s = Slice (x, one, two) t = Conv (x, x) y = Gemm (s, w)", True),
        ("y = If (c) <then_branch = a () => (float u) { u = Gemm (x, w) },"
         " else_branch = b () => (float v) { v = Relu (x) }>", False),
        ("z = If (c) <then_branch = a () => (float[] u) { u = Relu (x) },"
         " else_branch = b () => (float[] v) { v = Relu (x) }> y = Gemm (z, w)", False),
    ],
)  # fmt: skip
def test_graphs_that_no_runtime_can_run(body: str, fails: bool) -> None:
    """Gemm takes matrices; what a branch holds need not run."""
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    main (bool c, float[2, 1, 3] x) => (float y)
    <float[3, 1] w = {{1, 2, 3}}, int64[1] one = {{1}}, int64[1] two = {{2}}> {{ {body} }}""")
    assert shapes.contradicts_itself(ir.from_proto(proto)) == fails
