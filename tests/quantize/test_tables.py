"""Embedding tables in 8 bits: which, in which blocks, and what is looked up then."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from lepton_cli.model import io
from lepton_cli.quantize import tables
from lepton_cli.runtime import Session
from lepton_cli.step import Decision
from tests.quantize.builders import Graph, ops


def lookup(*shape: int, kind: Any = np.float32, **attributes: Any) -> ir.Model:
    graph = Graph()
    table = graph.constant(graph.random.normal(size=shape).astype(kind))
    return graph.model(graph.op("Gather", table, graph.take("x", ["b"], TensorProto.INT64), **attributes))


def shrink(model: ir.Model, *allowed: str) -> tuple[ir.Model, list[Decision]]:
    return tables.shrink(model, allowed or {node.name or "" for node in model.graph})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of blocks.LEAST_SIZE do."""
    monkeypatch.setattr(tables, "LEAST_SIZE", 4096)


def test_small_tables_are_not_worth_it() -> None:
    made, decisions = shrink(lookup(6250, 16))
    assert ops(made) == ["GatherBlockQuantized"]
    assert len(decisions) == 1
    made, decisions = shrink(lookup(6249, 16))
    assert (ops(made), decisions) == (["Gather"], []), "99 984 values"
    assert "com.microsoft" not in made.graph.opset_imports


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("columns", "block"), [(256, 128), (192, 64), (96, 32), (48, 16), (40, None), (128, 128)])
def test_the_largest_block_that_divides_a_row_is_taken(columns: int, block: int | None) -> None:
    model = lookup(128, columns)
    before = io.to_bytes(model)
    made, decisions = shrink(model)
    assert io.to_bytes(model) == before
    if block is None:
        assert (ops(made), decisions) == (["Gather"], [])
        return
    (node,) = made.graph
    assert node.attributes.get_int("block_size") == block
    assert node.attributes.get_int("bits") == 8
    assert made.graph.opset_imports["com.microsoft"] == 1
    assert "w0" not in made.graph.initializers
    table = model.graph.initializers["w0"].const_value.numpy()  # type: ignore[union-attr]
    feeds = {"x": np.arange(128)}
    found = Session(io.to_bytes(made), threads=1).run(feeds)["t0"]
    blocks = table.reshape(128, -1, block)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    codes = np.clip(np.rint(blocks / (extreme / -128)), -128, 127)
    expected = (codes * (extreme / -128)).reshape(table.shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    (decision,) = decisions
    assert (decision.node, decision.op, decision.action) == ("Gather_0", "Gather", "quantized")
    ratio = 10 * np.log10(np.square(table).sum() / np.square(expected - table).sum())
    assert decision.reason == f"table in 8 bits, blocks of {block} ({ratio:.0f} dB)"


@pytest.mark.usefixtures("small")
def test_other_tables_stay() -> None:
    stay = {
        "columns": lookup(128, 128, axis=1),
        "float64": lookup(128, 128, kind=np.float64),
        "three dimensions": lookup(16, 16, 128),
    }
    graph = Graph()
    stay["computed"] = graph.model(
        graph.op("Gather", graph.take("y", [128, 128]), graph.take("x", ["b"], TensorProto.INT64))
    )
    graph = Graph()
    table = graph.constant(np.ones((128, 128), np.float32))
    found = graph.op("Gather", table, graph.take("x", ["b"], TensorProto.INT64))
    stay["tied to the last layer"] = graph.model(graph.op("MatMul", found, table))
    graph = Graph()
    stay["no table"] = graph.model(
        graph.op("MatMul", graph.constant(np.ones((128, 128), np.float32)), graph.take("x", [128, 1]))
    )
    for why, model in stay.items():
        made, decisions = shrink(model)
        assert (ops(made), decisions) == (ops(model), []), why
        assert made is not model


@pytest.mark.usefixtures("small")
def test_tables_in_float16_are_stored_too() -> None:
    """A row of 128 is one block: it differs by a step of that at most."""
    graph = Graph()
    table = graph.constant(graph.random.normal(size=(128, 128)).astype(np.float16))
    looked_up = graph.op("Gather", table, graph.take("x", ["b"], TensorProto.INT64))
    model = graph.model(graph.op("Cast", looked_up, to=TensorProto.FLOAT))
    made, _ = shrink(model)
    assert ops(made) == ["GatherBlockQuantized", "Cast"]
    rows = {"x": np.arange(128)}
    before, after = (next(iter(Session(io.to_bytes(m), threads=1).run(rows).values())) for m in (model, made))
    error = np.abs(after.astype(np.float64) - before.astype(np.float64))
    largest = np.abs(before.astype(np.float64)).max(axis=1, keepdims=True)
    # A step, where the value opposite to the largest is clipped, and the rounding of codes times scales to 11 bits.
    assert (error <= largest * (1 / 128 + 2**-10)).all()


@pytest.mark.usefixtures("small")
def test_only_allowed_tables_and_each_of_them() -> None:
    graph = Graph()
    x = graph.take("x", ["b"], TensorProto.INT64)
    parts = [graph.op("Gather", graph.constant(np.ones((64, 64), np.float32)), x) for _ in range(3)]
    model = graph.model(*parts)
    made, decisions = shrink(model, "Gather_0", "Gather_2")
    assert ops(made) == ["GatherBlockQuantized", "Gather", "GatherBlockQuantized"]
    assert [decision.node for decision in decisions] == ["Gather_0", "Gather_2"]
    assert [value.name for value in made.graph.outputs] == parts
