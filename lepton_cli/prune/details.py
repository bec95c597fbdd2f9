"""What the pruning steps say about their work: the parts of a report that they fill. Light: no numpy here."""

from __future__ import annotations

from lepton_cli.step import Details
from lepton_cli.train.details import TrainingDetails
from lepton_cli.values import Strict


class Width(Strict):
    """Outputs of one node before and after; 0 after for a node whose branch was dropped."""

    node: str
    before: int
    after: int


class ChannelGroup(Strict):
    """Channels that can only go together. `reason` and `node`: why a frozen group loses none, and what stands there."""

    name: str
    channels: int
    kept: int
    frozen: bool
    reason: str = ""
    node: str = ""


class DroppedBranch(Strict):
    """A residual branch that went as a whole: the addition it led into, and its nodes."""

    add: str
    nodes: tuple[str, ...]


class LayerRepair(Strict):
    """What was tried on one layer; errors are shares of the target's variance, `None` where not finite.

    `scarce`: the calibration data was too little for the layer.
    """

    node: str
    kind: str
    kept: bool
    error_before: float | None
    error_after: float | None
    scarce: bool = False


class ReachedTarget(Strict):
    """A target and what was reached, as shares of the original's; `predicted` is what was expected of a latency."""

    metric: str
    target: float
    reached: float
    predicted: float | None = None


class PruneChannelsDetails(Details):
    """What was removed, by node and by group, and how it was repaired."""

    widths: tuple[Width, ...] = ()
    groups: tuple[ChannelGroup, ...] = ()
    branches: tuple[DroppedBranch, ...] = ()
    recovery: tuple[LayerRepair, ...] = ()
    targets: tuple[ReachedTarget, ...] = ()
    #: The precision that widths were chosen for by measured times, where no latency was asked for, and the measured
    #: share of the original's time, both in that precision and not yet repaired.
    timed_as: str | None = None
    time: float | None = None
    #: Of `recover: [distill]`.
    training: TrainingDetails | None = None


class PrunedTensor(Strict):
    """How many weights a node has, and how many of them are zero."""

    node: str
    weights: int
    zeros: int


class PruneWeightsDetails(Details):
    """Zeros by tensor, what zeros are good for, and what ranked them."""

    tensors: tuple[PrunedTensor, ...] = ()
    note: str = ""
    importance: str = ""
