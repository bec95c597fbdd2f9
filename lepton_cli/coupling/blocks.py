"""How channels pass through DepthToSpace and SpaceToDepth: blocks of places beside channels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lepton_cli.coupling.layout import source
from lepton_cli.coupling.links import Links


def depth_to_space(links: Links, node: ir.Node) -> None:
    """Every output channel is made of blocksize^2 input channels."""
    x, y = source(node), node.outputs[0]
    crd = node.attributes.get_string("mode") == "CRD"
    _blocked(links, x, y, node.attributes.get_int("blocksize", 1) ** 2, inner=crd)


def space_to_depth(links: Links, node: ir.Node) -> None:
    """Every input channel becomes blocksize^2 output channels."""
    x, y = source(node), node.outputs[0]
    _blocked(links, y, x, node.attributes.get_int("blocksize", 1) ** 2, inner=False)


def _blocked(links: Links, deep: ir.Value, flat: ir.Value, block: int, *, inner: bool) -> None:
    links.join(deep, 0, flat, 0)
    channels = links.ids(flat, 1)
    ids = links.ids(deep, 1)
    if inner:
        links.link(ids.reshape(-1, block), np.broadcast_to(channels[:, None], (len(channels), block)))
    else:
        links.link(ids.reshape(block, -1), np.broadcast_to(channels, (block, len(channels))))
    links.spread((deep, 1), (flat, 1))
