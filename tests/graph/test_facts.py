"""What makes a model a quantized one: the same for `inspect` and for the steps that refuse such models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.errors import ModelError
from lepton_cli.graph.facts import QUANTIZED, facts
from lepton_cli.model import io
from lepton_cli.quantize.prepare import refuse_quantized
from tests.hostile.models import mlp, save
from tests.quantize.builders import Graph


def _with(op: str, folder: Path) -> ir.Model:
    model = io.load(save(mlp(), folder / "m.onnx")).model
    model.graph.append(ir.node(op, [model.graph.inputs[0]], domain="com.microsoft", name="extra"))
    return model


@pytest.mark.parametrize("op", sorted(QUANTIZED))
def test_quantized_operators_are_seen_and_refused(op: str, tmp_path: Path) -> None:
    model = _with(op, tmp_path)
    assert facts(model).quantized
    with pytest.raises(ModelError, match="quantized already"):
        refuse_quantized(model)


@pytest.mark.parametrize("op", ["GatherBlockQuantized", "FusedConv"])
def test_tables_in_blocks_leave_a_float_model(op: str, tmp_path: Path) -> None:
    model = _with(op, tmp_path)
    assert not facts(model).quantized
    refuse_quantized(model)


def test_fused_layers_are_told() -> None:
    graph = Graph()
    weight = graph.constant(np.ones((4, 3, 1, 1), np.float32))
    fused = graph.op("FusedConv", graph.take("x", ["b", 3, 4, 4]), weight, domain="com.microsoft", activation="Relu")
    assert any("1 layers are onnxruntime's own fused operators" in one for one in facts(graph.model(fused)).hazards)


@pytest.mark.parametrize(("batch", "freed"), [(1, True), (4, False), ("b", None)])
def test_a_fixed_batch_is_told(batch: int | str, freed: bool | None) -> None:
    graph = Graph()
    model = graph.model(graph.op("Relu", graph.take("x", [batch, 3])))
    told = [one for one in facts(model).hazards if "batch size" in one]
    assert len(told) == (freed is not None)
    assert not told or ("`batch.free` frees it" in told[0]) == freed
