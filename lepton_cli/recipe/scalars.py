"""Plain (unquoted) scalars by the YAML 1.2 core schema: `no` and `12:30` are texts, `1e-3` is a number."""

from __future__ import annotations

import math
import re
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def scalar(text: str) -> Scalar:
    """What `text` means. Raises ValueError for numbers that no recipe can use."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > 30:
            raise ValueError("a whole number of more than 30 characters")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("not a finite number")
    if _FLOAT.fullmatch(text):
        value = float(text)
        if not math.isfinite(value):
            raise ValueError("too large for a number")
        return value
    return text


def is_plain(text: str) -> bool:
    """Whether a text written without quotes would be read as the same text."""
    try:
        return scalar(text) == text
    except ValueError:
        return False


def printable(text: object, longest: int = 60) -> str:
    """Text from a file, fit for a message: cut to length, control characters written out."""
    shown = str(text)
    shown = shown if len(shown) <= longest else shown[: longest - 3] + "..."
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in shown)
