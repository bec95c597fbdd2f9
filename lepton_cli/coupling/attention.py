"""How heads pass through the Attention of ONNX: a head of keys and values with the query heads that share it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lepton_cli.coupling.layout import optional, source
from lepton_cli.coupling.links import Links
from lepton_cli.coupling.surgery import Surgery

_HEADS = ("q_num_heads", "kv_num_heads")


def attention(links: Links, node: ir.Node) -> None:
    """`[batch, heads, length, size]`, or `[batch, length, heads * size]` with numbers of heads as attributes."""
    query, keys = source(node), source(node, 1)
    whole = len(links.shape(query) or ()) == 3
    axis = 2 if whole else 1
    groups = node.attributes.get_int("kv_num_heads", 0) if whole else (links.shape(keys) or ())[1]
    if node.domain not in ("", "ai.onnx") or not groups:  # onnxruntime's own of this name holds its weights packed
        return
    places = [(value, axis) for value in (query, keys, source(node, 2), node.outputs[0])]
    places += [(value, 1) for value in (optional(node, 4), optional(node, 5), *node.outputs[1:]) if value is not None]
    mask = optional(node, 3)
    rank = len(links.shape(mask) or ())
    if mask is not None and rank >= 3 and (links.shape(mask) or ())[rank - 3] > 1:
        places.append((mask, rank - 3))
    first = links.ids(keys, axis).reshape(groups, -1)[:, :1]
    for value, where in places:
        ids = links.ids(value, where)
        if len(ids):  # an output that nobody asked for has no shape
            ids = ids.reshape(groups, -1)
            links.link(ids, np.broadcast_to(first, ids.shape))
    links.spread(*places)


def mend_attention(surgery: Surgery, node: ir.Node) -> None:
    """As many heads as are left, where attributes say it."""
    for value, name in zip((source(node), source(node, 1)), _HEADS, strict=True):
        if name in node.attributes and surgery.keep(value, 2) is not None:
            heads, size = node.attributes.get_int(name), (surgery.links.shape(value) or ())[2]
            node.attributes[name] = ir.AttrInt64(name, heads * surgery.width(value, 2) // size)
