"""The standard's Attention and RotaryEmbedding, and what attention of every kind is made of.

Queries, keys and values are [batch, heads, places, features] inside; a bias is added to the scores and minus infinity
in it forbids a key.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from lepton_cli.train.operators.call import TYPES, NotInTorch, OperatorCall


def attention(
    call: OperatorCall,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor | tuple[Tensor | None, ...]:
    """Attention: the result, keys and values with the past ones, and the scores at the stage that
    `qk_matmul_output_mode` names. `lengths` are the keys of each sample that are none of padding.
    """
    flat = query.dim() == 3
    if flat:
        query = heads(query, call["q_num_heads"])
        key, value = heads(key, call["kv_num_heads"]), heads(value, call["kv_num_heads"])
    key, value = joined(past_key, key), joined(past_value, value)
    before = 0 if past_key is None else past_key.shape[2]
    causal = bool(call.get("is_causal", 0))
    left, right = call.get("left_window_size", -1), call.get("right_window_size", -1)
    masked = mask is not None or lengths is not None or left >= 0 or right >= 0 or before > 0
    bias = _bias(query, key, mask, lengths, before, left, 0 if causal else right) if masked else None
    wanted = call.get("qk_matmul_output_mode", 0) if call.outputs > 3 else None
    precision = call.get("softmax_precision")
    if precision is not None and precision not in TYPES:
        raise NotInTorch(f"a softmax in the ONNX type {precision}")
    y, scores = attend(
        query,
        key,
        value,
        bias,
        causal=causal and not masked,
        scale=call.get("scale"),
        softcap=call.get("softcap", 0.0),
        precision=None if precision is None else TYPES[precision],
        stage=wanted,
    )
    y = beside(y) if flat else y
    return (y, key, value, scores)[: call.outputs] if call.outputs > 1 else y


def rotary_embedding(
    call: OperatorCall, x: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None = None
) -> Tensor:
    """RotaryEmbedding: the tables are indexed by places, or hold each sample's own rows already."""
    if places is not None:
        cosines, sines = cosines[places.long()], sines[places.long()]
    flat = x.dim() == 3
    turned = rotated(
        heads(x, call["num_heads"]) if flat else x,
        cosines.unsqueeze(-3),
        sines.unsqueeze(-3),
        bool(call.get("interleaved", 0)),
    )
    return beside(turned) if flat else turned


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
    precision: torch.dtype | None = None,
    stage: int | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The values weighted by the scores, and where a stage is given the scores there: 0 scaled, 1 capped too, 2 with
    the bias, 3 after the softmax. Keys and values may have fewer heads, which neighbouring queries share. `causal`
    (without a bias) lets the query at each place see the keys up to the same place. `sink` are scores of each head that
    take part in the softmax and weigh nothing. A query that may see no key gets zeros.
    """
    if key.shape[1] != query.shape[1]:
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    scale = scale or 1 / math.sqrt(query.shape[-1])
    if not softcap and stage is None and sink is None and precision in (None, query.dtype, torch.float32):
        made = functional.scaled_dot_product_attention(query, key, value, bias, is_causal=causal, scale=scale)
        return made, None
    if causal:
        bias = forbidding(reach(query.shape[2], key.shape[2], 0, -1, 0, query.device), query.dtype)
    scores = (query * scale) @ key.transpose(-1, -2)
    shown = scores
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
        shown = shown if stage == 0 else scores
    empty = None
    if bias is not None:
        # A row of nothing but minus infinities has no softmax; its gradient would be NaN even where it is not used.
        empty = torch.isneginf(bias).all(-1, keepdim=True)
        shown = scores + bias if stage == 2 else shown
        scores = scores.masked_fill(torch.isneginf(bias), -math.inf) + bias
        scores = scores.masked_fill(empty, 0.0)
    if sink is not None:
        scores = torch.cat([scores, sink.to(scores.dtype).reshape(-1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1, dtype=precision).to(query.dtype)
    weights = weights if sink is None else weights[..., :-1]
    weights = weights if empty is None else weights.masked_fill(empty, 0.0)
    return weights @ value, (weights if stage == 3 else shown) if stage is not None else None


def heads(x: Tensor, count: int) -> Tensor:
    """[batch, places, heads * features] as [batch, heads, places, features]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def beside(x: Tensor) -> Tensor:
    """[batch, heads, places, features] as [batch, places, heads * features]."""
    return x.transpose(1, 2).flatten(2)


def joined(past: Tensor | None, now: Tensor) -> Tensor:
    """Keys or values after the past ones."""
    return now if past is None else torch.cat([past, now], 2)


def rotated(x: Tensor, cosines: Tensor, sines: Tensor, interleaved: bool) -> Tensor:
    """[..., places, features] with pairs of features turned by their place's angles [..., places, pairs]: neighbours
    if `interleaved`, otherwise one of each half. Features beyond the pairs stay.
    """
    size = 2 * cosines.shape[-1]
    part, rest = x[..., :size], x[..., size:]
    first, second = (part[..., ::2], part[..., 1::2]) if interleaved else part.chunk(2, -1)
    cosines, sines = cosines.to(x.dtype), sines.to(x.dtype)
    real, imaginary = cosines * first - sines * second, sines * first + cosines * second
    turned = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    return turned if not rest.shape[-1] else torch.cat([turned, rest], -1)


def reach(queries: int, keys: int, before: Tensor | int, left: int, right: int, device: torch.device) -> Tensor:
    """Which keys each query may see: those at most `left` places before its own and `right` after it, both without end
    where negative. Its own is its number and how many keys stand `before` the first one (a tensor: one for each sample,
    with axes to broadcast).
    """
    place = torch.arange(queries, device=device)[:, None] + before
    distance = place - torch.arange(keys, device=device)
    seen = torch.ones_like(distance, dtype=torch.bool)
    seen = seen & (distance <= left) if left >= 0 else seen
    return seen & (-distance <= right) if right >= 0 else seen


def forbidding(allowed: Tensor, kind: torch.dtype) -> Tensor:
    """A bias of zero where allowed and of minus infinity elsewhere."""
    return torch.zeros_like(allowed, dtype=kind).masked_fill(~allowed, -math.inf)


def _bias(
    query: Tensor, key: Tensor, mask: Tensor | None, lengths: Tensor | None, before: int, left: int, right: int
) -> Tensor | None:
    """Everything that the standard lets mask keys, as one bias; None where nothing does."""
    queries, keys, kind = query.shape[2], key.shape[2], query.dtype
    allowed, added, first = None, None, torch.tensor(before, device=query.device)
    if mask is not None:
        missing = keys - mask.shape[-1]
        if mask.dtype == torch.bool:
            allowed = functional.pad(mask, (0, missing)) if missing else mask
        else:
            added = (functional.pad(mask, (0, missing), value=-math.inf) if missing else mask).to(kind)
    if lengths is not None:
        first = (lengths - queries).reshape(-1, 1, 1, 1)
        present = torch.arange(keys, device=query.device) < lengths.reshape(-1, 1, 1, 1)
        allowed = present if allowed is None else allowed & present
    if left >= 0 or right >= 0:
        seen = reach(queries, keys, first, left, right, query.device)
        allowed = seen if allowed is None else allowed & seen
    if allowed is None:
        return added
    bias = forbidding(allowed, kind)
    return bias if added is None else torch.where(allowed, added, bias)
