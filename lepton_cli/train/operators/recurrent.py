"""LSTM, GRU and RNN: torch's own kernels where the variant has one, step by step otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lepton_cli.train.operators.call import NotInTorch, OperatorCall
from lepton_cli.train.operators.layers import activation

#: What one step makes of the input's share of its gates and of the states (the hidden one first).
Advance = Callable[[Tensor, "tuple[Tensor, ...]"], "tuple[Tensor, ...]"]


def lstm(
    call: OperatorCall,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """LSTM: all hidden states, the last one and the last cell state. Gates stand in the order i, o, f, c."""
    layer = _layer(call, x, weight, recurrence, bias, lengths, ["Sigmoid", "Tanh", "Tanh"])
    states = [layer.state(hidden), layer.state(cell)]
    coupled = bool(call.get("input_forget", 0))
    if layer.usual and peepholes is None and not coupled:
        y, *last = torch._VF.lstm(layer.ordered, states, layer.flat([0, 2, 3, 1]), *layer.options)
        return layer.results(y, last)

    def steps(direction: int) -> Advance:
        gate, squash, show = layer.activations(direction)
        matrix = layer.recurrence[direction].t()
        zero = layer.x.new_zeros(layer.size)
        peep_i, peep_o, peep_f = (zero,) * 3 if peepholes is None else peepholes[direction].to(x.dtype).chunk(3)

        def advance(projected: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, cell = states
            i, o, f, c = (projected + hidden @ matrix).chunk(4, -1)
            i = gate(i + peep_i * cell)
            f = 1 - i if coupled else gate(f + peep_f * cell)
            cell = f * cell + i * squash(c)
            return gate(o + peep_o * cell) * show(cell), cell

        return advance

    return layer.walked(steps, states, layer.shares(4))


def gru(
    call: OperatorCall,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """GRU: all hidden states and the last one. Gates stand in the order z, r, h. With `linear_before_reset` the reset
    gate scales the recurrent share of h with its bias, otherwise the hidden state before the product.
    """
    layer = _layer(call, x, weight, recurrence, bias, lengths, ["Sigmoid", "Tanh"])
    states, linear = [layer.state(hidden)], bool(call.get("linear_before_reset", 0))
    if layer.usual and linear:
        y, last = torch._VF.gru(layer.ordered, states[0], layer.flat([1, 0, 2]), *layer.options)
        return layer.results(y, [last])

    def steps(direction: int) -> Advance:
        gate, squash = layer.activations(direction)
        matrix = layer.recurrence[direction]
        gates, inner = matrix[: 2 * layer.size].t(), matrix[2 * layer.size :].t()
        inner_bias = layer.biases(direction)[1][2 * layer.size :]

        def advance(projected: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (hidden,) = states
            z, r = gate(projected[:, : 2 * layer.size] + hidden @ gates).chunk(2, -1)
            share = r * (hidden @ inner + inner_bias) if linear else (r * hidden) @ inner + inner_bias
            return ((1 - z) * squash(projected[:, 2 * layer.size :] + share) + z * hidden,)

        return advance

    return layer.walked(steps, states, layer.shares(2))


def rnn(
    call: OperatorCall,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """RNN with one activation: all hidden states and the last one."""
    names = {name.lower() for name in call.get("activations") or ["Tanh"]}
    usual = ["Relu"] if names == {"relu"} else ["Tanh"]
    layer = _layer(call, x, weight, recurrence, bias, lengths, usual)
    states = [layer.state(hidden)]
    if layer.usual:
        run = torch._VF.rnn_relu if usual == ["Relu"] else torch._VF.rnn_tanh
        y, last = run(layer.ordered, states[0], layer.flat([0]), *layer.options)
        return layer.results(y, [last])

    def steps(direction: int) -> Advance:
        (squash,) = layer.activations(direction)
        matrix = layer.recurrence[direction].t()
        return lambda projected, states: (squash(projected + states[0] @ matrix),)

    return layer.walked(steps, states, layer.shares(1))


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A recurrent layer in one type: `x` is [steps, batch, features], the weights have an axis of directions."""

    call: OperatorCall
    x: Tensor
    weight: Tensor
    recurrence: Tensor
    bias: Tensor | None
    lengths: Tensor | None
    names: list[str]
    usual: bool

    @property
    def size(self) -> int:
        return int(self.recurrence.shape[-1])

    @property
    def directions(self) -> int:
        return int(self.weight.shape[0])

    @property
    def backward(self) -> bool:
        return bool(self.call.get("direction", "forward") == "reverse")

    @property
    def ordered(self) -> Tensor:
        """The input for torch's kernels, which know no backward direction alone."""
        return self.x.flip(0) if self.backward else self.x

    @property
    def options(self) -> tuple[Any, ...]:
        """Of torch's kernels: biases, layers, dropout, training, both directions, batch first."""
        return self.bias is not None, 1, 0.0, False, self.directions == 2, False

    def state(self, given: Tensor | None) -> Tensor:
        """The state before the first step, [directions, batch, hidden]; zero unless given."""
        if given is None:
            return self.x.new_zeros(self.directions, self.x.shape[1], self.size)
        given = given.to(self.x.dtype)
        return given.transpose(0, 1) if self.call.get("layout", 0) else given

    def biases(self, direction: int) -> tuple[Tensor, Tensor]:
        """Of the input's share and of the recurrent one."""
        if self.bias is None:
            zero = self.x.new_zeros(self.weight.shape[1])
            return zero, zero
        first, second = self.bias[direction].chunk(2)
        return first, second

    def flat(self, order: Sequence[int]) -> list[Tensor]:
        """The weights as torch's kernels take them: direction by direction, the gates in torch's order."""

        def sorted_gates(one: Tensor) -> Tensor:
            gates = one.chunk(len(order))
            return one if len(order) == 1 else torch.cat([gates[gate] for gate in order])

        found = []
        for direction in range(self.directions):
            matrices = [self.weight[direction], self.recurrence[direction]]
            vectors = [] if self.bias is None else list(self.biases(direction))
            found += [sorted_gates(one) for one in matrices + vectors]
        return found

    def activations(self, direction: int) -> list[Callable[[Tensor], Tensor]]:
        """Of one direction. Their parameters stand in two lists, with entries only for those that have any."""
        alphas = iter(self.call.get("activation_alpha") or [])
        betas = iter(self.call.get("activation_beta") or [])
        made = []
        for name in self.names:
            kind = name.lower()
            two = kind in ("affine", "hardsigmoid", "scaledtanh")
            one = two or kind in ("elu", "leakyrelu", "thresholdedrelu")
            made.append(activation(name, next(alphas, None) if one else None, next(betas, None) if two else None))
        count = len(self.names) // self.directions
        return made[direction * count : (direction + 1) * count]

    def shares(self, biased: int) -> list[Tensor]:
        """By direction the input's share of the gates at all steps, with both biases in the first `biased` gates: the
        recurrent bias of the others (a GRU's last) is the step's own affair.
        """
        found = []
        for direction in range(self.directions):
            first, second = self.biases(direction)
            both = torch.cat([second[: biased * self.size], torch.zeros_like(second[biased * self.size :])])
            found.append(self.x @ self.weight[direction].t() + first + both)
        return found

    def walked(
        self, steps: Callable[[int], Advance], states: Sequence[Tensor], shares: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Step by step. After the end of a sequence its states stay as they are and the result is zero, which backward
        means that it starts at its last element.
        """
        results, lasts = [], []
        for direction in range(self.directions):
            step, state = steps(direction), tuple(one[direction] for one in states)
            shown: list[Tensor] = []
            times = range(len(self.x))
            back = self.backward or direction == 1
            for time in reversed(times) if back else times:
                after = step(shares[direction][time], state)
                if self.lengths is not None:
                    alive = (time < self.lengths)[:, None]
                    after = tuple(torch.where(alive, new, old) for new, old in zip(after, state, strict=True))
                    shown.append(torch.where(alive, after[0], torch.zeros_like(after[0])))
                else:
                    shown.append(after[0])
                state = after
            results.append(torch.stack(shown[::-1] if back else shown))
            lasts.append(state)
        return self._laid_out(torch.stack(results, 1), [torch.stack(one) for one in zip(*lasts, strict=True)])

    def results(self, y: Tensor, last: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What torch's kernels gave: directions stand beside each other in its last axis."""
        y = y.flip(0) if self.backward else y
        return self._laid_out(y.unflatten(-1, (self.directions, self.size)).transpose(1, 2), last)

    def _laid_out(self, y: Tensor, last: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self.call.get("layout", 0):
            y, last = y.permute(2, 0, 1, 3), [one.transpose(0, 1) for one in last]
        return (y, *last)[: self.call.outputs]


def _layer(
    call: OperatorCall,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    usual: list[str],
) -> _Layer:
    """The layer as torch takes it; `usual` are the activations of torch's kernel."""
    if call.get("clip"):
        raise NotInTorch("a recurrent layer that clips its gates")
    x = x.transpose(0, 1) if call.get("layout", 0) else x
    if lengths is not None and bool((lengths == len(x)).all()):
        lengths = None
    names = list(call.get("activations") or usual * weight.shape[0])
    plain = lengths is None and [name.lower() for name in names] == [name.lower() for name in usual] * weight.shape[0]
    weight, recurrence = weight.to(x.dtype), recurrence.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    return _Layer(call, x, weight, recurrence, bias, lengths, names, plain)
