"""How numbers are written in reports: one place, so that terminal, Markdown and HTML say the same thing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

from lepton_cli import units
from lepton_cli.metrics import UNITS, Kind
from lepton_cli.step import Details

#: Control characters and the invisible ones that reverse the direction of text.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)


def printable(text: object, longest: int = 300) -> str:
    """Foreign text (node names, messages) made harmless: hidden characters spelled out, the middle cut if very long."""
    shown = _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", str(text))
    if len(shown) <= longest:
        return shown
    return f"{shown[: longest // 2]}…{shown[-(longest // 2) :]}"


def value(amount: float, kind: Kind, unit: str = "") -> str:
    """An observed amount, rounded for reading. `unit` is the currency of `money`."""
    if not math.isfinite(amount):
        return "identical" if kind == "decibel" and amount > 0 else "not a number" if math.isnan(amount) else "infinite"
    if kind == "size":
        return units.format_size(amount)
    if kind == "count":
        return f"{amount:,.0f}"
    if kind == "share":
        return f"{100 * amount:.2f} %"
    if kind == "time":
        return units.format_duration(amount)
    if kind == "energy":
        return units.format_energy(amount)
    if kind == "decibel":
        return f"{amount:.1f} {UNITS[kind]}"
    if kind == "rate":
        return f"{significant(amount)}{UNITS[kind]}"
    return significant(amount) + (f" {unit}" if unit else "")


def exact(amount: float, kind: Kind, unit: str = "") -> str:
    """An amount that is judged: byte counts in full, because a limit of 200 kB is missed by single bytes."""
    if kind == "decibel" and math.isfinite(amount):
        return f"{amount:.2f} {UNITS[kind]}"
    return f"{amount:,.0f} {UNITS[kind]}" if kind == "size" and math.isfinite(amount) else value(amount, kind, unit)


def points(difference: float, digits: int = 2, *, sign: bool = True) -> str:
    """A difference of shares in percentage points: -0.0036 -> `-0.36 pp`."""
    return f"{round(100 * difference, digits) + 0.0:{'+' if sign else ''}.{digits}f} pp"


def difference(amount: float, kind: Kind, digits: int = 3) -> str:
    """A difference of a metric, with its sign: `-0.36 pp`, `+0.12 dB`, `-0.0123`."""
    if kind == "share":
        return points(amount)
    return f"{amount:+.{digits}g}" + (f" {UNITS[kind]}" if kind == "decibel" else "")


def percent(change: float, *, sign: bool = True) -> str:
    """A relative change: -0.811 -> `-81.1 %`."""
    return f"{round(100 * change, 1) + 0.0:{'+' if sign else ''}.1f} %"


def times(ratio: float) -> str:
    """A factor with three significant digits: 2.4639 -> `2.46x`."""
    return f"{significant(ratio)}x" if math.isfinite(ratio) else "infx"


def error_share(decibel: float) -> str:
    """A signal-to-noise ratio as a person can place it, error over signal: 40 dB -> `1 %`."""
    share = 100 * 10 ** (-decibel / 20)
    if share < 0.01:
        return "less than 0.01 %"
    return f"{share:.2g} %" if share < 10 else f"{share:.0f} %" if share <= 100 else "more than 100 %"


#: Times closer than this are the same speed: a new session of the same model differs by as much.
SAME_SPEED = 0.02
SpeedWord = Literal["faster", "slower", "same", "unclear"]


def speed(ratio: float, low: float, high: float) -> SpeedWord:
    """What a ratio of times says: `same` within 2 % where the interval is narrow, otherwise as the interval says."""
    if abs(ratio - 1) <= SAME_SPEED:
        return "same" if max(1 - low, high - 1) <= 3 * SAME_SPEED else "unclear"
    return "slower" if low > 1 else "faster" if high < 1 else "unclear"


def interval(low: float, high: float, show: str = "number") -> str:
    """A 95 % interval in the unit of what stands before it: points, percent, or plain."""
    factor = 100.0 if show in ("points", "percent") else 1.0
    digits = (lambda amount: f"{amount:.2f}") if show in ("points", "percent") else significant
    return f"[{digits(factor * low)}, {digits(factor * high)}]"


def significant(amount: float) -> str:
    """Three significant digits, never in exponent form between 0.0001 and a million."""
    if amount == 0 or not math.isfinite(amount):
        return "0" if amount == 0 else str(amount)
    size = math.floor(math.log10(abs(amount)))
    if size < -4:
        return f"{amount:.2e}"
    return f"{amount:,.{max(0, 2 - size)}f}"


def settings(details: Details, *, tried: bool = False) -> list[tuple[str, str]]:
    """What a step chose, from its details: single values, short lists and tables of single values, as text.

    `tried`: the step left the model as it was in the end.
    """
    listed = []
    before = "tried, not applied: " if tried else ""
    for key, found in details.model_dump(exclude_none=True).items():
        if isinstance(found, Mapping) and 0 < len(found) <= 8 and all(_single(one) for one in found.values()):
            listed.append((key, ", ".join(f"{name} {_setting(one)}" for name, one in found.items())))
        elif isinstance(found, (list, tuple)) and 0 < len(found) <= 8 and all(_single(one) for one in found):
            listed.append((key, ", ".join(_setting(one) for one in found)))
        elif _single(found) and found != "":
            listed.append((key, _setting(found)))
    labels = [before + printable(key, 60).replace("_db", " (dB)").replace("_", " ") for key, _ in listed]
    return [(label, printable(text)) for label, (_, text) in zip(labels, listed, strict=True)]


def _single(found: object) -> bool:
    return isinstance(found, (str, int, float, bool))


def _setting(found: object) -> str:
    if isinstance(found, bool):
        return "yes" if found else "no"
    return f"{found:.4g}" if isinstance(found, float) else str(found)


def scope(given: Mapping[str, str | int]) -> str:
    """What tells a metric from others of its name: `cpu batch 32 2 threads`."""
    said = {key: str(value) for key, value in given.items()}
    if "batch" in given:
        said["batch"] = f"batch {given['batch']}"
    if "threads" in given:
        said["threads"] = plural(int(given["threads"]), "thread")
    return " ".join(said.values())


def plural(count: int, noun: str) -> str:
    """`1 gate`, `3 gates`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
