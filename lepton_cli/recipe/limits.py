"""What a gate's limit may look like: values with the unit of its metric, differences, ratios."""

from __future__ import annotations

import re

from lepton_cli import units
from lepton_cli.metrics import Metric

_SUFFIXED = {
    "decibel": (re.compile(r"(.*?) *dB"), "30 dB"),
    "rate": (re.compile(r"(.*?) */ ?s"), "500"),
    "money": (re.compile(r"(.*?) *[A-Z]{3}"), "0.02 USD"),
}


class Limit(float):
    """A limit in base units (bytes, seconds, shares of 1, plain numbers) that remembers how it was written."""

    text: str

    def __new__(cls, value: float, text: str = "") -> Limit:
        limit = super().__new__(cls, value)
        limit.text = text or repr(float(value))
        return limit

    def __str__(self) -> str:
        return self.text


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
