"""Optimal-brain rounding: on the grid, never worse than rounding to nearest, bias exact in the mean."""

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.model import io
from lepton_cli.quantize import choose, moments, rounding
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph, context, images, mlp, residual_net, rows


def correlated(count: int = 4000, width: int = 24) -> np.ndarray:
    random = np.random.default_rng(0)
    mixed = random.normal(size=(count, 6)) @ random.normal(size=(6, width)) + 0.2 * random.normal(size=(count, width))
    return mixed.astype(np.float32) + 1.5


def test_less_output_error_than_nearest() -> None:
    x = correlated()
    known = moments.Moments(np.zeros((1, 24, 24)), np.zeros((1, 24)))
    known.add(x[None])
    weight = np.random.default_rng(1).normal(size=(1, 12, 24))
    centred = x - x.mean(axis=0)
    errors = []
    for brain in (False, True):
        steps, made = rounding._layer(weight, known.covariance, 7, brain)
        on_grid = made / steps
        assert np.allclose(on_grid, np.rint(on_grid), atol=1e-9)
        assert np.abs(on_grid).max() <= 7
        errors.append(np.square(centred @ (made - weight)[0].T).sum())
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("group", [1, 4, 16])
@pytest.mark.parametrize("stride", [1, 2])
def test_rows_are_what_the_convolution_multiplies(group: int, stride: int, tmp_path: Path) -> None:
    graph = Graph()
    y = graph.conv(graph.take("x", ["b", 16, 8, 8]), 16, 16, stride=stride, group=group, relu=False)
    model = graph.model(y)
    data = images(8, 16, 8)
    choice = choose.candidates(model, {"Conv_0"})
    known = moments.collect(model, choice, data, context(data, tmp_path))["Conv_0"]
    weight, bias = (model.graph.initializers[name].const_value.numpy() for name in ("w0", "w1"))  # type: ignore[union-attr]
    mean = np.einsum("gnk,gk->gn", weight.reshape(group, 16 // group, -1), known.mean).reshape(-1) + bias
    session = Session(io.to_bytes(model), threads=1)
    true = session.run(data.feeds)[y].mean(axis=(0, 2, 3))
    assert np.allclose(mean, true, atol=0.25 if stride == 1 else 0.35)


def test_every_kind_of_layer_is_rounded(tmp_path: Path) -> None:
    for model, data in ((mlp(), rows()), (residual_net(), images())):
        choice = choose.candidates(model, {node.name or "" for node in model.graph})
        known = moments.collect(model, choice, data, context(data, tmp_path))
        made = rounding.apply(model, choice, known, limit=127)
        assert len(made.scales) == len(choice.anchors)
        for name, (axis, scales) in made.scales.items():
            weight = made.model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
            shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
            codes = weight / scales.reshape(shape)
            assert np.allclose(codes, np.rint(codes), atol=1e-3)
