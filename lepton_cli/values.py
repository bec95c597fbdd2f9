"""Pydantic types for values with units, so that every recipe field parses and prints them the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)

from lepton_cli import units
from lepton_cli.errors import RecipeError


class Strict(BaseModel):
    """Base of all recipe types: unknown keys are errors, values do not change after reading.

    Made in code from wrong values they raise RecipeError, with the codes that a recipe file would get.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    if not TYPE_CHECKING:  # type checkers see the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise _refused(type(self).__name__, error) from None

        # Else pydantic would call it for what is nested in a recipe too, whose errors have a place in the file.
        __init__.__pydantic_base_init__ = True


def _refused(kind: str, error: ValidationError) -> RecipeError:
    """The first thing that is wrong, as an error about the arguments of `kind`."""
    detail = error.errors(include_url=False, include_input=False)[0]
    path = detail["loc"]
    message = detail["msg"].removeprefix("Value error, ")
    codes = {"extra_forbidden": "recipe.unknown-key", "missing": "recipe.missing-key"}
    usual = "recipe.unit-missing" if "has no unit" in message else "recipe.wrong-value"
    said = ".".join(map(str, path))
    return RecipeError(
        codes.get(detail["type"], usual), f"{kind}: " + (f"`{said}`: " if said else "") + message, option=path
    )


#: Decimal digits, as the parsers in `units` read them.
_DIGITS = r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?"


def _text(unit: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": rf"^{_DIGITS} *({unit})$", "examples": [example]})


def _parsed(parse: Callable[[object], Any], kind: type) -> PlainValidator:
    """Parse text; let values of the finished type through, so that defaults can be written in code."""

    def convert(value: object) -> Any:
        return value if isinstance(value, kind) else parse(value)

    return PlainValidator(convert)


#: Seconds; written `5 ms`, `20 min`.
Duration = Annotated[
    units.Seconds,
    _parsed(units.parse_duration, units.Seconds),
    PlainSerializer(units.write_duration, return_type=str),
    _text("ns|us|ms|s|min|h", "20 min"),
]
#: A share of 1; written `60 %`.
Percent = Annotated[
    units.Share,
    _parsed(units.parse_percent, units.Share),
    PlainSerializer(units.write_percent, return_type=str),
    _text("%", "60 %"),
]
#: Percentage points as a share of 1; written `0.5 pp`.
Points = Annotated[
    units.PointsValue,
    _parsed(units.parse_points, units.PointsValue),
    PlainSerializer(units.write_points, return_type=str),
    _text("pp", "0.5 pp"),
]
#: A plain number or a fraction such as `1/255`.
Number = Annotated[
    float,
    BeforeValidator(units.parse_number),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": rf"^-?{_DIGITS} */ *{_DIGITS}$"}]}),
]
