"""Sequences of tensors: Python's lists, which nothing changes in place. Where in one and how many is read by Python."""

from __future__ import annotations

import torch
from torch import Tensor

from lepton_cli.train.operators.call import OperatorCall, ints

#: One result: several are a tuple.
Sequenced = tuple[list[Tensor]]


def construct(call: OperatorCall, *items: Tensor) -> Sequenced:
    return ([*items],)


def empty(call: OperatorCall) -> Sequenced:
    return ([],)


def insert(call: OperatorCall, sequence: list[Tensor], item: Tensor, position: Tensor | None = None) -> Sequenced:
    """Before the position; without one at the end."""
    made = [*sequence]
    made.insert(len(made) if position is None else int(position), item)
    return (made,)


def erase(call: OperatorCall, sequence: list[Tensor], position: Tensor | None = None) -> Sequenced:
    """Without the one at the position, or the last."""
    made = [*sequence]
    del made[-1 if position is None else int(position)]
    return (made,)


def at(call: OperatorCall, sequence: list[Tensor], position: Tensor) -> Tensor:
    return sequence[int(position)]


def length(call: OperatorCall, sequence: list[Tensor]) -> Tensor:
    return torch.tensor(len(sequence))


def split(call: OperatorCall, x: Tensor, sizes: Tensor | None = None) -> Sequenced:
    """In parts of the sizes, or of the one size and a rest; without any in single rows, where `keepdims` counts."""
    axis = call.get("axis", 0)
    if sizes is None:
        return (list(x.split(1, axis) if call.get("keepdims", 1) else x.unbind(axis)),)
    return (list(x.split(ints(sizes) if sizes.dim() else int(sizes), axis)),)


def concat(call: OperatorCall, sequence: list[Tensor]) -> Tensor:
    join = torch.stack if call.get("new_axis", 0) else torch.cat
    return join(sequence, call["axis"])
