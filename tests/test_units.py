"""Quantities: what is read, what is refused and how, and that written values read back unchanged."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli import units

PARSERS = [
    units.parse_size,
    units.parse_duration,
    units.parse_percent,
    units.parse_points,
    units.parse_count,
    units.parse_number,
]


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_size, "1 MB", 1_000_000),
        (units.parse_size, "1MB", 1_000_000),
        (units.parse_size, "1.5 MiB", 1_572_864),
        (units.parse_size, " .5 kB ", 500),
        (units.parse_size, "0 B", 0),
        (units.parse_duration, "5 ms", 0.005),
        (units.parse_duration, "5 µs", 5e-6),
        (units.parse_duration, "2 min", 120),
        (units.parse_percent, "60%", 0.6),
        (units.parse_percent, "60 %", 0.6),
        (units.parse_percent, "0.1 %", 0.001),
        (units.parse_points, "0.5 pp", 0.005),
        (units.parse_count, "272 k", 272_000),
        (units.parse_count, 12, 12),
        (units.parse_number, "1/255", 1 / 255),
        (units.parse_number, "-1e-3", -0.001),
        (units.parse_number, 3, 3),
    ],
)
def test_reads(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (units.parse_size, 5, "`5` has no unit: write for example `1 MB`"),
        (units.parse_size, "1 mb", "did you mean `MB`"),
        (units.parse_size, "-1 MB", "cannot be negative"),
        (units.parse_size, "1e99 GB", "too large"),
        (units.parse_size, "1e400 B", "too large"),
        (units.parse_size, "nan MB", "is not a size"),
        (units.parse_size, "٣ MB", "is not a size"),
        (units.parse_size, "1_000 B", "is not a size"),
        (units.parse_size, "1" * 100 + " B", "is not a size"),
        (units.parse_size, True, "expected a size"),
        (units.parse_size, None, "expected a size"),
        (units.parse_duration, "5", "has no unit"),
        (units.parse_duration, "1e400 h", "too large"),
        (units.parse_percent, "0.6", "has no unit"),
        (units.parse_percent, "-5 %", "cannot be negative"),
        (units.parse_points, "0.5 %", "write for example `0.5 pp`"),
        (units.parse_number, "1/0", "divides by zero"),
        (units.parse_number, "1e400", "not a finite number"),
        (units.parse_number, math.inf, "not a number"),
        (units.parse_number, math.nan, "not a number"),
        (units.parse_number, "1/255/3", "not a number"),
        (units.parse_number, [], "expected a number"),
    ],
)
def test_refuses(parse, text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_a_number_too_long_to_print_is_refused():
    for parse in PARSERS:
        with pytest.raises(ValueError, match="a number of more than 40 digits"):
            parse(10**5000)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.binary(), st.lists(st.integers())))
def test_nothing_but_value_error_escapes(value):
    for parse in PARSERS:
        try:
            result = parse(value)
        except ValueError:
            continue
        assert math.isfinite(result)


@given(st.from_regex(r"\A[-+]?[0-9]{0,9}\.?[0-9]{0,9}([eE][-+]?[0-9]{1,4})? ?[A-Za-z%µ/]{0,3}[0-9]{0,3}\Z"))
def test_nothing_but_value_error_escapes_near_quantities(text):
    test_nothing_but_value_error_escapes.hypothesis.inner_test(text)


@given(st.floats(0, 1e300))
def test_times_and_shares_are_written_without_loss(value):
    assert units.parse_duration(units.write_duration(value)) == value
    assert units.parse_percent(units.write_percent(value)) == value
    assert units.parse_points(units.write_points(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (units.Seconds(10), "10 s"),
        (units.Seconds(0.02), "20 ms"),
        (units.Share(0.6), "60 %"),
        (units.PointsValue(0.005), "0.5 pp"),
        ("text", "text"),
    ],
)
def test_writes(value, text):
    assert units.write(value) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (units.format_size(1_234_567), "1.23 MB"),
        (units.format_size(17), "17 B"),
        (units.format_duration(0.000483), "0.483 ms"),
        (units.format_duration(83.2), "83.2 s"),
        (units.format_duration(3600), "60.0 min"),
        (units.format_count(272_474), "272 k"),
        (str(units.Share(0.6)), "60 %"),
        (str(units.PointsValue(0.005)), "0.5 pp"),
        (str(units.Seconds(0.02)), "20.0 ms"),
    ],
)
def test_formats_for_people(text, shown):
    assert text == shown
