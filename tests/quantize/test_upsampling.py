"""ConvTranspose as a convolution: the same numbers, and only where int8 gains."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.quantize import upsampling
from tests.quantize.builders import Graph, ops, run


def net(
    *,
    shape: tuple[Any, ...] = ("b", 3, 5, 4),
    channels: tuple[int, int] = (16, 8),
    kernel: tuple[int, int] = (2, 3),
    bias: bool = True,
    after: bool = True,
    computed: str = "",
    **attributes: Any,
) -> ir.Model:
    """A convolution, a ConvTranspose (`up`), and a convolution behind it (`after`)."""
    graph = Graph()
    inner, outer = channels
    x = graph.conv(graph.take("x", list(shape)), 3, inner)
    arrays = [graph.random.normal(size=(inner, outer // attributes.get("group", 1), *kernel)), np.arange(outer)]
    held = [graph.constant(array.astype(np.float32)) for array in arrays[: 2 if bias else 1]]
    if computed:
        held[("weight", "bias").index(computed)] = graph.op("Tanh", held[("weight", "bias").index(computed)])
    options = {"strides": list(kernel)} | attributes
    x = graph.op("ConvTranspose", x, *held, **{name: value for name, value in options.items() if value is not None})
    graph.nodes[-1].name = "up"
    return graph.model(graph.conv(x, outer, 16) if after else graph.op("Tanh", x))


DATA = Arrays({"x": np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [(2, 2), (2, 3), (4, 1)])
def test_the_convolution_computes_the_same(bias: bool, kernel: tuple[int, int]) -> None:
    model = net(bias=bias, kernel=kernel)
    before = run(model, DATA)
    upsampling.as_convolutions(model, set())
    moves = ["Transpose", "Reshape", "Transpose", "Reshape", "Transpose"]
    assert ops(model) == ["Conv", "Relu", "Conv", *moves, "Conv", "Relu"]
    up = next(node for node in model.graph if node.name == "up")
    weight = up.inputs[1].const_value  # type: ignore[union-attr]
    assert weight is not None
    assert list(weight.shape) == [8 * kernel[0] * kernel[1], 16, 1, 1]
    assert len(up.inputs) == (3 if bias else 2)
    np.testing.assert_allclose(run(model, DATA), before, atol=1e-4)
    assert {value.dtype for node in model.graph for value in node.outputs} == {ir.DataType.FLOAT}


def test_defaults_of_attributes_are_those_of_the_operator() -> None:
    plain = {"pads": [0] * 4, "output_padding": [0, 0], "dilations": [1, 1], "group": 1, "auto_pad": "NOTSET"}
    for options in (plain, {"kernel": (1, 1), "strides": None}, {}):
        model = net(**options)
        upsampling.as_convolutions(model, set())
        assert "ConvTranspose" not in ops(model), options


@pytest.mark.parametrize(
    "options",
    [
        {"strides": [2, 2]}, {"strides": None}, {"pads": [1, 0, 0, 0]}, {"output_padding": [0, 1]},
        {"dilations": [1, 2]}, {"group": 2}, {"auto_pad": "SAME_UPPER"}, {"output_shape": [10, 12]},
        {"shape": ("b", 3, "h", 4)}, {"shape": ("b", 3, 5, "w")}, {"channels": (16, 4)}, {"channels": (4, 16)},
        {"computed": "weight"}, {"computed": "bias"}, {"after": False},
    ],
)  # fmt: skip
def test_any_other_stays(options: dict[str, Any]) -> None:
    model = net(**options)
    before = ops(model)
    upsampling.as_convolutions(model, set())
    assert ops(model) == before


def test_one_that_is_excluded_stays() -> None:
    model = net()
    before = ops(model)
    upsampling.as_convolutions(model, {"up"})
    assert ops(model) == before


def test_signals_and_volumes_stay() -> None:
    graph = Graph()
    weight = graph.constant(np.ones((16, 8, 2), np.float32))
    model = graph.model(graph.op("ConvTranspose", graph.take("x", [1, 16, 8]), weight, strides=[2]))
    assert not upsampling.fits(next(iter(model.graph)))
