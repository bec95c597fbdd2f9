"""What `fuse` and the steps for heads say about their work, and what differs between two graphs. Light: no numpy."""

from __future__ import annotations

from typing import Literal

from lepton_cli.step import Details
from lepton_cli.values import Strict


class FuseDetails(Details):
    """The kind of transformer found, and how many of onnxruntime's operators came, by name."""

    model_type: str = ""
    heads: int | None = None
    hidden_size: int | None = None
    operators: dict[str, int] = {}


class HeadDetails(Details):
    """The new output, the value that its linear layer reads, with how many channels, and the numbers a sample.

    `left`: the layer before it, where other outputs go on being computed from that.
    """

    output: str = ""
    at: str = ""
    channels: int = 0
    width: int = 0
    left: str = ""


class LayerChange(Strict):
    """A layer before and after; `None` where there is none."""

    node: str
    change: Literal["changed", "removed", "added"]
    op: tuple[str | None, str | None]
    dtype: tuple[str | None, str | None]
    shape: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    parameters: tuple[int | None, int | None]


class GraphDiff(Strict):
    """What differs between two graphs, each pair before and after.

    `operators`: counts by name, where they differ. `inputs`, `outputs`: both sides in words where they differ, else
    nothing. `layers`: what changed, was removed or added; `layers_same` more are equal.
    """

    nodes: tuple[int, int]
    operators: dict[str, tuple[int, int]] = {}
    inputs: tuple[tuple[str, ...], ...] = ()
    outputs: tuple[tuple[str, ...], ...] = ()
    layers: tuple[LayerChange, ...] = ()
    layers_same: int = 0
