"""What the training steps say about their work: the parts of a report that they fill. Light: no numpy here."""

from __future__ import annotations

from lepton_cli.step import Details
from lepton_cli.values import Strict


class TrainingMark(Strict):
    """The loss on the samples kept apart after so many steps; 0: before training."""

    step: int
    loss: float


class TrainedLoss(Strict):
    """One of several losses on the samples kept apart, before and after, without its weight in the sum."""

    output: str
    kind: str
    weight: float
    before: float
    after: float


class TrainingDetails(Details):
    """How a model was trained, and what came of it.

    `proof`: largest difference between torch and onnxruntime before training, as a share of the largest output.
    `piece`: samples that the network takes at once; 0: any number. `agreement`: share of the samples kept apart with
    the teacher's answer, before and after, where there are classes; `accuracy`: the same for their labels, of the first
    output that learns class numbers. `parts`: where several losses are added up. `held`: outputs that no loss was asked
    for and that learn the teacher's answers, so as to stay what they were. `features`: values inside that learn the
    teacher's too; the losses told are those of the outputs. `in_place`: by output that does not learn (a label, boxes
    that were chosen), the values it is made of, which did.
    """

    teacher: str = ""
    parameters: int = 0
    samples: int = 0
    kept_apart: int = 0
    steps: int = 0
    batch: int = 0
    piece: int = 0
    device: str = ""
    learning_rate: float = 0.0
    rates_too_high: tuple[float, ...] = ()
    precision: str = ""
    losses: dict[str, str] = {}
    marks: tuple[TrainingMark, ...] = ()
    kept_step: int = 0
    samples_per_second: float = 0.0
    proof: float = 0.0
    agreement_before: float | None = None
    agreement_after: float | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    parts: tuple[TrainedLoss, ...] = ()
    held: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    in_place: dict[str, tuple[str, ...]] = {}
