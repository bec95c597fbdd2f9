"""Attention as onnxruntime fuses it (domain com.microsoft). Scores with a bias of their own and masks that add
`mask_filter_value`, not minus infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lepton_cli.train.operators.attention import attend, beside, heads, joined, reach, rotated
from lepton_cli.train.operators.call import NotInTorch, OperatorCall


def attention(
    call: OperatorCall,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
    past_length: Tensor | None = None,
) -> Tensor | tuple[Tensor | None, ...]:
    """Attention: queries, keys and values in one product. The second result holds keys and values, also the past."""
    if call.get("do_rotary", 0) or call.get("past_present_share_buffer", 0) or past_length is not None:
        raise NotInTorch("Attention with rotary embeddings or a shared buffer of the past")
    sizes = list(call.get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3)
    mixed = torch.matmul(x, weight)
    mixed = mixed if bias is None else mixed + bias
    query, key, value = (heads(one, call["num_heads"]) for one in mixed.split(sizes, -1))
    if past is not None:
        key, value = joined(past[0], key), joined(past[1], value)
    scores_bias = _bias(call, query, key, mask, added)
    y, _ = attend(query, key, value, scores_bias, scale=call.get("scale"))
    return (beside(y), torch.stack([key, value]))[: call.outputs] if call.outputs > 1 else beside(y)


def multi_head_attention(
    call: OperatorCall,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *buffers: Tensor | None,
) -> Tensor | tuple[Tensor | None, ...]:
    """MultiHeadAttention of queries, keys and values that stand apart (keys and values of another sequence may have
    their axis of heads already). The other results are keys and values, also the past.
    """
    if query.dim() != 3 or key is None or value is None:
        raise NotInTorch("MultiHeadAttention with packed inputs")
    if any(one is not None for one in buffers) or call.outputs > 3:
        raise NotInTorch("MultiHeadAttention with a shared buffer of the past or scores as a result")
    count = call["num_heads"]
    if bias is not None:
        sizes = [query.shape[-1], query.shape[-1]]
        shares = bias.split([*sizes, bias.shape[0] - sum(sizes)])
        query = query + shares[0]
        if key.dim() == 3:
            key, value = key + shares[1], value + shares[2]
    query = heads(query, count)
    key, value = (heads(one, count) if one.dim() == 3 else one for one in (key, value))
    key, value = joined(past_key, key), joined(past_value, value)
    y, _ = attend(query, key, value, _bias(call, query, key, mask, added), scale=call.get("scale"))
    return (beside(y), key, value)[: call.outputs] if call.outputs > 1 else beside(y)


def group_query_attention(
    call: OperatorCall,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor,
    total: Tensor,
    cosines: Tensor | None = None,
    sines: Tensor | None = None,
    places: Tensor | None = None,
    added: Tensor | None = None,
    sink: Tensor | None = None,
    *others: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """GroupQueryAttention: causal, several queries share a key, places embedded by rotation. `lengths` are one less
    than how many keys each sample has with the past. Raises NotInTorch where samples have pasts of different lengths.
    """
    if any(one is not None for one in others) or call.outputs > 3:
        raise NotInTorch("GroupQueryAttention with norms, quantized caches or scores as a result")
    if call.get("kv_cache_bit_width", 0) or call.get("sliding_window_cache", 0) or not call.get("causal", 1):
        raise NotInTorch("GroupQueryAttention with a sliding or quantized cache, or not causal")
    count, shared = call["num_heads"], call["kv_num_heads"]
    if key is None or value is None:
        size = query.shape[-1] // (count + 2 * shared)
        query, key, value = query.split([count * size, shared * size, shared * size], -1)
    query, key, value = heads(query, count), heads(key, shared), heads(value, shared)
    before = 0 if past_key is None else past_key.shape[2]
    if int(total) != before + key.shape[2] or (before and not bool((lengths == int(total) - 1).all())):
        raise NotInTorch("GroupQueryAttention with pasts of different lengths, or in a larger buffer")
    if call.get("do_rotary", 0):
        if cosines is None or sines is None:
            raise NotInTorch("GroupQueryAttention that rotates without tables")
        where = torch.arange(before, before + query.shape[2], device=query.device)
        if places is not None:
            where = places.long() if before else where + places.reshape(-1)[0]
        cosines, sines = cosines[where].unsqueeze(-3), sines[where].unsqueeze(-3)
        interleaved = bool(call.get("rotary_interleaved", 0))
        query, key = rotated(query, cosines, sines, interleaved), rotated(key, cosines, sines, interleaved)
    key, value = joined(past_key, key), joined(past_value, value)
    window = call.get("local_window_size", -1)
    seen = reach(query.shape[2], key.shape[2], before, window - 1 if window > 0 else -1, 0, query.device)
    seen = seen & (torch.arange(key.shape[2], device=query.device) <= lengths.reshape(-1, 1, 1, 1))
    bias = _lowest(~seen, query) if added is None else added.masked_fill(~seen, -torch.inf)
    if sink is None and call.get("smooth_softmax", 0) > 0:
        sink = query.new_zeros(count)
    y, _ = attend(query, key, value, bias, scale=call.get("scale"), softcap=call.get("softcap", 0.0), sink=sink)
    return (beside(y), key, value)[: call.outputs]


def rotary_embedding(call: OperatorCall, x: Tensor, places: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """RotaryEmbedding with tables by place; a single place is that of the first element."""
    if call.get("is_packed_batching", 0) or call.get("scale", 1.0) != 1:
        raise NotInTorch("RotaryEmbedding of packed batches or with a scale")
    flat = x.dim() == 3
    if flat:
        count = call.get("num_heads", 0)
        x = heads(x, count if count and call.get("rotary_embedding_dim", 0) else x.shape[-1] // (2 * cosines.shape[1]))
    where = places.long()
    if where.dim() == 1:
        where = where + torch.arange(x.shape[2], device=x.device)
    cosines, sines = cosines[where].unsqueeze(-3), sines[where].unsqueeze(-3)
    turned = rotated(x, cosines, sines, bool(call.get("interleaved", 0)))
    return beside(turned) if flat else turned


def _bias(call: OperatorCall, query: Tensor, key: Tensor, mask: Tensor | None, added: Tensor | None) -> Tensor | None:
    """The mask in each of its forms, the keys ahead of a query (`unidirectional`) and the bias given, in one."""
    queries, keys = query.shape[2], key.shape[2]
    bias = added
    if mask is not None:
        hidden = _hidden(mask, query.shape[0], keys)
        filtered = hidden.to(query.dtype) * call.get("mask_filter_value", -10000.0)
        bias = filtered if bias is None else bias + filtered
    if call.get("unidirectional", 0):
        ahead = ~reach(queries, keys, keys - queries, -1, 0, query.device)
        lowest = _lowest(ahead, query)
        bias = lowest if bias is None else bias.masked_fill(ahead, torch.finfo(query.dtype).min)
    return bias


def _lowest(forbidden: Tensor, query: Tensor) -> Tensor:
    """A bias that is the lowest number where forbidden, as onnxruntime has it: not infinite."""
    return torch.zeros_like(forbidden, dtype=query.dtype).masked_fill(forbidden, torch.finfo(query.dtype).min)


def _hidden(mask: Tensor, batch: int, keys: int) -> Tensor:
    """Which keys the mask hides, [batch, 1, 1 or queries, keys]: it holds ones for those that count, or for each sample
    the end of those, and maybe after all ends the starts.
    """
    if mask.dim() == 2:
        return (mask <= 0)[:, None, None]
    if mask.dim() == 3:
        return (mask <= 0)[:, None]
    if mask.dim() != 1 or mask.shape[0] not in (batch, 2 * batch):
        raise NotInTorch(f"a mask of attention with the shape {list(mask.shape)}")
    place, edges = torch.arange(keys, device=mask.device), mask.reshape(-1, batch, 1)
    hidden = place >= edges[0]
    hidden = hidden if len(edges) == 1 else hidden | (place < edges[1])
    return hidden[:, None, None]
