"""Limits read in the unit of their metric."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli.metrics import METRICS, find
from lepton_cli.recipe.limits import Limit, parse_limit


def limit(name, comparison, value):
    return parse_limit(find(name), comparison, value)


@pytest.mark.parametrize(
    ("name", "comparison", "value", "expected"),
    [
        ("size.file", "max", "1 MB", 1e6),
        ("size.gzip", "max_increase", "10 kB", 1e4),
        ("memory.peak", "max", "1 GiB", 2**30),
        ("parameters", "max", "300 k", 3e5),
        ("macs", "max", 41_000_000, 4.1e7),
        ("nodes", "max_increase", 0, 0),
        ("accuracy.top1", "min", "90 %", 0.9),
        ("accuracy.top1", "min", 0.9, 0.9),
        ("accuracy.top3", "max_drop", "0.5 pp", 0.005),
        ("accuracy.rmse", "max", 0.25, 0.25),
        ("accuracy.r2", "max_drop", 0.01, 0.01),
        ("accuracy.spearman", "max_drop", "1 pp", 0.01),
        ("accuracy.python", "min", -3, -3),
        ("agreement", "min", "98%", 0.98),
        ("fidelity.sqnr", "min", 30, 30),
        ("fidelity.sqnr", "min", "30 dB", 30),
        ("latency.p99", "max", "20 ms", 0.02),
        ("latency.median", "max_ratio", 0.6, 0.6),
        ("latency.median", "max_ratio", "60 %", 0.6),
        ("throughput", "min", "500 /s", 500),
        ("energy", "max", "5 mJ", 0.005),
        ("energy", "max_ratio", 0.5, 0.5),
        ("cost.per_million", "max", "0.02 USD", 0.02),
        ("cost.per_million", "max", 0.02, 0.02),
    ],
)
def test_limits_are_in_base_units(name, comparison, value, expected):
    result = limit(name, comparison, value)
    assert result == pytest.approx(expected)
    assert result.text == str(value)
    assert limit(name, comparison, result.text) == result


@pytest.mark.parametrize(
    ("name", "comparison", "value", "said"),
    [
        ("size.file", "max", 1_000_000, "no unit"),
        ("size.file", "max", "1 ms", "unknown unit"),
        ("size.file", "max_increase", "5 %", "such as `max_ratio: 95 %`"),
        ("accuracy.top1", "min", 90, "between 0 % and 100 %"),
        ("accuracy.top1", "min", "120 %", "between 0 % and 100 %"),
        ("accuracy.top1", "max_drop", 0.5, "has no unit: write for example `0.5 pp`"),
        ("accuracy.top1", "max_drop", "0.5 %", "0.5 pp"),
        ("accuracy.r2", "max_drop", -1, "cannot be negative"),
        ("latency.median", "max", 5, "no unit"),
        ("latency.median", "max_ratio", 0, "above zero"),
        ("latency.median", "max_ratio", "2x", "a ratio such as"),
        ("latency.median", "max_ratio", True, "a ratio such as"),
        ("fidelity.sqnr", "min", "30 db", "write for example `30 dB`"),
        ("throughput", "min", [], "write for example"),
        ("cost.per_million", "max", "cheap", "write for example"),
    ],
)
def test_wrong_limits(name, comparison, value, said):
    with pytest.raises(ValueError, match=said.replace("|", r"\|")):
        limit(name, comparison, value)


@given(
    st.sampled_from(sorted(METRICS)),
    st.sampled_from(["max", "min", "max_ratio", "min_ratio", "max_drop", "max_increase"]),
    st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.none(), st.booleans(), st.lists(st.integers())),
)
def test_nothing_but_value_error_escapes(name, comparison, value):
    try:
        result = limit(name, comparison, value)
    except ValueError:
        return
    assert limit(name, comparison, result.text) == result


def test_a_limit_is_a_number_with_its_text():
    value = Limit(1e6, "1 MB")
    assert value == 1e6
    assert str(value) == "1 MB"
    assert Limit(0.5).text == "0.5"
    for other in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert (other, other.text) == (value, "1 MB")
