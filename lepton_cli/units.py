"""Quantities with units, read from and written as text. Standard library only.

`MB` = 10^6 bytes, `MiB` = 2^20 bytes, `%` = relative, `pp` = percentage points. A size or a time without a unit
is an error, because guessing is how wrong limits pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal

_SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIMES = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "min": Decimal(60),
    "h": Decimal(3600),
}
_ENERGIES = {"kJ": Decimal(1000), "J": Decimal(1), "mJ": Decimal("1e-3"), "uJ": Decimal("1e-6")}
_COUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_MICRO = str.maketrans("\u00b5\u03bc", "uu")
_DECIMAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
_QUANTITY = re.compile(rf"([-+]?{_DECIMAL})[ \t]*([A-Za-z%/]*)")
_FRACTION = re.compile(rf"([-+]?{_DECIMAL})[ ]*/[ ]*({_DECIMAL})")
#: Longer texts are not quantities; it also keeps Decimal exact.
_LONGEST = 40


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


def _split(value: object, allowed: Mapping[str, object], what: str, example: str) -> tuple[Decimal, str]:
    """Number and unit of a quantity; every way to be wrong is a ValueError that shows the right form."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"expected a {what} such as `{example}`")
    text = _text(value).translate(_MICRO)
    shown = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise ValueError(f"`{shown}` is not a {what}: write for example `{example}`")
    number, unit = Decimal(match[1]), match[2]
    listed = ", ".join(name for name in allowed if name)
    if unit not in allowed:
        if not unit:
            raise ValueError(f"`{text}` has no unit: write for example `{example}` (units: {listed})")
        near = [known for known in allowed if known.lower() == unit.lower()]
        advice = f"did you mean `{near[0]}`?" if near else f"write for example `{example}`"
        raise ValueError(f"unknown unit `{unit}`: {advice} (units: {listed})")
    return number, unit


def _text(value: str | int | float) -> str:
    """Text of a value from a file; of a number no more digits than an error may show."""
    if isinstance(value, int) and abs(value) >= 10**_LONGEST:
        return "a number of more than 40 digits"
    return value.strip() if isinstance(value, str) else repr(value)


def _not_negative(number: Decimal, value: object, what: str) -> None:
    if number < 0:
        raise ValueError(f"`{value}`: a {what} cannot be negative")


def _finite(number: Decimal, value: object) -> float:
    result = float(number)
    if not math.isfinite(result):
        raise ValueError(f"`{value}` is too large")
    return result


def parse_size(value: object) -> int:
    """`1 MB` -> 1000000. Raises ValueError without a known unit, below zero or beyond an exabyte."""
    number, unit = _split(value, _SIZES, "size", "1 MB")
    _not_negative(number, value, "size")
    count = number * _SIZES[unit]
    if count > 10**18:
        raise ValueError(f"`{value}` is too large")
    return round(count)


def parse_duration(value: object) -> Seconds:
    """`5 ms` -> 0.005. Raises ValueError without a known unit or below zero."""
    number, unit = _split(value, _TIMES, "time", "20 ms")
    _not_negative(number, value, "time")
    return Seconds(_finite(number * _TIMES[unit], value))


def parse_energy(value: object) -> float:
    """`5 mJ` -> 0.005. Raises ValueError without a known unit or below zero."""
    number, unit = _split(value, _ENERGIES, "energy", "5 mJ")
    _not_negative(number, value, "energy")
    return _finite(number * _ENERGIES[unit], value)


def parse_percent(value: object) -> Share:
    """`60 %` -> 0.6. Raises ValueError without `%` or below zero."""
    number, _ = _split(value, {"%": 1}, "share", "60 %")
    _not_negative(number, value, "share")
    return Share(_finite(number / 100, value))


def parse_points(value: object) -> PointsValue:
    """`0.5 pp` -> 0.005. Raises ValueError without `pp` or below zero."""
    number, _ = _split(value, {"pp": 1}, "number of percentage points", "0.5 pp")
    _not_negative(number, value, "number of percentage points")
    return PointsValue(_finite(number / 100, value))


def parse_count(value: object) -> float:
    """`272 k` or `272000` -> 272000.0. Raises ValueError for other units or below zero."""
    number, unit = _split(value, _COUNTS, "count", "300 k")
    _not_negative(number, value, "count")
    return _finite(number * _COUNTS[unit], value)


def parse_number(value: object) -> float:
    """`0.5` or `1/255`. Raises ValueError for anything else, infinities included."""
    example = "a number or a fraction such as `1/255`"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"expected {example}")
    text = _text(value)
    if len(text) <= _LONGEST and (match := _FRACTION.fullmatch(text)):
        if float(match[2]) == 0:
            raise ValueError(f"`{text}` divides by zero")
        result = float(match[1]) / float(match[2])
    else:
        match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST else None
        if match is None or match[2]:
            raise ValueError(f"`{text[:_LONGEST]}` is not {example}")
        result = float(match[1])
    if not math.isfinite(result):
        raise ValueError(f"`{text}` is not a finite number")
    return result


def write_duration(seconds: float) -> str:
    """A time without loss: `parse_duration` gives the same number back."""
    number = Decimal(repr(float(seconds)))
    if number == 0 or number >= 1:
        return f"{_plain(number)} s"
    return f"{_plain(number * 1000)} ms" if number >= Decimal("1e-6") else f"{_plain(number * 10**9)} ns"


def write_percent(share: float) -> str:
    """A share without loss: 0.6 -> `60 %`."""
    return f"{_plain(Decimal(repr(float(share))) * 100)} %"


def write_points(share: float) -> str:
    """A difference of shares without loss: 0.005 -> `0.5 pp`."""
    return f"{_plain(Decimal(repr(float(share))) * 100)} pp"


def write(value: object) -> object:
    """A quantity as text, without loss; anything else as it is."""
    match value:
        case Seconds():
            return write_duration(value)
        case Share():
            return write_percent(value)
        case PointsValue():
            return write_points(value)
        case _:
            return value


def _plain(number: Decimal) -> str:
    """Shortest text of a decimal; an exponent only where the digits would not fit."""
    if number == 0:
        return "0"
    number = number.normalize()
    text = f"{number:f}"
    return text if len(text) <= 25 else f"{number:e}"


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


def format_energy(joules: float) -> str:
    """Three significant digits: 0.0123 -> `12.3 mJ`."""
    if abs(joules) >= 1:
        return f"{_three(joules)} J"
    return f"{_three(joules * 1e3)} mJ" if abs(joules) >= 1e-4 else f"{_three(joules * 1e6)} uJ"


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
