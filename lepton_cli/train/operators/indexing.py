"""Elements read and written by index. Negative indices count from the end; they may stand on another device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, ints

#: `reduction` of the standard to that of torch.
REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def gather(call: OperatorCall, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.dim()
    if indices.dim() == 0 and indices.device.type == "cpu":
        return x.select(axis, int(indices))
    chosen = x.index_select(axis, _counted(indices, x.shape[axis], x).reshape(-1))
    return chosen.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(call: OperatorCall, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    return torch.gather(x, axis, _counted(indices, x.shape[axis], x))


def gather_nd(call: OperatorCall, x: Tensor, indices: Tensor) -> Tensor:
    """Each row of `indices` names an element or, if it is shorter than there are axes, a block."""
    batch, depth = call.get("batch_dims", 0), indices.shape[-1]
    flat = _flat(indices, x.shape[batch : batch + depth], x)
    if batch:
        size = math.prod(x.shape[batch : batch + depth])
        shift = torch.arange(math.prod(x.shape[:batch]), device=x.device) * size
        flat = flat + shift.reshape(x.shape[:batch] + (1,) * (flat.dim() - batch))
    rest = x.shape[batch + depth :]
    return x.reshape((-1, *rest)).index_select(0, flat.reshape(-1)).reshape(indices.shape[:-1] + rest)


def scatter_elements(call: OperatorCall, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Also `Scatter`, its name before opset 11. Where indices meet without `reduction`, any of them wins."""
    axis = call.get("axis", 0)
    return _scattered(call, x, axis, _counted(indices, x.shape[axis], x), updates)


def scatter_nd(call: OperatorCall, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Each row of `indices` names an element or a block, as in `gather_nd`."""
    depth = indices.shape[-1]
    flat = _flat(indices, x.shape[:depth], x).reshape(-1, 1)
    blocks = x.reshape(math.prod(x.shape[:depth]), -1)
    made = _scattered(call, blocks, 0, flat.expand(-1, blocks.shape[1]), updates.reshape(flat.shape[0], -1))
    return made.reshape(x.shape)


def one_hot(call: OperatorCall, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """`values` are off and on; indices outside of the depth are nowhere on."""
    count, axis = ints(depth)[0], call.get("axis", -1)
    axis += indices.dim() + 1 if axis < 0 else 0
    places = torch.where(indices < 0, indices + count, indices).unsqueeze(axis)
    shape = [1] * places.dim()
    shape[axis] = count
    on = places == torch.arange(count, device=indices.device).reshape(shape)
    values = values.to(indices.device)
    return torch.where(on, values[1], values[0])


def _counted(indices: Tensor, size: int, x: Tensor) -> Tensor:
    """Counted from the start, as torch wants them, where `x` is."""
    indices = indices.to(x.device, torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def _flat(indices: Tensor, sizes: torch.Size, x: Tensor) -> Tensor:
    """Rows of indices into axes of these sizes, as one index into all of them."""
    indices = indices.to(x.device, torch.int64)
    flat = indices.new_zeros(indices.shape[:-1])
    for place, size in enumerate(sizes):
        flat = flat * size + _counted(indices[..., place], size, x)
    return flat


def _scattered(call: OperatorCall, x: Tensor, axis: int, indices: Tensor, updates: Tensor) -> Tensor:
    updates, how = updates.to(x.dtype), call.get("reduction", "none")
    if how == "none":
        return x.scatter(axis, indices, updates)
    if how == "add":
        return x.scatter_add(axis, indices, updates)
    if how not in REDUCTIONS:
        raise NotInTorch(f"the reduction {how}")
    return x.scatter_reduce(axis, indices, updates, REDUCTIONS[how])
