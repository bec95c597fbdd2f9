"""What a step is: a function `(model, options, context) -> Outcome`, and the types around it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from lepton_cli import units
from lepton_cli.cache import Cache
from lepton_cli.progress import Progress
from lepton_cli.tensors import TensorInfo
from lepton_cli.values import Percent, Strict

if TYPE_CHECKING:
    import onnx_ir as ir

    from lepton_cli.data.dataset import Dataset
    from lepton_cli.data.training import TrainingData


def _names_its_step(schema: dict[str, Any]) -> None:
    """JSON Schema: a step in a file begins with its name."""
    step = schema["properties"]["step"]
    step.pop("default", None)
    schema["required"] = ["step", *schema.get("required", ())]


class Options(Strict):
    """Options that every step has, and what is known about the step without running it.

    Subclasses set `step` to a `Literal` of their own name, with that as default: code names the step by the class, a
    recipe by `step:`, which stays required there. Their first line is the step's summary.
    """

    model_config = ConfigDict(json_schema_extra=_names_its_step)

    #: Promises equal outputs: changing nothing is no error, a step that fails is left out, and a plan really runs it.
    cleaning: ClassVar[bool] = False
    #: Cannot run without calibration data.
    needs_data: ClassVar[bool] = False
    #: Its option `target` is the machine that the model will run on.
    for_machine: ClassVar[bool] = False

    step: str
    include: tuple[str, ...] = Field(
        default=(), description="Globs on node names: only these nodes are touched (empty: all)"
    )
    exclude: tuple[str, ...] = Field(default=(), description="Globs on node names that are left as they are")
    if_possible: bool = Field(default=False, description="Changing nothing is not an error")

    @model_serializer(mode="wrap")
    def _with_its_name(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Written down, a step begins with its name, also where defaults are left out."""
        return {"step": self.step, **plain(self)}

    def new_outputs(self, outputs: Sequence[TensorInfo]) -> tuple[str, ...]:
        """Names of outputs that the step adds to a model with these, or makes anew: nothing compares them with what
        was there before."""
        return ()

    def knowing(self, later: Sequence[Options]) -> Options:
        """The step with what it leaves open (`auto`) decided by the steps behind it."""
        return self

    @property
    def training(self) -> Options | None:
        """The options of what it trains with the samples of `data.training`; `None` where it does not train."""
        return None

    @property
    def new_answers(self) -> bool:
        """Whether it makes the model answer otherwise on purpose: later steps keep what it answers then."""
        return False

    @property
    def changes_types(self) -> bool:
        """Whether floating-point inputs and outputs may get another width."""
        return False

    @property
    def kept_share(self) -> float | None:
        """Share of the model's bytes that is left; `None` where the options do not say it."""
        return None


class Lossy(Options):
    """Of steps that store or compute in fewer bits: what they must gain by it. Pruning has a target of its own."""

    least_gain: Percent | Literal[False] = Field(
        default=units.Share(0.05),
        description="Leave the model as it was where the result is neither so much smaller nor so much faster (as far "
        "as the step measures that); false: insist on the result",
    )


class Details(Strict):
    """What a step says about its work besides its decisions: chosen settings, widths, errors by layer.

    Subclasses stand beside the options of their step. Every field has a default: a step may have been left out.
    """


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
    #: The only samples that may be trained with; `None` when the recipe gives none.
    training: TrainingData | None
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
    #: Where relative paths of options begin: the recipe's folder.
    base: Path
    #: Scratch folder of this run; removed at its end.
    workdir: Path
    #: Results worth keeping between runs: ranges, rankings, measured times.
    cache: Cache
    #: True for `plan`: decide and report, but do not spend time on measurements or recovery.
    dry: bool = False
    #: True for a model that is only timed: it gets its kernels and shapes, and nothing of it is proved or judged.
    draft: bool = False
    #: Moment of `time.monotonic()` by which a training has to be done: one that takes longer is not begun.
    until: float = math.inf
    #: The model that learnt new answers last (`Options.new_answers`): recovery restores these; `None`: nothing did.
    answers: ir.Model | None = None

    @property
    def judged(self) -> bool:
        """Whether a step runs what it makes, to see that it computes the same, or how close it comes."""
        return not (self.dry or self.draft)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a step made.

    `changed` counts the nodes or tensors that are different now; 0 is an error unless `if_possible`. `details` is
    of the type that the step table names; `None`: nothing to say.
    """

    model: ir.Model
    changed: int
    decisions: tuple[Decision, ...] = ()
    summary: str = ""
    details: Details | None = None
    warnings: tuple[str, ...] = ()
    #: Absolute-relative tolerance of the outputs, but new ones, against the step's input on the check batches; `None`:
    #: the step changes results by design and only finiteness, names, shapes and types are checked.
    tolerance: float | None = None
    #: Speed relative to the step's input, where the step measured it.
    speedup: float | None = None
    #: Why a step that could have changed the model left it as it was, by what it measured: then that is no error.
    left_because: str = ""


@dataclasses.dataclass(frozen=True)
class Step:
    """A row of the step table: the options, where the function `(model, options, context) -> Outcome` stands, and
    what it tells about its work."""

    options: type[Options]
    #: `folder.module:function` below the package; imported when it is needed.
    function: str
    details: type[Details] = Details

    @property
    def summary(self) -> str:
        """First line of the description that `lepton steps` shows."""
        return (self.options.__doc__ or "").strip().splitlines()[0]

    def apply(self, model: ir.Model, options: Options, context: Context) -> Outcome:
        """Run the step."""
        module, _, name = self.function.partition(":")
        function: Callable[[ir.Model, Any, Context], Outcome] = getattr(import_module(f"lepton_cli.{module}"), name)
        return function(model, options, context)
