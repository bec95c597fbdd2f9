"""What differs between two models."""

from __future__ import annotations

import dataclasses

import onnx
import onnx_ir as ir

from lepton_cli.graph.details import GraphDiff
from lepton_cli.graph.diff import diff


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer as `diff` takes it."""

    node: str
    op: str = "Conv"
    dtype: str = "float32"
    parameters: int = 10
    weight_shape: tuple[int, ...] = (2, 5)


def model(text: str) -> ir.Model:
    return ir.from_proto(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> {text}')
    )


PLAIN = model("g (float[N, 4] x) => (float[N, 4] y) { a = Relu (x) y = Relu (a) }")


def test_equal_models_differ_in_nothing() -> None:
    found = diff(PLAIN, PLAIN, [Row("a"), Row("b")], [Row("a"), Row("b")])
    assert found == GraphDiff(nodes=(2, 2), layers_same=2)


def test_operators_are_counted_with_their_domain_and_inside_branches() -> None:
    other = model("g (float[N, 4] x) => (float[N, 4] y) { a = com.microsoft.Gelu (x) b = Relu (a) y = Sigmoid (b) }")
    found = diff(PLAIN, other, [], [])
    assert found.operators == {"Relu": (2, 1), "Sigmoid": (0, 1), "com.microsoft.Gelu": (0, 1)}
    assert found.nodes == (2, 3)


def test_widths_and_types_of_a_layer_stand_side_by_side() -> None:
    found = diff(
        PLAIN,
        PLAIN,
        [Row("a"), Row("b"), Row("gone", "BatchNormalization")],
        [Row("a"), Row("b_quant", dtype="int8", weight_shape=(1, 5), parameters=5), Row("new", "Gemm")],
    )
    changed, gone, new = found.layers
    assert (changed.node, changed.change) == ("b", "changed")
    assert changed.dtype == ("float32", "int8")
    assert changed.shape == ((2, 5), (1, 5))
    assert changed.parameters == (10, 5)
    assert (gone.change, gone.op) == ("removed", ("BatchNormalization", None))
    assert (new.change, new.op) == ("added", (None, "Gemm"))
    assert found.layers_same == 1
    assert GraphDiff.model_validate_json(found.model_dump_json()) == found


def test_other_inputs_are_named() -> None:
    other = model("g (float[N, 8] z) => (float[N, 8] y) { y = Relu (z) }")
    found = diff(PLAIN, other, [], [])
    assert found.inputs == (("x float32 [N, 4]",), ("z float32 [N, 8]",))
    assert found.outputs == (("y float32 [N, 4]",), ("y float32 [N, 8]",))
