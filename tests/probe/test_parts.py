"""Outputs that mix units: where parts begin, which belong together, and what each of them weighs."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from lepton_cli.model import io
from lepton_cli.probe import parts
from lepton_cli.probe.parts import Division, Segments
from tests.coupling.networks import Network


def detector(channels_last: bool = True) -> ir.Model:
    """Boxes, objectness and three classes of a head, of two scales behind one another: [1, 20, 8] or [1, 8, 20]."""
    n = Network()
    x = n.input("x", 1, 3, 8, 8)
    scales = []
    for step in (2, 4):
        y = n.node("Conv", x, n.weight(4, 3, 1, 1), strides=[step, step])
        heads = [n.node("Conv", y, n.weight(count, 4, 1, 1)) for count in (4, 1, 3)]
        heads[1:] = [n.node("Sigmoid", head) for head in heads[1:]]
        joined = n.node("Concat", *heads, axis=1)
        scales.append(n.node("Reshape", joined, n.literal(1, 8, -1)))
    whole = n.node("Concat", *scales, axis=2)
    return n.model(n.node("Transpose", whole, perm=[0, 2, 1]) if channels_last else n.node("Mul", whole, n.weight(1)))


@pytest.mark.parametrize("channels_last", [True, False])
def test_what_concats_join_is_found_behind_reshapes_transposes_and_arithmetic(channels_last: bool) -> None:
    (ways,) = parts.segments(detector(channels_last)).values()
    heads, scales = Segments(2 if channels_last else 1, (0, 4, 5, 8)), Segments(1 if channels_last else 2, (0, 16, 20))
    assert set(ways) == {heads, scales}


def test_a_graph_that_joins_nothing_says_nothing() -> None:
    n = Network()
    model = n.model(n.node("MatMul", n.input("x", "batch", 4), n.weight(4, 8)))
    assert parts.segments(model) == {}


def test_one_way_out_of_an_open_size_is_not_cut() -> None:
    """How long the joined axis is nobody knows before the model runs."""
    n = Network()
    x = n.input("x", "batch", "any", 4)
    assert parts.segments(n.model(n.node("Concat", x, x, axis=1))) == {}


def test_two_concats_behind_an_addition_give_the_finer_cut() -> None:
    n = Network()
    x, y = n.input("x", "batch", 4), n.input("y", "batch", 2)
    first = n.node("Concat", x, x, axis=-1)
    second = n.node("Concat", y, y, x, axis=1)
    (ways,) = parts.segments(n.model(n.node("Add", first, second))).values()
    assert ways == (Segments(1, (0, 2, 4, 8)),)


def test_every_column_of_a_narrow_output_may_be_of_its_own_kind() -> None:
    assert parts.columns((8, 6)) == (Segments(1, tuple(range(7)), parts.COLUMNS_APART),)
    assert parts.columns((8, 100, 7)) == (Segments(2, tuple(range(8)), parts.COLUMNS_APART),)
    assert parts.columns((8, 3, 50, 50)) == (Segments(1, tuple(range(4)), parts.COLUMNS_APART),)
    for shape in ((8,), (8, 65), (8, 1), (8, 7, 7), (8, 66, 28, 28), ()):
        assert parts.columns(shape) == ()
    assert parts.columns((8, 64))[0].edges[-1] == 64


def divided(values: np.ndarray, error: np.ndarray, *ways: Segments) -> list[parts.Part]:
    division = Division(ways)
    for rows in np.array_split(np.arange(len(values)), 2):
        division.add(values[rows], error[rows])
    return division.parts()


def test_pixels_beside_scores_are_two_parts() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (6, 20, 8)) * ([100.0] * 4 + [0.1, 0.2, 0.05, 0.3])
    error = random.normal(0, 1, values.shape) * ([1.0] * 4 + [0.1] * 4)
    boxes, scores = divided(values, error, Segments(2, (0, 4, 5, 8)))
    assert (boxes.where, scores.where) == ("[:, :, 0:4]", "[:, :, 4:8]")
    assert boxes.signal == pytest.approx(np.square(values[..., :4]).sum())
    assert boxes.noise == pytest.approx(np.square(error[..., :4]).sum())
    assert scores.signal == pytest.approx(np.square(values[..., 4:]).sum())
    assert scores.noise == pytest.approx(np.square(error[..., 4:]).sum())


def test_what_differs_little_is_one_part() -> None:
    values = np.ones((4, 6, 5)) * [1.0, 1.0, 3.9, 3.9, 15.0]
    (whole,) = divided(values, values / 10, Segments(2, (0, 2, 4, 5)))
    assert (whole.where, whole.signal, whole.noise) == ("", pytest.approx(24 * 257.42), pytest.approx(24 * 2.5742))
    apart = divided(values * [1, 1, 1, 1, 1.1], values, Segments(2, (0, 2, 4, 5)))
    assert [part.where for part in apart] == ["[:, :, 0:4]", "[:, :, 4]"]


def test_columns_need_a_factor_of_ten() -> None:
    values = np.ones((4, 3)) * [1.0, 9.9, 98.0]
    assert [part.where for part in divided(values, values)] == [""]
    assert [part.where for part in divided(values * [1, 1.02, 1.04], values)] == ["[:, 0]", "[:, 1]", "[:, 2]"]


def test_columns_of_one_kind_need_not_be_neighbours() -> None:
    values = np.ones((4, 5)) * [1.0, 50.0, 1.0, 50.0, 50.0]
    assert [part.where for part in divided(values, values)] == ["[:, [0, 2]]", "[:, [1, 3:5]]"]
    for pairs, shown in ((4, "[:, [0, 2, 4, 6]]"), (5, "[:, [0, 2, 4, 6, …]]"), (6, "[:, [0, 2, 4, 6, …]]")):
        many = np.ones((4, 2 * pairs)) * ([1.0, 50.0] * pairs)
        assert divided(many, many)[0].where == shown


def test_the_axis_where_kinds_differ_most_is_chosen() -> None:
    values = np.ones((2, 4, 6)) * np.array([1.0, 1, 8, 8])[:, None] * [1.0, 1, 1, 30, 30, 30]
    ways = Segments(1, (0, 2, 4)), Segments(2, (0, 3, 6))
    for order in (ways, ways[::-1]):
        assert [part.where for part in divided(values, values, *order)] == ["[:, :, 0:3]", "[:, :, 3:6]"]


def test_classes_that_never_fire_are_no_part_of_their_own() -> None:
    """Probabilities that stay below one in twenty say nothing; of numbers without bounds nobody knows."""
    values = np.ones((4, 10, 6)) * [0.5, 0.4, 0.009, 0.009, 0.001, 1e-6]
    values[0, 0, 0] = 0.0
    way = Segments(2, (0, 1, 2, 3, 4, 5, 6))
    assert [part.where for part in divided(values, values, way)] == [""]
    values[3, 7, 3] = 0.05  # a class that fires once: as rare as it is, it is a part
    assert [part.where for part in divided(values, values, way)] == ["[:, :, 0:2]", "[:, :, 2:6]"]
    assert [part.where for part in divided(values * 0.5, values, way)] == [""]
    assert [part.where for part in divided(values * 3, values, way)] == [
        "[:, :, 0:2]", "[:, :, 2:4]", "[:, :, 4]", "[:, :, 5]",
    ]  # fmt: skip


def test_one_is_a_probability_and_a_factor_of_four_is_enough() -> None:
    way = Segments(1, (0, 1, 2, 3, 4))
    certain = np.ones((4, 4)) * [1.0, 0.25, 0.04, 0.0004]
    assert [part.where for part in divided(certain, certain, way)] == ["[:, 0]", "[:, 1:4]"]
    assert [part.where for part in divided(certain * 1.25, certain, way)] == [
        "[:, 0]", "[:, 1]", "[:, 2]", "[:, 3]",
    ]  # fmt: skip


def test_levels_are_those_of_one_value_however_long_a_part_is() -> None:
    values = np.ones((4, 20)) * np.repeat([1.0, 3.0, 3.9], [1, 16, 3])
    assert [part.where for part in divided(values, values, Segments(1, (0, 1, 17, 20)))] == [""]


def test_columns_that_are_always_zero_belong_to_the_lowest_kind() -> None:
    values = np.ones((4, 5)) * [0.0, 30.0, 1.0, 0.0, -30.0]
    assert [part.where for part in divided(values, values)] == ["[:, [0, 2:4]]", "[:, [1, 4]]"]
    (nothing,) = divided(np.zeros((4, 5)), np.zeros((4, 5)))
    assert (nothing.where, nothing.signal, nothing.noise) == ("", 0, 0)


def test_a_cut_that_does_not_fit_the_output_is_not_used() -> None:
    values = np.ones((4, 5)) * [1.0, 1.0, 50.0, 50.0, 50.0]
    wrong = Segments(1, (0, 2, 6)), Segments(2, (0, 1, 2)), Segments(3, (0, 1, 2))
    assert [part.where for part in divided(values, values, *wrong)] == ["[:, 0:2]", "[:, 2:5]"]


def test_what_is_no_signal_around_a_centre_still_tells_the_kinds_apart() -> None:
    """Levels are those of the values; the signal is what lies around their mean."""
    values = np.array([[101.0, 0.5], [99.0, 1.5]])
    division = Division()
    division.add(values, np.full((2, 2), 0.1), values.mean(axis=0))
    assert [(part.where, part.signal) for part in division.parts()] == [("[:, 0]", 2.0), ("[:, 1]", 0.5)]


@given(
    levels=st.lists(st.floats(-6, 6), min_size=2, max_size=9),
    seed=st.integers(0, 99),
)
def test_parts_are_a_partition_and_within_one_no_gap_is_wide(levels: list[float], seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.choice([-1.0, 1.0], (5, len(levels))) * np.exp(levels) * 3
    error = random.normal(size=values.shape)
    found = divided(values, error)
    assert math.fsum(part.signal for part in found) == pytest.approx(np.square(values).sum())
    assert math.fsum(part.noise for part in found) == pytest.approx(np.square(error).sum())
    gaps = np.diff(np.sort(levels))
    bounded = values.min() >= 0 and values.max() <= 1
    if not bounded:
        assert len(found) == 1 + int((gaps > math.log(parts.COLUMNS_APART)).sum())


def test_a_model_is_not_changed_by_looking_at_it() -> None:
    model = detector()
    before = io.to_bytes(model)
    parts.segments(model)
    assert io.to_bytes(model) == before


def test_a_size_that_broadcasts_says_nothing_about_the_cut() -> None:
    n = Network()
    x = n.input("x", "batch", 4)
    joined = n.node("Concat", x, x, axis=1)
    (ways,) = parts.segments(n.model(n.node("Mul", n.weight(1, 1), joined))).values()
    assert ways == (Segments(1, (0, 4, 8)),)


@pytest.mark.parametrize(("between", "found"), [(200, True), (201, False)])
def test_a_concat_far_behind_the_output_is_not_looked_for(between: int, found: bool) -> None:
    n = Network()
    x = n.input("x", "batch", 4)
    y = n.node("Concat", x, x, axis=1)
    for _ in range(between):
        y = n.node("Neg", y)
    assert bool(parts.segments(n.model(y))) is found


def test_negative_numbers_are_no_probabilities() -> None:
    """All below 0.05, and none of them silent: the larger ones are logits near zero."""
    values = np.ones((4, 3)) * [-0.9, -0.9, 0.03]
    assert [part.where for part in divided(values, values)] == ["[:, 0:2]", "[:, 2]"]


def test_nothing_beside_something_is_one_part() -> None:
    values = np.ones((4, 3)) * [0.0, 50.0, -50.0]
    assert [part.where for part in divided(values, values)] == [""]


def found(n: Network, output: str) -> set[Segments]:
    return set(parts.segments(n.model(output)).get(output, ()))


def joined(n: Network) -> str:
    """[batch, 8] of two halves."""
    x = n.input("x", "batch", 4)
    return n.node("Concat", x, x, axis=-1)


def test_values_of_fewer_axes_and_turned_ones_are_followed() -> None:
    """[8, 6, 8] + the transposition of [4 + 4, 6], times [2 + 4, 8]: axes count from the last."""
    n = Network()
    turned = n.node("Transpose", n.node("Concat", n.weight(4, 6), n.weight(4, 6), axis=0))
    y = n.node("Add", n.input("x", "batch", 8, 6, 8), turned)
    y = n.node("Mul", y, n.node("Concat", n.weight(2, 8), n.weight(4, 8), axis=0))
    assert found(n, y) == {Segments(2, (0, 2, 6)), Segments(3, (0, 4, 8))}


def test_what_reorders_or_mixes_positions_is_not_looked_through() -> None:
    n = Network()
    whole = joined(n)
    assert found(n, n.node("Softmax", whole)) == {Segments(1, (0, 4, 8))}
    assert found(n, n.node("MatMul", whole, n.weight(8, 8))) == set()
    assert found(n, n.node("Reshape", whole, n.literal(-1, 2, 4))) == set()


def test_a_reshape_of_other_axes_keeps_the_cut() -> None:
    n = Network()
    x = n.input("x", 2, 4, 6)
    split = n.node("Reshape", n.node("Concat", x, x, axis=1), n.literal(2, 8, 2, 3))
    assert found(n, split) == {Segments(1, (0, 4, 8))}
    merged = n.node("Reshape", n.node("Concat", x, x, axis=2), n.literal(8, 12))
    assert found(n, merged) == {Segments(1, (0, 6, 12))}


def test_samples_that_are_joined_are_no_parts() -> None:
    n = Network()
    x = n.input("x", 2, 4)
    assert found(n, n.node("Concat", x, x, axis=0)) == set()


def test_so_many_parts_and_no_more() -> None:
    n = Network()
    x = n.input("x", "batch", 2)
    assert found(n, n.node("Concat", *[x] * 64, axis=1)) == {Segments(1, tuple(range(0, 129, 2)))}
    assert found(n, n.node("Concat", *[x] * 65, axis=1)) == set()


def test_parts_without_a_position_are_none() -> None:
    """A cache that is empty at the start."""
    n = Network()
    x, nothing = n.input("x", "batch", 4), n.input("past", "batch", 0)
    assert found(n, n.node("Concat", nothing, x, nothing, x, nothing, axis=1)) == {Segments(1, (0, 4, 8))}
    assert found(n, n.node("Concat", x, nothing, axis=1)) == set()


def test_inputs_that_are_left_out_or_of_no_known_rank() -> None:
    n = Network()
    whole = joined(n)
    n.inputs.append(helper.make_tensor_value_info("shape", TensorProto.INT64, ["rank"]))
    least = n.node("Reshape", n.weight(1), "shape")
    limited = n.node("Clip", whole, least, n.weight())
    assert found(n, n.node("Clip", limited, "", n.weight())) == {Segments(1, (0, 4, 8))}


def test_gates_one_behind_the_other_are_seen_once_each() -> None:
    """`x * sigmoid(x)`, forty times: a million million ways lead back."""
    n = Network()
    y = joined(n)
    for _ in range(40):
        y = n.node("Mul", y, n.node("Sigmoid", y))
    assert found(n, y) == {Segments(1, (0, 4, 8))}
