"""All that is known about metrics, in one table: what each one is called, counts, and which way is better.

Recipes, gates, the search, reports and `lepton schema --metrics` read it. A new accuracy is a row here and its formula
in `measure/metrics.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from typing import Literal

#: The measurement that a metric comes from. `agreement`: with the original, without labels.
Measurement = Literal["structure", "memory", "accuracy", "agreement", "latency", "energy"]
Kind = Literal["size", "time", "count", "share", "coefficient", "number", "decibel", "rate", "money", "energy"]

#: The unit in which numbers of a kind are stored and compared. Of money it is the currency of the recipe's price.
UNITS: dict[Kind, str] = {
    "size": "bytes",
    "time": "s",
    "count": "",
    "share": "",
    "coefficient": "",
    "number": "",
    "decibel": "dB",
    "rate": "/s",
    "money": "",
    "energy": "J",
}


#: What chooses between several values of a metric, in the order in which it is told.
SCOPE = ("provider", "batch", "threads", "output")


@dataclasses.dataclass(frozen=True)
class Metric:
    """One row. `label`: what people call it. `scope`: the keys of a gate that choose between several of its values."""

    name: str
    kind: Kind
    better: Literal["higher", "lower"]
    label: str
    meaning: str
    source: Measurement
    scope: tuple[str, ...] = ()
    #: What of single layers adds up to it.
    layers: Literal["", "bytes", "parameters", "macs"] = ""
    #: Of the worst of several classes or groups: chance alone makes one of them look bad.
    by_class: bool = False

    @property
    def short(self) -> str:
        """The last part of the name: `top1`, `file`, `p90`."""
        return self.name.rpartition(".")[2]

    @property
    def unit(self) -> str:
        """The unit of its numbers."""
        return UNITS[self.kind]

    @property
    def varies(self) -> bool:
        """Whether it differs from run to run and from machine to machine."""
        return self.source in ("latency", "memory", "energy")

    @property
    def row(self) -> str:
        """What it is the worst of, where it is that: `class`, `group`."""
        return ("group" if self.short == "worst_group" else "class") if self.by_class else ""

    @property
    def by_interval(self) -> bool:
        """Whether a gate looks at the whole interval and not at the value."""
        return self.varies or self.by_class

    @property
    def quality(self) -> bool:
        """Whether it tells how well the model does its work: what compression costs, not what it gains."""
        return self.source in ("accuracy", "agreement")

    @property
    def sized(self) -> bool:
        """Whether it falls with the number of parameters."""
        return self.layers in ("bytes", "parameters")


_stored = functools.partial(Metric, source="structure", layers="bytes")
_weights = functools.partial(Metric, source="structure", layers="parameters")
_graph = functools.partial(Metric, source="structure")
_memory = functools.partial(Metric, source="memory")
_accuracy = functools.partial(Metric, source="accuracy", scope=("output",))
_agreement = functools.partial(Metric, source="agreement", scope=("output",))
_speed = functools.partial(Metric, source="latency", scope=("provider", "batch", "threads"))
_energy = functools.partial(Metric, source="energy", scope=("provider", "batch"))

#: Name, kind, better, label, meaning; in the order in which they are listed.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _stored("size.file", "size", "lower", "size, file", "Bytes of the `.onnx` file and its external data together"),
        _stored("size.external", "size", "lower", "size, external", "Bytes of the external data files"),
        _stored("size.gzip", "size", "lower", "size, gzip", "Bytes after gzip: what a download costs"),
        _weights("parameters", "count", "lower", "parameters", "Numbers in the weights"),
        _weights("nonzeros", "count", "lower", "non-zero parameters", "Numbers in the weights that are not zero"),
        _graph("macs", "count", "lower", "multiply-accumulates", "Multiply-accumulates of one sample", layers="macs"),
        _graph("nodes", "count", "lower", "nodes", "Nodes of the graph"),
        _memory(
            "memory.peak", "size", "lower", "peak memory", "Peak memory of a process that loads and runs the model"
        ),
        _accuracy("accuracy.top1", "share", "higher", "top-1", "Share of samples whose class comes first"),
        _accuracy(
            "accuracy.top5", "share", "higher", "top-5", "Share of samples whose class is among the first k (any k)"
        ),
        _accuracy("accuracy.f1", "share", "higher", "F1", "F1 score"),
        _accuracy("accuracy.mae", "number", "lower", "MAE", "Mean absolute error"),
        _accuracy("accuracy.rmse", "number", "lower", "RMSE", "Root of the mean squared error"),
        _accuracy("accuracy.r2", "coefficient", "higher", "R2", "Coefficient of determination"),
        _accuracy("accuracy.cosine", "coefficient", "higher", "cosine", "Cosine similarity to the labels"),
        _accuracy(
            "accuracy.spearman", "coefficient", "higher", "spearman", "Spearman's rank correlation with the labels"
        ),
        _accuracy("accuracy.miou", "share", "higher", "mIoU", "Intersection over union, mean of the classes"),
        _accuracy("accuracy.dice", "share", "higher", "Dice", "Dice coefficient, mean of the classes"),
        _accuracy("accuracy.perplexity", "number", "lower", "perplexity", "Perplexity of the tokens that follow"),
        _accuracy("accuracy.auc", "share", "higher", "AUC", "Area under the ROC curve: pairs of both classes in order"),
        _accuracy(
            "accuracy.average_precision",
            "share",
            "higher",
            "average precision",
            "Precision where samples of class 1 are found, mean of these",
        ),
        _accuracy(
            "accuracy.eer", "share", "lower", "EER", "Equal error rate: misses and false alarms at one threshold"
        ),
        _accuracy("accuracy.psnr", "decibel", "higher", "PSNR", "Peak signal-to-noise ratio, mean of the samples"),
        _accuracy("accuracy.ssim", "coefficient", "higher", "SSIM", "Structural similarity, mean of the samples"),
        _accuracy(
            "accuracy.si_sdr",
            "decibel",
            "higher",
            "SI-SDR",
            "Scale-invariant signal-to-distortion ratio, mean of the samples",
        ),
        _accuracy("accuracy.cer", "share", "lower", "CER", "Character error rate: edits over the characters there are"),
        _accuracy("accuracy.wer", "share", "lower", "WER", "Word error rate: edits over the words there are"),
        _accuracy("accuracy.exact", "share", "higher", "exact match", "Share of samples whose text has no error"),
        _accuracy(
            "accuracy.score",
            "coefficient",
            "higher",
            "score",
            "All metrics of several outputs, weighted, as one number",
            scope=(),
        ),
        _accuracy(
            "accuracy.worst_class",
            "share",
            "higher",
            "worst class",
            "Accuracy of the class that lost most, of those with 30 samples or more",
            by_class=True,
        ),
        _accuracy(
            "accuracy.worst_group",
            "share",
            "higher",
            "worst group",
            "Accuracy of the group of `data.evaluation.groups` that lost most, of those with 30 samples or more",
            by_class=True,
        ),
        _accuracy(
            "accuracy.evenness",
            "number",
            "lower",
            "evenness",
            "Share of its answers that the worst class lost, over the share that all lost: 1 where all lose alike",
            by_class=True,
        ),
        _accuracy("accuracy.python", "coefficient", "higher", "python", "The recipe's own metric function"),
        _agreement(
            "agreement", "share", "higher", "agreement", "Share of samples answered as the original answers them"
        ),
        _agreement(
            "fidelity.sqnr", "decibel", "higher", "SQNR", "Signal over error of an output against the original's"
        ),
        _speed("latency.median", "time", "lower", "latency", "Median time of one run"),
        _speed("latency.p90", "time", "lower", "latency p90", "Time that 90 % of the runs stay below"),
        _speed("latency.p99", "time", "lower", "latency p99", "Time that 99 % of the runs stay below"),
        _speed("throughput", "rate", "higher", "throughput", "Samples per second"),
        _energy("energy", "energy", "lower", "energy", "Joules of one sample, as the processor's meter counts them"),
        _speed(
            "cost.per_million", "money", "lower", "cost of a million", "Cost of a million samples at the recipe's price"
        ),
    )
}

#: Short forms that people write for the metric they mean.
SHORT = {"cost": "cost.per_million", "latency": "latency.median", "size": "size.file", "accuracy": "accuracy.top1"}
#: The recipe's own function: which way is better, the recipe says.
OWN = "accuracy.python"
TOP_K = re.compile(r"^accuracy\.top([1-9][0-9]{0,5})$")
_TOP_5, _SCORE = METRICS["accuracy.top5"], METRICS["accuracy.score"]
#: What `evaluate: accuracy:` can measure, by the word it has there: top-k takes its k, the rest follows from these.
MEASURABLE: dict[str, Metric] = {
    "topk" if metric is _TOP_5 else metric.short: metric
    for metric in METRICS.values()
    if metric.source == "accuracy" and metric is not _SCORE and not metric.by_class
}
#: Those of classes, from which what is said by class follows.
CLASSIFYING = ("top1", "topk", "f1", "auc", "average_precision", "eer")


def find(name: str) -> Metric | None:
    """The metric of that name; `accuracy.topK` exists for every K."""
    known = METRICS.get(name)
    if known is None and (match := TOP_K.fullmatch(name)):
        meaning = f"Share of samples whose class is among the first {match[1]}"
        return dataclasses.replace(_TOP_5, name=name, label=f"top-{match[1]}", meaning=meaning)
    return known


def of(name: str, *, lower: bool = False) -> Metric:
    """The metric of that name. One the table does not know (in a report of another version) is a plain accuracy.

    `lower`: of its values lower is better, which only the recipe knows of its own function.
    """
    found = find(name) or _accuracy(name, "number", "higher", name.removeprefix("accuracy."), "")
    return dataclasses.replace(found, better="lower") if lower and found.better == "higher" else found


def accuracy(short: str, *, lower: bool = False) -> Metric:
    """The accuracy that reports and recipes call by the end of its name: `top1`, `rmse`."""
    return of(f"accuracy.{short}", lower=lower)


def nearest(name: str) -> str | None:
    """The known name closest to a wrong one; the last part alone is enough (`top1`, `p99`)."""
    endings = [known for known in METRICS if name in known.split(".")]
    return next(iter(endings or difflib.get_close_matches(name, METRICS, 1, 0.5)), None)
