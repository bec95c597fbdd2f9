"""A teacher answers as onnxruntime does, by onnxruntime where torch is the slower one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.train.network import Network
from lepton_cli.train.teacher import Answering
from tests.quantize.builders import Graph
from tests.train.test_distill import ROWS, classifier

X = {"x": torch.from_numpy(ROWS[:6])}


@pytest.fixture(name="ran")
def _ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What torch was asked for."""
    asked, run = list[tuple[str, ...]](), Network.run

    def noted(self: Network, feeds: Any, outputs: Any = None) -> Any:
        asked.append(tuple(outputs or ()))
        return run(self, feeds, outputs)

    monkeypatch.setattr(Network, "run", noted)
    return asked


def expected(model: ir.Model, name: str, rows: np.ndarray = ROWS[:6]) -> np.ndarray:
    """By onnxruntime, a value inside as an output."""
    shown = io.clone(model)
    if name not in {value.name for value in shown.graph.outputs}:
        shown.graph.outputs.append(next(v for node in shown.graph for v in node.outputs if v.name == name))
    return Session(io.to_bytes(shown), threads=1).run({"x": rows})[name]


@pytest.mark.parametrize("inside", [False, True])
def test_in_float32_onnxruntime_answers(inside: bool, ran: list[tuple[str, ...]]) -> None:
    model = classifier()
    output = model.graph.outputs[0].name or ""
    name = next(node for node in model.graph if node.op_type == "Relu").outputs[0].name or "" if inside else output
    found = Answering(model, Network(model)).run(X, [name])
    assert list(found) == [name]
    np.testing.assert_array_equal(found[name].numpy(), expected(model, name))
    assert ran == []


def test_all_outputs_are_asked_for_by_default(ran: list[tuple[str, ...]]) -> None:
    model = classifier()
    found = Answering(model, Network(model)).run(X)
    assert list(found) == [model.graph.outputs[0].name]
    assert ran == []


def test_in_bfloat16_torch_answers(ran: list[tuple[str, ...]]) -> None:
    model = classifier()
    name = model.graph.outputs[0].name or ""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = Answering(model, Network(model)).run(X, [name])[name]
    assert ran == [(name,)]
    np.testing.assert_allclose(found.float().numpy(), expected(model, name), rtol=0.05, atol=0.05)


def test_half_precision_is_computed_in_float32(ran: list[tuple[str, ...]]) -> None:
    graph = Graph()
    half = graph.op(
        "MatMul", graph.op("Cast", graph.take("x", ["b", 8]), to=10), graph.constant(np.eye(8, 5, dtype=np.float16))
    )
    model = graph.model(graph.op("Cast", half, to=1))
    name = model.graph.outputs[0].name or ""
    with torch.no_grad():
        found = Answering(model, Network(model, ())).run(X, [name])[name]
    assert ran == [(name,)]
    np.testing.assert_allclose(found.numpy(), ROWS[:6] @ np.eye(8, 5), rtol=1e-6)


def test_a_frozen_batch_answers_in_pieces(ran: list[tuple[str, ...]]) -> None:
    """Rows as onnxruntime gives them two at a time, joined in their order; no piece is torch's."""

    def net(batch: int | str) -> ir.Model:
        graph = Graph()
        return graph.model(graph.linear(graph.take("x", [batch, 8]), 8, 5))

    teacher, student = net(2), Network(net("b"))
    name = teacher.graph.outputs[0].name or ""
    found = Answering(teacher, student).run(X, [name])[name].numpy()
    rows = [expected(teacher, name, ROWS[start : start + 2]) for start in (0, 2, 4)]
    np.testing.assert_array_equal(found, np.concatenate(rows))
    assert ran == [(name,)], "the student, who tells how they are joined"
