"""What a step is: `apply(model, params, context) -> Outcome`, and the types around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lepton_cli.progress import Progress
from lepton_cli.values import Strict

if TYPE_CHECKING:
    import onnx_ir as ir

    from lepton_cli.data.dataset import Dataset


class Params(Strict):
    """Options that every step has. Subclasses set `step` to a `Literal` of their own name, without default."""

    step: str
    include: tuple[str, ...] = Field(
        default=(), description="Globs on node names: only these nodes are touched (empty: all)"
    )
    exclude: tuple[str, ...] = Field(default=(), description="Globs on node names that are left as they are")
    if_possible: bool = Field(default=False, description="Changing nothing is not an error")


class Decision(Strict):
    """What a step did with one node, and why. `action` is one word: `pruned`, `quantized`, `removed`, `kept`…"""

    node: str
    op: str
    action: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Context:
    """What a step may use besides the model. Nothing here may be changed by a step."""

    #: Unlabelled data to calibrate and recover with; `None` when the recipe gives none.
    calibration: Dataset | None
    #: Labelled (or at least separate) data the result is judged on; steps may use it only where their options say so.
    evaluation: Dataset | None
    #: A few real batches, or synthetic ones when there is no data: for checks of equality. Never `None`.
    check: Dataset
    #: The model the run began with: the reference that recovery restores.
    original: ir.Model
    #: Accuracy of a model on the evaluation data, as a share of 1, higher is better; `None` without labels.
    score: Callable[[ir.Model], float] | None
    provider: str
    batch: int
    threads: int
    seed: int
    progress: Progress
    #: Scratch folder of this run; removed at its end.
    workdir: Path
    #: Folder for results worth keeping between runs (ranges), keyed by content hash; `None`: keep nothing.
    cache: Path | None
    #: True for `plan`: decide and report, but do not spend time on measurements or recovery.
    dry: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a step made.

    `changed` counts the nodes or tensors that are different now; 0 is an error unless `if_possible`. `details`
    holds what the report draws (JSON values only): widths before and after, per-layer errors, chosen settings.
    """

    model: ir.Model
    changed: int
    decisions: tuple[Decision, ...] = ()
    summary: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    #: Absolute-relative tolerance of the outputs against the step's input on the check batches; `None`: the step
    #: changes results by design and only finiteness, names, shapes and types are checked.
    tolerance: float | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """A line of the step table."""

    params: type[Params]
    apply: Callable[[ir.Model, Any, Context], Outcome]

    @property
    def summary(self) -> str:
        """First line of the description that `lepton steps` shows."""
        return (self.params.__doc__ or "").strip().splitlines()[0]
