"""Constants that are added to or multiplied with what a layer gives, or a factor, taken into its own constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.graph.edit import array_of, weight_of
from lepton_cli.graph.fold import ALLOWED_GROWTH
from lepton_cli.simplify.found import Found, before, held, only_reader

_CONVOLUTIONS = ("Conv", "ConvTranspose")


def into_conv(_: ir.Model, node: ir.Node) -> Found | None:
    """Conv, then one addend or factor a channel (Add, Sub, Mul, Div by a constant); ConvTranspose, then an addend."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    at = next((i for i in (0, 1) if (one := before(node, i)) is not None and one.op_type in _CONVOLUTIONS), None)
    if at is None or (at == 1 and node.op_type in ("Sub", "Div")):
        return None
    conv = before(node, at)
    assert conv is not None
    weight, other = array_of(conv), array_of(node, 1 - at)
    bias = array_of(conv, 2) if len(conv.inputs) > 2 and conv.inputs[2] is not None else None
    if weight is None or other is None or not only_reader(conv) or weight.dtype.kind != "f":
        return None
    if bias is None and len(conv.inputs) > 2 and conv.inputs[2] is not None:
        return None
    shared = (value := weight_of(conv)) is not None and len(value.uses()) > 1 and weight.nbytes > ALLOWED_GROWTH
    plain = conv.op_type == "Conv"
    channels = weight.shape[0] if plain else weight.shape[1] * conv.attributes.get_int("group", 1)
    number = _by_channel(other, weight, channels)
    if number is None or (node.op_type in ("Mul", "Div") and (shared or not plain)):
        return None
    shift = np.zeros(channels) if bias is None else bias.astype(np.float64)
    factor = np.ones(channels)
    with np.errstate(all="ignore"):
        match node.op_type:
            case "Add":
                shift = shift + number
            case "Sub":
                shift = shift - number
            case _:
                factor = number if node.op_type == "Mul" else 1 / number
                shift = shift * factor
        along = factor.reshape(-1, *(1,) * (weight.ndim - 1)) if plain else 1.0
        scaled = (weight.astype(np.float64) * along).astype(weight.dtype)
        new = shift.astype(weight.dtype)
    if not (np.isfinite(scaled).all() and np.isfinite(new).all()):
        return None
    kept = conv.inputs[1] if (factor == 1).all() else held(f"{conv.name}/weight_scaled", scaled)
    inputs = [conv.inputs[0], kept, held(f"{conv.name}/bias_joined", new)]
    if bias is None and not new.any():
        inputs.pop()
    return Found([ir.Node("", conv.op_type, inputs, list(conv.attributes.values()), name=conv.name)], [conv, node])


def _by_channel(array: NDArray[np.generic], weight: NDArray[np.generic], channels: int) -> NDArray[np.float64] | None:
    """One number for each output channel of a convolution, if that is what broadcasting makes of an array."""
    rank = weight.ndim
    if array.dtype != weight.dtype or array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(size != 1 for at, size in enumerate(shape) if at != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def gemm(_: ir.Model, node: ir.Node) -> Found | None:
    """MatMul of two matrices, then a bias, as one Gemm."""
    at = next((i for i in (0, 1) if (one := before(node, i)) is not None and one.op_type == "MatMul"), None)
    if node.op_type != "Add" or at is None:
        return None
    matmul, bias = before(node, at), node.inputs[1 - at]
    assert matmul is not None
    data, weight = matmul.inputs
    held_weight, addend = weight_of(matmul), array_of(node, 1 - at)
    if data is None or held_weight is None or addend is None or not only_reader(matmul):
        return None
    columns = held_weight.shape[-1] if held_weight.shape is not None and len(held_weight.shape) == 2 else None
    flat = addend.shape == (columns,) or addend.shape == (1, columns)
    if data.shape is None or len(data.shape) != 2 or not flat or addend.dtype.kind != "f":
        return None
    return Found([ir.node("Gemm", [data, weight, bias], name=matmul.name)], [matmul, node])


def factors(_: ir.Model, node: ir.Node) -> Found | None:
    """Two constant factors in a row (Mul, Div) as one, unless that is larger than both or leaves the normal numbers.

    Not so for addends: adding a large number and taking it off again is how some models round.
    """
    at = _factor(node)
    first = before(node, 1 - at) if at is not None else None
    first_at = _factor(first) if first is not None and only_reader(first) else None
    if at is None or first is None or first_at is None:
        return None
    one, other = array_of(first, first_at), array_of(node, at)
    assert one is not None
    assert other is not None
    if one.dtype != other.dtype or one.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        wide, last = one.astype(np.float64), other.astype(np.float64)
        joined = np.asarray(wide * last if first.op_type == node.op_type else wide / last)
    limits, size = np.finfo(one.dtype), np.abs(joined)
    if joined.size > max(one.size, other.size) or not ((size >= limits.tiny) & (size <= limits.max)).all():
        return None
    name = f"{node.name}/factor"
    made = ir.node(first.op_type, [first.inputs[1 - first_at], held(name, joined.astype(one.dtype))], name=node.name)
    return Found([made], [first, node])


def _factor(node: ir.Node) -> int | None:
    """Which input of a Mul or Div is a constant factor."""
    if node.op_type not in ("Mul", "Div") or node.domain:
        return None
    places = (1, 0) if node.op_type == "Mul" else (1,)
    return next((at for at in places if array_of(node, at) is not None), None)
