"""What the space of `lepton tune` follows from."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from lepton_cli import metrics
from lepton_cli.commands.job import Job
from lepton_cli.graph import facts
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.machine import machine
from lepton_cli.prune import channels
from lepton_cli.recipe.schema import Gate
from lepton_cli.recipe.tuning import Objective
from lepton_cli.tune.space import Traits

#: Elements of an embedding table that is worth storing in other bits than the rest.
_TABLE = 4096


def traits(job: Job, limits: Sequence[Gate], goal: Objective) -> Traits:
    """Facts about model, data, machine and goal."""
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
        block=machine().vector_block,
        goal="size" if metrics.of(goal.metric).sized else "time",
        sized=any(metrics.of(gate.metric).sized for gate in limits),
        max_drop=min(drops) if drops else None,
    )


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
