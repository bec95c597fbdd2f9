"""The YAML 1.2 core schema, and only that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli.recipe.scalars import is_plain, printable, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("Null", None),
        ("true", True),
        ("FALSE", False),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("-3", -3),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("1.", 1.0),
        *(
            (text, text)
            for text in ("no", "yes", "on", "off", "12:30", "1_000", "0b1", "nULL", "2:4", "60 %", "+", ".", "1e", "٣")
        ),
    ],
)
def test_core_schema(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


@pytest.mark.parametrize("text", [".inf", "-.INF", ".nan", "1e400", "9" * 31])
def test_numbers_no_recipe_can_use(text):
    with pytest.raises(ValueError, match=r"finite|large|30 characters"):
        scalar(text)
    assert not is_plain(text)


@given(st.text())
def test_texts_are_plain_only_if_they_stay_texts(text):
    try:
        value = scalar(text)
    except ValueError:
        value = None
    assert is_plain(text) == (value == text and isinstance(value, str))


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[31m\n") == "a\\x1b[31m\\n"
    assert len(printable("x" * 1000)) == 60
