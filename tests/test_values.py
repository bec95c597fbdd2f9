"""Pydantic fields with units: parsed from text, kept from code, written back without loss, described in the schema."""

import re

import pytest
from pydantic import ValidationError

from lepton_cli import units
from lepton_cli.errors import RecipeError
from lepton_cli.values import Duration, Number, Percent, Points, Strict


class Sample(Strict):
    time: Duration = units.Seconds(0.02)
    share: Percent = units.Share(0.6)
    points: Points = units.PointsValue(0.005)
    number: Number = 0.5


GIVEN = {"time": "3 us", "share": "33.3 %", "points": "0.25 pp", "number": "1/255"}


def test_text_is_parsed_and_written_back_without_loss():
    value = Sample(**GIVEN)
    assert (value.time, value.share) == (3e-6, 0.333)
    assert (value.points, value.number) == (0.0025, 1 / 255)
    assert Sample(**value.model_dump(mode="json")) == value
    assert Sample.model_validate_json(value.model_dump_json()) == value


def test_values_of_the_finished_type_are_kept():
    assert Sample(time=units.Seconds(7)).time == 7
    assert isinstance(Sample().share, units.Share)


@pytest.mark.parametrize("field", ["time", "share", "points"])
def test_a_number_without_unit_is_an_error(field):
    with pytest.raises(RecipeError, match="has no unit"):
        Sample(**{field: 5})


def test_unknown_keys_and_changes_are_errors():
    with pytest.raises(RecipeError, match="tme"):
        Sample(tme="1 s")
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Sample.model_validate({"tme": "1 s"})
    with pytest.raises(ValidationError, match="frozen"):
        Sample().number = 3


@pytest.mark.filterwarnings("ignore::pydantic.json_schema.PydanticJsonSchemaWarning")
def test_the_schema_patterns_accept_what_is_written():
    properties = Sample.model_json_schema(mode="serialization")["properties"]
    written = Sample(**GIVEN).model_dump(mode="json")
    for field in ("time", "share", "points"):
        for text in (written[field], properties[field]["examples"][0], GIVEN[field]):
            assert re.search(properties[field]["pattern"], text)
        assert not re.search(properties[field]["pattern"], "5")


@pytest.mark.parametrize(
    ("values", "code", "option"),
    [
        ({"sise": "1 MB"}, "recipe.unknown-key", ("sise",)),
        ({"time": 5}, "recipe.unit-missing", ("time",)),
        ({"number": "much"}, "recipe.wrong-value", ("number",)),
    ],
)
def test_wrong_arguments_are_recipe_errors(values: dict[str, object], code: str, option: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as found:
        Sample(**values)
    assert (found.value.code, found.value.option) == (code, option)
    assert found.value.message.startswith(f"Sample: `{option[0]}`: ")


def test_nested_values_keep_their_own_errors() -> None:
    """A recipe file is validated as a whole: the error of a part must not cut the others off."""

    class Outer(Strict):
        one: Sample
        two: Sample

    with pytest.raises(ValidationError) as found:
        Outer.model_validate({"one": {"size": 5}, "two": {"sise": 1}})
    assert [error["loc"] for error in found.value.errors()] == [("one", "size"), ("two", "sise")]
