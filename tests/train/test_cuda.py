"""Training on a GPU: the same answers, and the same healing. Skipped without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from lepton_cli.data.synthetic import synthetic
from lepton_cli.errors import ProviderError
from lepton_cli.graph.feeds import sized
from lepton_cli.train import course, proof
from lepton_cli.train.network import Network
from lepton_cli.train.spec import Distill
from tests.quantize.builders import Graph
from tests.train.test_distill import ROWS, answers, classifier, damaged, told, trained

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


def convolutions() -> ir.Model:
    graph = Graph()
    y = graph.op("Relu", graph.conv(graph.take("x", ["b", 3, 8, 8]), 3, 8))
    y = graph.op("Resize", y, "", graph.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    return graph.model(graph.op("GlobalAveragePool", y))


def tokens() -> ir.Model:
    """Whole numbers come from the processor and meet weights on the GPU; a mask is made of them."""
    graph = Graph()
    ids = graph.take("ids", ["b", 6], ir.DataType.INT64)
    table = graph.constant(np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32))
    there = graph.op("Cast", graph.op("Greater", ids, graph.constant(np.array(0, np.int64))), to=1)
    column = graph.op("Unsqueeze", there, graph.constant(np.array([2], np.int64)))
    return graph.model(graph.op("Mul", graph.op("Gather", table, ids), column))


def scaled() -> ir.Model:
    """What onnxruntime computes goes to the GPU, and a sequence of it through torch."""
    graph = Graph()
    x = graph.op("Scaler", graph.take("x", ["b", 4]), domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
    rows = graph.op("SplitToSequence", x, graph.constant(np.array([1, 3])), axis=1)
    y = graph.op("SequenceAt", rows, graph.constant(np.int64(1)))
    return graph.model(graph.linear(y, 3, 2))


@gpu
@pytest.mark.parametrize("build", [classifier, convolutions, scaled, tokens])
def test_a_gpu_computes_what_onnxruntime_does(build: object, tmp_path: Path) -> None:
    assert callable(build)
    model = build()
    data = synthetic(sized(model), seed=1, samples=4, batch=4)
    network = Network(model, None, "cuda")
    with course.settings(1, "cuda"):
        assert proof.prove(network, data, tmp_path, 1) < proof.SAME
        feeds = proof.tensors(next(iter(data.batches())).feeds, network.device)
        sum(one.square().sum() for one in network.run(feeds).values()).backward()  # type: ignore[union-attr]
    assert all(one.grad is not None and one.grad.is_cuda for one in network.parameters.values())


@gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_damaged_network_is_healed_on_a_gpu(precision: str, tmp_path: Path) -> None:
    original = classifier()
    broken = damaged(original)
    outcome = trained(broken, original, tmp_path, precision=precision)
    assert told(outcome).device == "cuda"
    rows = ROWS[:200]
    before, after = (np.square(answers(one, rows) - answers(original, rows)).mean() for one in (broken, outcome.model))
    assert after < 0.2 * before


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(ProviderError, match="torch finds no GPU"):
        course.device(Distill(device="cuda"))
    assert course.device(Distill()) == "cpu"
