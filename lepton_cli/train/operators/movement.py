"""Shapes changed and elements moved; nothing is computed. Views wherever torch has one: nothing changes them in place.

Shapes as values stay on the CPU, where reading them costs no wait for a device.
"""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from lepton_cli.train.operators.call import TYPES, NotInTorch, OperatorCall, ints


def identity(call: OperatorCall, x: Tensor) -> Tensor:
    return x


def shape(call: OperatorCall, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[call.get("start", 0) : call.get("end")], dtype=torch.int64)


def size(call: OperatorCall, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def reshape(call: OperatorCall, x: Tensor, to: Tensor | None = None) -> Tensor:
    """Zeros stand for the size that was there, unless `allowzero`."""
    sizes = ints(call["shape"] if to is None else to)
    if not call.get("allowzero", 0):
        sizes = [number or x.shape[axis] for axis, number in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(call: OperatorCall, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis += x.dim() if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(call: OperatorCall, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = call.get("axes") if axes is None else axes
    return x.squeeze() if given is None else x.squeeze(ints(given))


def unsqueeze(call: OperatorCall, x: Tensor, axes: Tensor | None = None) -> Tensor:
    places = ints(call["axes"] if axes is None else axes)
    rank = x.dim() + len(places)
    for axis in sorted(axis % rank for axis in places):
        x = x.unsqueeze(axis)
    return x


def transpose(call: OperatorCall, x: Tensor) -> Tensor:
    return x.permute(call.get("perm", tuple(range(x.dim())[::-1])))


def concat(call: OperatorCall, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, call.get("axis", 1))


def split(call: OperatorCall, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """By the sizes of an attribute or an input; without them into equal parts, the last of which may be smaller."""
    axis = call.get("axis", 0)
    given = call.get("split") if sizes is None else sizes
    if given is not None:
        return tuple(x.split(ints(given), axis))
    parts = call.get("num_outputs", call.outputs)
    step = -(-x.shape[axis] // parts)
    return tuple(x.split([max(0, min(step, x.shape[axis] - step * part)) for part in range(parts)], axis))


def slice_axes(
    call: OperatorCall,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """By attributes before opset 10, by inputs after; ends may lie outside."""
    first, last = ints(call["starts"] if starts is None else starts), ints(call["ends"] if ends is None else ends)
    given = call.get("axes", range(len(first))) if axes is None else axes
    strides = [1] * len(first) if steps is None else ints(steps)
    for start, end, axis, step in zip(first, last, ints(given), strides, strict=True):
        x = _sliced(x, axis % x.dim(), start, end, step)
    return x


def _sliced(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """torch steps only forwards: backwards it is the same elements, flipped. Ends are clamped as Python does, but for a
    start before the first element, which is the first.
    """
    length = x.shape[axis]
    places = range(*slice(max(start, -length), end, step).indices(length))
    if places == range(length):
        return x
    if step == 1 or not places:
        return x.narrow(axis, places.start if places else 0, len(places))
    low, high = min(places[0], places[-1]), max(places[0], places[-1])
    taken = x[(slice(None),) * axis + (slice(low, high + 1, abs(step)),)]
    return taken if step > 0 else taken.flip(axis)


def expand(call: OperatorCall, x: Tensor, to: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, ints(to)))


def tile(call: OperatorCall, x: Tensor, repeats: Tensor, axis: Tensor | None = None) -> Tensor:
    if axis is not None:
        raise NotInTorch("Tile of one axis, before opset 6")
    return x.repeat(ints(repeats))


def pad(
    call: OperatorCall,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Pads are an attribute before opset 11 and an input after; negative ones cut."""
    given = ints(call["pads"] if pads is None else pads)
    half = len(given) // 2
    places = [axis % x.dim() for axis in (range(half) if axes is None else ints(axes))]
    ends = [(0, 0)] * x.dim()
    for axis, before, after in zip(places, given[:half], given[half:], strict=True):
        ends[axis] = (before, after)
    mode = call.get("mode", "constant")
    if mode == "constant":
        filler = call.get("value", 0.0) if value is None or not value.numel() else value.item()
        last = next((axis for axis in range(x.dim()) if ends[axis] != (0, 0)), x.dim())
        return functional.pad(x, [number for pair in ends[last:][::-1] for number in pair], value=filler)
    if mode in ("reflect", "edge") and x.dim() == 4 and ends[:2] == [(0, 0)] * 2 and _one_turn(x, ends):
        kernel = "reflect" if mode == "reflect" else "replicate"
        return functional.pad(x, [*ends[3], *ends[2]], mode=kernel)
    for axis, (before, after) in enumerate(ends):
        if min(before, after) < 0:  # first cut, then continued from what is left
            x = x.narrow(axis, max(0, -before), x.shape[axis] + min(0, before) + min(0, after))
        if max(before, after) > 0:
            places = _mirrored(mode, x.shape[axis], max(0, before), max(0, after))
            x = x.index_select(axis, places.to(x.device))
    return x


def _one_turn(x: Tensor, ends: list[tuple[int, int]]) -> bool:
    """torch's own kernels, for pictures of floats, look across an edge once."""
    return x.is_floating_point() and all(
        0 <= number < length for pair, length in zip(ends, x.shape, strict=True) for number in pair if number
    )


def _mirrored(mode: str, length: int, before: int, after: int) -> Tensor:
    """Where each element of a padded axis comes from."""
    places = torch.arange(-before, length + after)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    if mode != "reflect":
        raise NotInTorch(f"Pad of mode {mode}")
    turn = max(2 * (length - 1), 1)
    places = places % turn
    return torch.minimum(places, turn - places) if length > 1 else places


def constant_of_shape(call: OperatorCall, to: Tensor) -> Tensor:
    value = call.get("value")
    if value is None:
        return torch.zeros(ints(to), device=to.device)
    return torch.full(ints(to), value.item(), dtype=value.dtype, device=to.device)


def range_of(call: OperatorCall, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    count = max(0, math.ceil((limit.item() - start.item()) / delta.item()))
    return start + torch.arange(count, device=start.device).to(start.dtype) * delta


def trilu(call: OperatorCall, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    place = 0 if diagonal is None else int(diagonal)
    return torch.triu(x, place) if call.get("upper", 1) else torch.tril(x, place)


def eye_like(call: OperatorCall, x: Tensor) -> Tensor:
    kind = ir.DataType(call["dtype"]) if "dtype" in call else None
    if kind is not None and kind not in TYPES:
        raise NotInTorch(f"torch has no {kind.name} tensors")
    rows, columns = (torch.arange(length, device=x.device) for length in x.shape)
    on = rows[:, None] + call.get("k", 0) == columns
    return on.to(x.dtype if kind is None else TYPES[kind])


def depth_to_space(call: OperatorCall, x: Tensor) -> Tensor:
    """Blocks come from channels: in mode CRD those next to each other (Shi et al. 2016), in DCR every n-th."""
    step = call["blocksize"]
    if call.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, step)
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, step, step, channels // step**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, channels // step**2, height * step, width * step)


def space_to_depth(call: OperatorCall, x: Tensor) -> Tensor:
    """The reverse of `depth_to_space`."""
    step = call["blocksize"]
    if call.get("mode", "DCR") == "CRD":
        return functional.pixel_unshuffle(x, step)
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // step, step, width // step, step).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, channels * step**2, height // step, width // step)


def reverse_sequence(call: OperatorCall, x: Tensor, lengths: Tensor) -> Tensor:
    """The first elements of each sequence, as many as its length, turned round."""
    along, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    time = torch.arange(x.shape[along], device=x.device)[:, None]
    lengths = lengths.to(x.device)
    places = torch.where(time < lengths, lengths - 1 - time, time)
    places = places if along < batch else places.t()
    return x.gather(along, places.reshape(places.shape + (1,) * (x.dim() - 2)).expand(x.shape))


def compress(call: OperatorCall, x: Tensor, condition: Tensor) -> Tensor:
    """Slices, or without an axis elements, where the condition holds; it may be too short."""
    chosen = condition.nonzero().reshape(-1).to(x.device)
    return x.reshape(-1).index_select(0, chosen) if "axis" not in call else x.index_select(call["axis"], chosen)


def non_zero(call: OperatorCall, x: Tensor) -> Tensor:
    return x.nonzero().t()


def unique(call: OperatorCall, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values or slices that differ, where each is first, which each one is, how often each occurs; sorted or in the
    order of their first places.
    """
    along = call.get("axis")
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=along)
    inverse, count = inverse.reshape(-1), len(counts)
    first = inverse.new_full((count,), inverse.numel())
    first = first.scatter_reduce(0, inverse, torch.arange(inverse.numel(), device=x.device), "amin")
    if call.get("sorted", 1):
        return values, first, inverse, counts
    order = first.argsort()
    return values.index_select(along or 0, order), first[order], order.argsort()[inverse], counts[order]
