"""Batch normalisation folded into the layer before it: the same outputs with one node less, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lepton_cli import runtime
from lepton_cli.model import io
from lepton_cli.prune.fold import fold
from tests.coupling.networks import Network

#: Scales of either sign, and variances so small that epsilon decides.
SCALES = np.array([1.5, -0.7, 0.2, -2.0], np.float32)
VARIANCES = np.array([1e-6, 0.5, 2e-3, 4.0], np.float32)


def run(model: ir.Model, *shape: int) -> list[NDArray[Any]]:
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    return list(runtime.Session(io.to_bytes(model), threads=1).run({"x": x}).values())


def normed(n: Network, x: str, *, spare: int | None = None, **attributes: Any) -> str:
    """A normalisation of four channels; its parameter `spare` is computed by a node."""
    parameters = [n.weight(values=SCALES), n.weight(4), n.weight(4), n.weight(values=VARIANCES)]
    if spare is not None:
        parameters[spare] = n.node("Identity", parameters[spare])
    return n.node("BatchNormalization", x, *parameters, **attributes)


#: Operator, shape of the input, shape of the weight, attributes.
LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "Conv": ("Conv", (2, 3, 5, 5), (4, 3, 3, 3), {}),
    "Conv over one axis": ("Conv", (2, 3, 7), (4, 3, 3), {}),
    "grouped Conv": ("Conv", (2, 4, 5, 5), (4, 2, 3, 3), {"group": 2}),
    "ConvTranspose": ("ConvTranspose", (2, 3, 4, 4), (3, 4, 2, 3), {"group": 1}),
    "square ConvTranspose": ("ConvTranspose", (2, 4, 4, 4), (4, 4, 2, 2), {}),
    "Gemm": ("Gemm", (2, 3), (3, 4), {}),
    "square Gemm": ("Gemm", (2, 4), (4, 4), {"alpha": 1.0, "beta": 1.0, "transB": 0}),
    "transposed Gemm": ("Gemm", (2, 4), (4, 4), {"transB": 1}),
}


@pytest.mark.parametrize("shape", [(), (1,), (1, 4), (2, 4)])
def test_a_gemms_bias_may_have_any_shape(shape: tuple[int, ...]) -> None:
    n = Network()
    layer = n.node("Gemm", n.input("x", 2, 3), n.weight(3, 4), n.weight(*shape))
    model = n.model(n.node("Neg", normed(n, layer, epsilon=0.1)))
    before = run(model, 2, 3)
    assert len(fold(model)) == 1
    np.testing.assert_allclose(run(model, 2, 3)[0], before[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epsilon", [None, 0.01])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_stay_and_the_scales_are_told(name: str, epsilon: float | None, bias: bool) -> None:
    op, shape, weight, attributes = LAYERS[name]
    n = Network()
    layer = n.node(op, n.input("x", *shape), n.weight(*weight), *([n.weight(4)] if bias else []), **attributes)
    model = n.model(n.node("Neg", normed(n, layer, **({} if epsilon is None else {"epsilon": epsilon}))))
    before = run(model, *shape)
    assert fold(model).keys() == {f"{op}_0"}
    assert [node.op_type for node in model.graph] == [op, "Neg"]
    onnx.checker.check_model(ir.to_proto(model))
    largest = float(np.abs(before[0]).max())
    np.testing.assert_allclose(run(model, *shape)[0], before[0], rtol=1e-4, atol=1e-6 * largest)


def test_scales_are_the_normalisations_own_without_sign() -> None:
    n = Network()
    model = n.model(n.node("Relu", normed(n, n.conv(n.input("x", 1, 3, 4, 4), 3, 4))))
    (scales,) = fold(model).values()
    np.testing.assert_array_equal(scales, np.abs(SCALES).astype(np.float64))


def test_parameters_are_those_of_the_formula() -> None:
    n = Network()
    model = n.model(n.node("Relu", normed(n, n.conv(n.input("x", 1, 3, 4, 4), 3, 4), epsilon=0.25)))
    weight, bias, scale, shift, mean, variance = (n.weights[f"w{k}"].astype(np.float64) for k in range(6))
    fold(model)
    conv = next(iter(model.graph))
    now = [value.const_value.numpy() for value in conv.inputs[1:] if value is not None and value.const_value]
    factor = scale / np.sqrt(variance + 0.25)
    np.testing.assert_allclose(now[0], weight * factor[:, None, None, None], rtol=1e-6)
    np.testing.assert_allclose(now[1], (bias - mean) * factor + shift, rtol=1e-6)
    assert now[0].dtype == now[1].dtype == np.float32
    assert conv.inputs[2] is not None
    assert conv.inputs[2].shape == [4]


def test_every_pair_of_a_network_is_folded() -> None:
    n = Network()
    x = n.input("x", 2, 3, 5, 5)
    first = n.node("Relu", normed(n, n.conv(x, 3, 4)))
    model = n.model(n.node("Add", first, normed(n, n.node("Conv", first, n.weight(4, 4, 1, 1), ""))))
    before = run(model, 2, 3, 5, 5)
    assert list(fold(model)) == ["Conv_0", "Conv_3"]
    assert [node.op_type for node in model.graph] == ["Conv", "Relu", "Conv", "Add"]
    np.testing.assert_allclose(run(model, 2, 3, 5, 5)[0], before[0], rtol=1e-3, atol=1e-3)


def shared_weight(n: Network) -> list[str]:
    x, weight = n.input("x", 2, 4, 5, 5), n.weight(4, 4, 3, 3)
    first = n.node("Neg", normed(n, n.node("Conv", x, weight, pads=[1] * 4)))
    return [n.node("Conv", first, weight)]


def shared_bias(n: Network) -> list[str]:
    x, bias = n.input("x", 2, 4, 5, 5), n.weight(4)
    return [n.node("Neg", normed(n, n.node("Conv", x, n.weight(4, 4, 3, 3), bias))), n.node("Relu", bias)]


def image(n: Network) -> str:
    return n.input("x", 2, 4, 5, 5)


def behind(layer: Callable[[Network], str], **options: Any) -> Callable[[Network], list[str]]:
    return lambda n: [n.node("Neg", normed(n, layer(n), **options))]


def two_readers(n: Network) -> list[str]:
    layer = n.conv(image(n), 4, 4)
    return [n.node("Neg", normed(n, layer)), n.node("Relu", layer)]


def also_an_output(n: Network) -> list[str]:
    layer = n.conv(image(n), 4, 4)
    return [n.node("Neg", normed(n, layer)), layer]


def doubles(n: Network) -> list[str]:
    """A layer in float64 with its normalisation in the same type."""
    x = n.node("Cast", image(n), to=TensorProto.DOUBLE)
    layer = n.node("Conv", x, n.weight(values=np.ones((4, 4, 1, 1))))
    parameters = [n.weight(values=array.astype(np.float64)) for array in (SCALES, SCALES, SCALES, VARIANCES)]
    return [n.node("Cast", n.node("BatchNormalization", layer, *parameters), to=TensorProto.FLOAT)]


LEFT_ALONE: dict[str, Callable[[Network], Sequence[str]]] = {
    "behind an activation": behind(lambda n: n.node("Relu", n.conv(image(n), 4, 4))),
    "behind the input": behind(image),
    "behind a product": behind(lambda n: n.node("MatMul", n.input("x", 2, 4), n.weight(4, 4))),
    "two readers": two_readers,
    "the layer's output is one of the model": also_an_output,
    "the normalisation's output is one of the model": lambda n: [normed(n, n.conv(image(n), 4, 4))],
    "a shared weight": shared_weight,
    "a shared bias": shared_bias,
    "a computed weight": behind(lambda n: n.node("Conv", image(n), n.node("Neg", n.weight(4, 4, 1, 1)))),
    "a computed bias": behind(lambda n: n.node("Conv", image(n), n.weight(4, 4, 1, 1), n.node("Neg", n.weight(4)))),
    **{
        f"a computed {what}": behind(lambda n: n.conv(image(n), 4, 4), spare=k)
        for k, what in enumerate(("scale", "shift", "mean", "variance"))
    },
    "alpha": behind(lambda n: n.node("Gemm", n.input("x", 2, 4), n.weight(4, 4), alpha=0.5)),
    "beta": behind(lambda n: n.node("Gemm", n.input("x", 2, 4), n.weight(4, 4), n.weight(4), beta=2.0)),
    "a grouped ConvTranspose": behind(lambda n: n.node("ConvTranspose", image(n), n.weight(4, 2, 3, 3), group=2)),
    "doubles": doubles,
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_cannot_be_folded_stays_as_it_is(name: str) -> None:
    n = Network()
    model = n.model(*LEFT_ALONE[name](n))
    before = io.to_bytes(model)
    assert fold(model) == {}
    assert io.to_bytes(model) == before


@pytest.mark.parametrize("index", range(6))
def test_parameters_that_a_caller_may_replace_stay(index: int) -> None:
    n = Network()
    model = n.model(n.node("Neg", normed(n, n.conv(image(n), 4, 4))))
    proto = ir.to_proto(model)
    shape = n.weights[f"w{index}"].shape
    proto.graph.input.append(helper.make_tensor_value_info(f"w{index}", TensorProto.FLOAT, shape))
    model = ir.from_proto(proto)
    assert fold(model) == {}
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization", "Neg"]


def test_a_normalisation_that_trains_stays() -> None:
    n = Network(opset=15)
    parameters = [n.weight(values=array) for array in (SCALES, SCALES, SCALES, VARIANCES)]
    layer = n.conv(image(n), 4, 4)
    y = n.node("BatchNormalization", layer, *parameters, outputs=3, training_mode=1)
    model = n.model(n.node("Neg", y))
    assert fold(model) == {}
    assert len(list(model.graph)) == 3
