"""The metrics a gate can name: what kind of number each is, which way is better, what may narrow it down."""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Literal

Kind = Literal["size", "time", "count", "share", "coefficient", "number", "decibel", "rate", "money", "energy"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One row of the table. `scope`: the keys of a gate that choose between several values of the metric."""

    name: str
    kind: Kind
    better: Literal["higher", "lower"]
    meaning: str
    scope: tuple[str, ...] = ()


_RUN = ("provider", "batch")
_OUTPUT = ("output",)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("size.file", "size", "lower", "Bytes of the `.onnx` file and its external data together"),
        Metric("size.external", "size", "lower", "Bytes of the external data files"),
        Metric("size.gzip", "size", "lower", "Bytes after gzip: what a download costs"),
        Metric("parameters", "count", "lower", "Numbers in the weights"),
        Metric("nonzeros", "count", "lower", "Numbers in the weights that are not zero"),
        Metric("macs", "count", "lower", "Multiply-accumulates of one sample"),
        Metric("nodes", "count", "lower", "Nodes of the graph"),
        Metric("memory.peak", "size", "lower", "Peak memory of a process that loads and runs the model"),
        Metric("accuracy.top1", "share", "higher", "Share of samples whose class comes first", _OUTPUT),
        Metric(
            "accuracy.top5", "share", "higher", "Share of samples whose class is among the first k (any k)", _OUTPUT
        ),
        Metric("accuracy.f1", "share", "higher", "F1 score", _OUTPUT),
        Metric("accuracy.mae", "number", "lower", "Mean absolute error", _OUTPUT),
        Metric("accuracy.rmse", "number", "lower", "Root of the mean squared error", _OUTPUT),
        Metric("accuracy.r2", "coefficient", "higher", "Coefficient of determination", _OUTPUT),
        Metric("accuracy.cosine", "coefficient", "higher", "Cosine similarity to the labels", _OUTPUT),
        Metric("accuracy.spearman", "coefficient", "higher", "Spearman's rank correlation with the labels", _OUTPUT),
        Metric("accuracy.score", "coefficient", "higher", "All metrics of several outputs, weighted, as one number"),
        Metric("accuracy.python", "coefficient", "higher", "The recipe's own metric function", _OUTPUT),
        Metric("agreement", "share", "higher", "Share of samples answered as the original answers them", _OUTPUT),
        Metric("fidelity.sqnr", "decibel", "higher", "Signal over error of an output against the original's", _OUTPUT),
        Metric("latency.median", "time", "lower", "Median time of one run", _RUN),
        Metric("latency.p90", "time", "lower", "Time that 90 % of the runs stay below", _RUN),
        Metric("latency.p99", "time", "lower", "Time that 99 % of the runs stay below", _RUN),
        Metric("throughput", "rate", "higher", "Samples per second", _RUN),
        Metric("energy", "energy", "lower", "Joules of one sample, as the processor's meter counts them", _RUN),
        Metric("cost.per_million", "money", "lower", "Cost of a million samples at the recipe's price", _RUN),
    )
}

TOP_K = re.compile(r"^accuracy\.top([1-9][0-9]{0,5})$")


def find(name: str) -> Metric | None:
    """The metric of that name; `accuracy.topK` exists for every K."""
    known = METRICS.get(name)
    if known is None and (match := TOP_K.fullmatch(name)):
        row = METRICS["accuracy.top5"]
        return dataclasses.replace(
            row, name=name, meaning=f"Share of samples whose class is among the first {match[1]}"
        )
    return known


def nearest(name: str) -> str | None:
    """The known name closest to a wrong one; the last part alone is enough (`top1`, `p99`)."""
    endings = [known for known in METRICS if name in known.split(".")]
    return next(iter(endings or difflib.get_close_matches(name, METRICS, 1, 0.5)), None)
