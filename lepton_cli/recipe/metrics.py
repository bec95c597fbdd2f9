"""The metrics a gate can name: what kind of number each is, which way is better, what may narrow it down."""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Literal

from lepton_cli import units

Kind = Literal["size", "time", "count", "share", "coefficient", "number", "decibel", "rate", "money", "energy"]


class Limit(float):
    """A limit in base units (bytes, seconds, shares of 1, plain numbers) that remembers how it was written."""

    text: str

    def __new__(cls, value: float, text: str = "") -> Limit:
        limit = super().__new__(cls, value)
        limit.text = text or repr(float(value))
        return limit

    def __str__(self) -> str:
        return self.text


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
_SUFFIXED = {
    "decibel": (re.compile(r"(.*?) *dB"), "30 dB"),
    "rate": (re.compile(r"(.*?) */ ?s"), "500"),
    "money": (re.compile(r"(.*?) *[A-Z]{3}"), "0.02 USD"),
}


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


def parse_limit(metric: Metric, comparison: str, value: object) -> Limit:
    """A gate's limit in base units. Raises ValueError, saying the right form, for everything else.

    `max`/`min` are in the metric's own unit, `max_drop`/`max_increase` in the unit of its differences, and
    `max_ratio`/`min_ratio` are shares (`60 %` or `0.6`).
    """
    if isinstance(value, Limit):
        return value
    if comparison in ("max_ratio", "min_ratio"):
        number = _share_or_number(value, "a ratio such as `0.6` or `60 %`")
        if number <= 0:
            raise ValueError("a ratio must be above zero")
    elif comparison in ("max_drop", "max_increase"):
        number = _difference(metric, comparison, value)
    else:
        number = _absolute(metric, value)
    return Limit(number, value.strip() if isinstance(value, str) else f"{value}")


def _difference(metric: Metric, comparison: str, value: object) -> float:
    if metric.kind == "share":
        return units.parse_points(value)
    if metric.kind == "coefficient" and _ends(value, "pp"):
        return units.parse_points(value)
    if _ends(value, "%"):
        ratio = "max_ratio" if comparison == "max_increase" else "min_ratio"
        raise ValueError(f"`{value}` compares with the original: write it as `{ratio}`, such as `{ratio}: 95 %`")
    number = _absolute(metric, value)
    if number < 0:
        raise ValueError(f"`{value}`: `{comparison}` cannot be negative")
    return number


def _absolute(metric: Metric, value: object) -> float:
    match metric.kind:
        case "size":
            return units.parse_size(value)
        case "time":
            return units.parse_duration(value)
        case "count":
            return units.parse_count(value)
        case "energy":
            return units.parse_energy(value)
        case "share":
            number = _share_or_number(value, "a share such as `90 %`")
            if not 0 <= number <= 1:
                raise ValueError(f"`{value}` is not between 0 % and 100 %: write for example `90 %`")
            return number
        case "coefficient":
            return _share_or_number(value, "a number such as `0.9`")
        case _:
            pattern, example = _SUFFIXED.get(metric.kind, (None, "0.5"))
            text = value.strip() if isinstance(value, str) else value
            if pattern and isinstance(text, str) and (match := pattern.fullmatch(text)):
                text = match[1]
            try:
                return units.parse_number(text)
            except ValueError:
                raise ValueError(
                    f"`{str(value)[:40]}` is not a limit for `{metric.name}`: write for example `{example}`"
                ) from None


def _share_or_number(value: object, example: str) -> float:
    if _ends(value, "%"):
        return units.parse_percent(value)
    try:
        return units.parse_number(value)
    except ValueError:
        raise ValueError(f"expected {example}") from None


def _ends(value: object, unit: str) -> bool:
    return isinstance(value, str) and value.strip().endswith(unit)
