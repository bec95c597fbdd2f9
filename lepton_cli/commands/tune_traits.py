"""What the space of `lepton tune` follows from."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from lepton_cli import metrics
from lepton_cli.commands.job import Job
from lepton_cli.errors import LeptonError, RecipeError
from lepton_cli.graph import facts
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.graph.spec import HeadOptions
from lepton_cli.prune import channels
from lepton_cli.quantize.spec import QuantizeAware
from lepton_cli.recipe.schema import Gate
from lepton_cli.recipe.tuning import Objective, Space
from lepton_cli.step import Options
from lepton_cli.train.spec import Distill, TrainingOptions
from lepton_cli.train.steps import needed
from lepton_cli.tune.space import Traits

#: Elements of an embedding table that is worth storing in other bits than the rest.
_TABLE = 4096


def traits(job: Job, limits: Sequence[Gate], goal: Objective, first: Sequence[Options]) -> Traits:
    """Facts about model, data, machine and goal; `first`: what every candidate begins with."""
    found = facts.facts(job.loaded.model, job.one_sample_shapes())
    latency = job.spec.evaluate.latency
    drops = [float(g.limit) for g in limits if g.comparison == "max_drop" and _is_share(g)]
    return Traits(
        convolutions=found.convolutions > 0,
        products=found.products > 0,
        transformer=found.transformer,
        quantized=found.quantized,
        prunable=not found.quantized and _prunable(job.loaded.model),
        calibrated=job.calibration is not None,
        labelled=job.evaluation is not None and bool(job.evaluation.label_names),
        provider=latency.providers[0].name if latency else "cpu",
        tables=_tables(job.loaded.model),
        goal="size" if metrics.of(goal.metric).sized else "time",
        max_drop=min(drops) if drops else None,
        trainable=_taught(first) and _trainable(job),
    )


def _trainable(job: Job) -> bool:
    try:
        needed(job.training, Distill())
    except LeptonError:
        return False
    return True


def check_space(job: Job, space: Space, first: Sequence[Options]) -> None:
    """Raise LeptonError where the space names a training, and what that needs is missing: also a head that answers."""
    named: list[tuple[tuple[str, int], TrainingOptions]] = [
        (("distill", at), Distill()) for at, epochs in enumerate(space.distill or ()) if epochs != "none"
    ]
    named += [(("precision", at), QuantizeAware()) for at, one in enumerate(space.precision or ()) if one == "w4a8"]
    for place, options in named:
        try:
            needed(job.training, options)
        except LeptonError as error:
            error.option = error.option or ("tune", "space", *place)
            raise
        if not _taught(first):
            raise RecipeError(
                "tune.impossible",
                f"`{options.step}` keeps what the model answers, and nothing has taught what `{first[-1].step}` makes",
                hint="put `finetune` behind it, or leave the training out of the space",
                option=("tune", "space", *place),
            )


def _taught(first: Sequence[Options]) -> bool:
    """Whether there are answers for candidates to keep: the original's, but for new heads, or what a step teaches."""
    return any(one.new_answers for one in first) or not any(isinstance(one, HeadOptions) for one in first)


def _is_share(gate: Gate) -> bool:
    metric = metrics.of(gate.metric)
    return metric.source == "accuracy" and metric.kind == "share"


def _tables(model: ir.Model) -> tuple[str, ...]:
    """Lookups in float tables that are worth fewer bits."""
    found = []
    for node in model.graph:
        table = node.inputs[0].const_value if node.op_type == "Gather" and node.inputs[0] is not None else None
        if table is not None and table.dtype == ir.DataType.FLOAT and len(table.shape) == 2 and table.size >= _TABLE:
            found.append(node.name or "")
    return tuple(found)


def _prunable(model: ir.Model) -> bool:
    """Whether any group of channels can lose some."""
    return any(found.group.frozen is None for found in channels.survey(model, default_feeds(model, 1, 64)))
