"""`convert.fp16`: half the bytes, the same inputs and outputs, nothing beyond float16's range."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from lepton_cli.graph import io
from lepton_cli.steps.base import Outcome
from lepton_cli.steps.convert_fp16 import Params, apply
from tests.quantize.builders import Graph, Samples, context, images, mlp, residual_net, rows, run, sqnr


def convert(model: ir.Model, tmp_path: Path, data: Samples, **options: object) -> Outcome:
    return apply(model, Params.model_validate({"step": "convert.fp16", **options}), context(data, tmp_path))


def test_half_the_size_same_interface(tmp_path: Path) -> None:
    for model, data in ((mlp(), rows()), (residual_net(), images())):
        outcome = convert(model, tmp_path, data)
        assert io.inputs(outcome.model) == io.inputs(model)
        assert [output.dtype for output in io.outputs(outcome.model)] == ["float32"]
        assert io.weight_bytes(outcome.model) < 0.51 * io.weight_bytes(model)
        assert sqnr(model, outcome.model, data) > 50


def test_without_keep_io(tmp_path: Path) -> None:
    outcome = convert(mlp(), tmp_path, rows(), keep_io=False)
    assert io.inputs(outcome.model)[0].dtype == "float16"
    assert any("callers" in warning for warning in outcome.warnings)


def test_what_leaves_the_range_stays_float32(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 64]), 64, 64)
    large = graph.op("Mul", x, graph.constant(np.float32(1e5)))
    model = graph.model(graph.linear(graph.op("Mul", large, graph.constant(np.float32(1e-5))), 64, 64))
    outcome = convert(model, tmp_path, rows())
    assert {d.node for d in outcome.decisions} >= {"Mul_1", "Mul_2"}
    assert np.isfinite(run(outcome.model, rows())).all()
    assert sqnr(model, outcome.model, rows()) > 50


def test_an_output_beyond_the_range_is_returned_in_float32(tmp_path: Path) -> None:
    """Kept in float32, but cast to float16 on its way out it was infinite."""
    graph = Graph()
    large = graph.op("Mul", graph.take("x", ["b", 64]), graph.constant(np.float32(1e5)))
    model = graph.model(large, graph.op("Tanh", graph.op("Mul", large, graph.constant(np.float32(1e-5)))))
    outcome = convert(model, tmp_path, rows())
    np.testing.assert_array_equal(run(outcome.model, rows()), run(model, rows()))
    assert [value.name for value in outcome.model.graph.outputs] == ["t0", "t2"]
    assert outcome.details["sqnr_db"] > 50


def test_nodes_left_out_are_told_once_and_not_counted_as_changed(tmp_path: Path) -> None:
    """Add_1 cuts float16 short, so that Adds go back; Add_0 was left out already. Only Softmax changes."""
    graph = Graph()
    x = graph.op("Add", graph.take("x", ["b", 8]), graph.constant(np.float32(1)))
    masked = graph.op("Add", x, graph.constant(np.full(8, -3.4e38, np.float32)))
    outcome = convert(graph.model(graph.op("Softmax", masked)), tmp_path, rows(8, 8), exclude=["Add_0"])
    assert [(one.node, one.op, one.action, one.reason) for one in outcome.decisions] == [
        ("Add_0", "Add", "kept", "left out by include/exclude"),
        ("Add_1", "Add", "kept", "float16 ruins the outputs here (measured)"),
    ]
    assert outcome.changed == 1
    assert outcome.details["kept"] == 2


def test_nothing_in_float32(tmp_path: Path) -> None:
    half = convert(mlp(), tmp_path, rows(), keep_io=False).model
    assert convert(half, tmp_path, Samples(x=rows().feeds["x"].astype(np.float16))).changed == 0
