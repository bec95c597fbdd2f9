"""Quantities with units, read from and written as text. Standard library only.

`MB` = 10^6 bytes, `MiB` = 2^20 bytes, `%` = relative, `pp` = percentage points. A size or a time without a unit
is an error, because guessing is how wrong limits pass.
"""

from __future__ import annotations

import math
import re

_SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z%]*)\s*", re.ASCII)
_FRACTION = re.compile(r"\s*([-+]?\d+\.?\d*)\s*/\s*(\d+\.?\d*)\s*")


class Bytes(int):
    """A number of bytes that prints as a size."""

    def __str__(self) -> str:
        return format_size(self)


class Seconds(float):
    """A number of seconds that prints as a time."""

    def __str__(self) -> str:
        return format_duration(self)


class Share(float):
    """A share of 1 that prints as per cent."""

    def __str__(self) -> str:
        return f"{100 * self:.10g} %"


class PointsValue(float):
    """A difference of shares (0.005 = 0.5 percentage points)."""

    def __str__(self) -> str:
        return f"{100 * self:.10g} pp"


def _split(text: object, allowed: dict[str, float] | dict[str, int], what: str, example: str) -> tuple[float, str]:
    listed = ", ".join(allowed)
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError(f"expected a {what} such as `{example}`")
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"`{str(text)[:40]}` is not a {what}: write for example `{example}`")
    number, unit = float(match[1]), match[2]
    if not unit:
        raise ValueError(f"`{text}` has no unit: write for example `{example}` (units: {listed})")
    if unit not in allowed:
        near = [known for known in allowed if known.lower() == unit.lower()]
        raise ValueError(f"unknown unit `{unit}`: " + (f"did you mean `{near[0]}`? " if near else "") + f"units: {listed}")
    if not math.isfinite(number):
        raise ValueError(f"`{text}` is not a finite number")
    return number, unit


def parse_size(text: object) -> Bytes:
    """`1 MB` -> 1000000. Raises ValueError without a known unit or below zero."""
    number, unit = _split(text, _SIZES, "size", "1 MB")
    if number < 0:
        raise ValueError(f"`{text}`: a size cannot be negative")
    value = number * _SIZES[unit]
    if not math.isfinite(value):
        raise ValueError(f"`{text}` is not a finite size")
    return Bytes(round(value))


def parse_duration(text: object) -> Seconds:
    """`5 ms` -> 0.005. Raises ValueError without a known unit or below zero."""
    number, unit = _split(text, _TIMES, "time", "20 ms")
    if number < 0:
        raise ValueError(f"`{text}`: a time cannot be negative")
    return Seconds(number * _TIMES[unit])


def parse_percent(text: object) -> Share:
    """`60 %` -> 0.6. Raises ValueError without `%`."""
    number, _ = _split(text, {"%": 1.0}, "share", "60 %")
    return Share(number / 100)


def parse_points(text: object) -> PointsValue:
    """`0.5 pp` -> 0.005. Raises ValueError without `pp`."""
    number, _ = _split(text, {"pp": 1.0}, "number of percentage points", "0.5 pp")
    return PointsValue(number / 100)


def parse_number(text: object) -> float:
    """`0.5` or `1/255`. Raises ValueError for anything else, infinities included."""
    if isinstance(text, str) and (match := _FRACTION.fullmatch(text)):
        if float(match[2]) == 0:
            raise ValueError(f"`{text}` divides by zero")
        return float(match[1]) / float(match[2])
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError("expected a number or a fraction such as `1/255`")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"`{text[:40] if isinstance(text, str) else text}` is not a number or a fraction such as `1/255`") from None
    if not math.isfinite(value):
        raise ValueError(f"`{text}` is not a finite number")
    return value


def format_size(count: float) -> str:
    """Three significant digits in decimal units: 1234567 -> `1.23 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= factor:
            return f"{_three(count / factor)} {unit}"
    return f"{count:.0f} B"


def format_duration(seconds: float) -> str:
    """Three significant digits: 0.000483 -> `0.483 ms`, 83.2 -> `83.2 s`."""
    if seconds != 0 and abs(seconds) < 1e-5:
        return f"{_three(seconds * 1e6)} us"
    if abs(seconds) < 1:
        return f"{_three(seconds * 1e3)} ms"
    if abs(seconds) < 600:
        return f"{_three(seconds)} s"
    return f"{_three(seconds / 60)} min"


def format_count(count: float) -> str:
    """Three significant digits with k, M, G: 272474 -> `272 k`."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(count) >= factor:
            return f"{_three(count / factor)} {unit}"
    return f"{count:.0f}"


def _three(value: float) -> str:
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"
