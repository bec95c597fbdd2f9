"""A quantized graph that trains: integers behind `DequantizeLinear` have a float in the place of each.

The file stays as it was chosen for its machine: the same nodes, types and zero points. What learns are the numbers
that codes are rounded from, and the scales: as exponents of what they were (`scale * exp(p)`), so that the first run
computes exactly what the file says. Rounding passes gradients (`operators.rounding`), to scales those of learned step
size quantization (Esser et al. 2020, arXiv 1902.08153).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from lepton_cli.graph.edit import Editor
from lepton_cli.train import weights
from lepton_cli.train.network import Network
from lepton_cli.train.operators.call import OperatorCall, call_of, tensor_of
from lepton_cli.train.operators.rounding import RANGES, rounded, spread

#: Steps from zero that all weights of a file may keep to, so that sums of two products fit 16 bits (x86 without VNNI).
REDUCED = 64
_CODES = RANGES.keys() - {ir.DataType.INT32}
#: From this share of zeros on a matrix of 8-bit codes was pruned; rounding alone leaves fewer.
SPARSE = 0.25


@dataclasses.dataclass(frozen=True)
class _Weight:
    """Codes with a float behind each; `scale` is a value that learns, `zero` in a shape that broadcasts."""

    codes: ir.Value
    scale: ir.Value
    zero: Tensor
    call: OperatorCall
    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class _Bias:
    """Codes of 32 bits with a float behind each; one is worth the product of `steps`, those of the layer's input and
    weight, where they are known."""

    codes: ir.Value
    scale: ir.Value
    steps: tuple[ir.Value, ...]


class QuantizedNetwork(Network):
    """As `Network`, whose parameters are then float weights, the floats behind codes, biases, and exponents of scales.

    `nodes`: names of the layers that train, with the scales of what goes into them; `None`: all.
    """

    def __init__(self, model: ir.Model, nodes: Collection[str] | None = None, device: str = "cpu") -> None:
        super().__init__(model, nodes, device)
        self._weights: list[_Weight] = []
        self._biases: list[_Bias] = []
        self._made_of_codes: list[ir.Value] = []
        #: Scales that learn, by value: those that were equal, as of a MaxPool's input and output, stay so.
        self._names: dict[ir.Value, str] = {}
        self._starts: dict[str, Tensor] = {}
        found = [node for node in self.model.graph if _dequantizes(node, nodes)]
        constant = [node for node in found if _codes(node.inputs[0]) is not None]
        bound = _bound([codes for node in constant if (codes := _codes(node.inputs[0])) is not None])
        editor = Editor(self.model)
        for node in constant:
            _own_scale(editor, node)
        for node in found:
            if node not in constant:
                self._learn_scale(node.inputs[1], tied=True)
        for node in constant:
            self._weight(node, bound)
        for node in constant:
            self._bias(node)

    def trained(self) -> list[ir.Value]:
        """The constants that train, and the floats that are made of codes."""
        return super().trained() + self._made_of_codes

    def written(self) -> ir.Model:
        """A copy of the model with codes and scales as they are now."""
        with torch.no_grad():
            scales = {value: _array(self._scale(value)) for value in self._names}
            codes = [(weight.codes, _array(self._rounded(weight))) for weight in self._weights]
        for value, array in (*scales.items(), *codes):
            weights.write(value, array)
        for bias in self._biases:
            scale = _numbers(bias.scale)
            if bias.steps:
                first, second = (_numbers(value) for value in bias.steps)
                scale = np.broadcast_to(first * second, scale.shape)
            exact = _array(self.parameters[bias.codes.name or ""]).astype(np.float64)
            weights.write(bias.codes, np.clip(np.rint(exact / scale), -(2.0**31) + 1, 2.0**31 - 1))
            weights.write(bias.scale, scale)
        return super().written()

    def _learn_scale(self, value: ir.Value | None, *, tied: bool = False) -> bool:
        """Whether the scale learns; `tied`: with all of the same size."""
        tensor = weights.held(value)
        if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or not (tensor.numpy() > 0).all():
            return False
        if value in self._names:
            return True
        start = tensor_of(tensor).to(self.device)
        same = (name for name, one in self._starts.items() if tied and torch.equal(one, start))
        name = next(same, value.name or "")
        if name not in self._starts:
            self._starts[name] = start
            self.parameters[name] = torch.zeros_like(start).requires_grad_()
            self.exponents.add(name)
        self._names[value] = name
        self._computed[value] = partial(self._scale, value)
        return True

    def _step(self, value: ir.Value) -> Tensor:
        """A scale, whether it learns or not."""
        return self._scale(value) if value in self._names else self._tensor(value, {})

    def _scale(self, value: ir.Value) -> Tensor:
        name = self._names[value]
        return self._starts[name] * self.parameters[name].exp()

    def _weight(self, node: ir.Node, bound: int) -> None:
        codes, scale = _codes(node.inputs[0]), node.inputs[1]
        if codes is None or codes.dtype not in _CODES or len(codes.uses()) != 1 or scale is None:
            return
        tensor, zero = weights.held(codes), weights.held(node.inputs[2] if len(node.inputs) > 2 else None)
        if tensor is None or not self._learn_scale(scale):
            return
        whole = tensor.numpy().astype(np.float32)
        call = call_of(node, self.model.graph.opset_imports.get(node.domain, 1))
        like = torch.from_numpy(whole)
        shift = (
            torch.zeros(()) if zero is None else spread(call, like, torch.from_numpy(zero.numpy().astype(np.float32)))
        )
        low, high = RANGES[codes.dtype]
        if codes.dtype == ir.DataType.INT8:
            low, high = max(low, -bound), min(high, bound)
        made = _Weight(codes, scale, shift.to(self.device), call, low, high)
        empty = whole == shift.numpy()
        if tensor.dtype.itemsize >= 1 and whole.ndim > 1 and SPARSE <= float(empty.mean()) < 1:
            self._kept[codes.name or ""] = torch.from_numpy(~empty).to(self.device)
        with torch.no_grad():
            steps = spread(call, like, self._starts[self._names[scale]].cpu())
            self.parameters[codes.name or ""] = ((like - shift) * steps).to(self.device).requires_grad_()
        self._weights.append(made)
        self._made_of_codes.append(node.outputs[0])
        self._computed[node.outputs[0]] = partial(self._floats, made)

    def _rounded(self, weight: _Weight) -> Tensor:
        exact = self.parameters[weight.codes.name or ""]
        return rounded(
            exact, spread(weight.call, exact, self._scale(weight.scale)), weight.zero, weight.low, weight.high
        )

    def _floats(self, weight: _Weight) -> Tensor:
        codes = self._rounded(weight)
        return (codes - weight.zero) * spread(weight.call, codes, self._scale(weight.scale))

    def _bias(self, node: ir.Node) -> None:
        codes, scale = _codes(node.inputs[0]), node.inputs[1]
        if codes is None or scale is None or codes.dtype != ir.DataType.INT32 or len(codes.uses()) != 1:
            return
        tensor, step = weights.held(codes), weights.held(scale)
        if tensor is None or step is None:
            return
        exact = (tensor.numpy() * step.numpy().astype(np.float64)).astype(np.float32)
        self.parameters[codes.name or ""] = torch.from_numpy(exact).to(self.device).requires_grad_()
        readers = [use.node for use in node.outputs[0].uses()]
        sources = [value.producer() if value is not None else None for value in readers[0].inputs[:2]]
        steps = [one.inputs[1] for one in sources if one is not None and one.op_type == "DequantizeLinear"]
        known = tuple(value for value in steps if value is not None and weights.held(value) is not None)
        bias = _Bias(codes, scale, known if len(known) == 2 and len(readers) == 1 else ())
        self._biases.append(bias)
        self._made_of_codes.append(node.outputs[0])
        self._computed[node.outputs[0]] = partial(self._summand, bias)

    def _summand(self, bias: _Bias) -> Tensor:
        """The bias as the integers hold it: a step of the sum of products is coarse where weights have few bits."""
        exact = self.parameters[bias.codes.name or ""]
        if not bias.steps:
            return exact
        first, second = (self._step(value) for value in bias.steps)
        step = (first * second).expand_as(exact)
        return rounded(exact, step, None, *RANGES[ir.DataType.INT32]) * step


def _dequantizes(node: ir.Node, nodes: Collection[str] | None) -> bool:
    if node.op_type != "DequantizeLinear":
        return False
    return nodes is None or any(use.node.name in nodes for use in node.outputs[0].uses())


def _codes(value: ir.Value | None) -> ir.Value | None:
    """The constant behind what is dequantized: codes of 4 bits are widened first."""
    if value is not None and weights.held(value) is None and (node := value.producer()) is not None:
        return _codes(node.inputs[0]) if node.op_type == "Cast" else None
    return value if weights.held(value) is not None else None


def _bound(found: list[ir.Value]) -> int:
    """The most steps from zero that a weight of 8 bits may take."""
    arrays = [tensor.numpy() for value in found if (tensor := weights.held(value)) and value.dtype == ir.DataType.INT8]
    most = max((int(np.abs(array.astype(np.int16)).max(initial=0)) for array in arrays), default=0)
    return most if most > 127 else REDUCED if most <= REDUCED else 127


def _own_scale(editor: Editor, node: ir.Node) -> None:
    """Numbers that happened to be equal were stored once: they will differ."""
    value = node.inputs[1]
    tensor = weights.held(value)
    if value is not None and tensor is not None and len(value.uses()) > 1:
        editor.give(node, 1, tensor.numpy().copy(), f"{node.outputs[0].name}_scale")


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().cpu().numpy(), np.float32)


def _numbers(value: ir.Value) -> NDArray[np.float32]:
    tensor = weights.held(value)
    assert tensor is not None
    return np.asarray(tensor.numpy(), np.float32)
