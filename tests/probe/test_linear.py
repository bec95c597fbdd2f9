"""Layers as rows of features times a matrix: the same numbers as onnxruntime's."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.probe import linear
from tests.coupling.networks import Network, run
from tests.coupling.networks import shapes as graph_shapes


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"dilations": [2, 2], "pads": [2, 1, 0, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ],
    ids=str,
)
def test_convolutions(attributes: dict[str, object]) -> None:
    n = Network()
    x = n.input("x", "batch", 3, 9, 8)
    check(n.model(n.node("Conv", x, n.weight(5, 3, 3, 2), n.weight(5), **attributes)))


def test_products() -> None:
    n = Network()
    check(n.model(n.node("Gemm", n.input("x", "batch", 6), n.weight(4, 6), n.weight(4), transB=1)))
    n = Network()
    check(n.model(n.linear(n.input("x", "batch", 5, 6), 6, 4)))


def check(model: ir.Model) -> None:
    (layer,) = linear.find(model).values()
    shape = graph_shapes.default_feeds(model, 2, 8)["x"]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    matrix, bias = linear.matrix_of(model, layer), linear.bias_of(model, layer)
    assert bias is not None
    expected = layer.rows(run(model, 2)[0])
    np.testing.assert_allclose(layer.features(x) @ matrix + bias, expected, rtol=1e-4, atol=1e-4)
    copy = model.clone()
    linear.store(copy, layer, matrix * 2, bias + 1)
    np.testing.assert_allclose(
        layer.rows(run(copy, 2)[0]), layer.features(x) @ matrix * 2 + bias + 1, rtol=1e-4, atol=1e-4
    )


def test_a_missing_bias_is_created() -> None:
    n = Network()
    model = n.model(n.node("Conv", n.input("x", "batch", 3, 8, 8), n.weight(4, 3, 1, 1)))
    (layer,) = linear.find(model).values()
    linear.store(model, layer, linear.matrix_of(model, layer), np.ones(4))
    assert linear.find(model)[layer.node].bias is not None
