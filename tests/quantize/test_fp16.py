"""`convert.fp16`: half the bytes, the same inputs and outputs, nothing beyond float16's range."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from lepton_cli.model import io
from lepton_cli.quantize.spec import ConvertFp16
from lepton_cli.step import Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, Samples, context, images, mlp, residual_net, rows, run, sqnr


def convert(model: ir.Model, tmp_path: Path, data: Samples, **options: object) -> Outcome:
    return STEPS["convert.fp16"].apply(
        model, ConvertFp16.model_validate({"step": "convert.fp16", **options}), context(data, tmp_path)
    )


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


def test_nothing_in_float32(tmp_path: Path) -> None:
    half = convert(mlp(), tmp_path, rows(), keep_io=False).model
    assert convert(half, tmp_path, Samples(x=rows().feeds["x"].astype(np.float16))).changed == 0
