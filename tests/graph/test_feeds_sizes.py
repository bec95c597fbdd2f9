"""The sizes that open axes get: told by operators, summed up, or halved until they fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.graph import feeds
from lepton_cli.model import io
from tests.graph.test_feeds import N, attention, build, weight


def sizes(made: ir.Model, **given: tuple[int, ...]) -> dict[str, tuple[Any, ...]]:
    """Shapes of the inputs, with `None` for samples."""
    found = feeds.sized(made, given)
    return {one.name: tuple(dim if isinstance(dim, int) else None for dim in one.shape or ()) for one in found}


@pytest.mark.parametrize(
    ("op", "x", "w", "attributes", "told"),
    [
        ("MatMul", ["batch", "f"], (7,), {}, (None, 7)),
        ("MatMul", ["batch", "t", "f"], (7, 3), {}, (None, 8, 7)),
        ("Gemm", ["batch", "f"], (13, 4), {}, (None, 13)),
        ("Gemm", ["f", "batch"], (13, 4), {"transA": 1}, (13, None)),
        ("Gemm", ["batch", "f"], (4, 13), {"transB": 1}, (None, 13)),
        ("Conv", ["batch", "c", "l"], (4, 6, 3), {}, (None, 6, 8)),
        ("Conv", ["batch", "c", "l"], (4, 6, 3), {"group": 2}, (None, 12, 8)),
        ("ConvTranspose", ["batch", "c", "l"], (6, 4, 3), {}, (None, 6, 8)),
        ("Add", ["batch", "t", "f"], (1, 5), {}, (None, 8, 5)),
        ("Add", ["batch", "t", "f"], (7, 5), {}, (None, 7, 5)),
        ("Mul", ["batch", "f"], (1, 5), {}, (None, 5)),
        ("LayerNormalization", ["batch", "t", "f"], (9,), {}, (None, 8, 9)),
        ("InstanceNormalization", ["batch", "c", "l"], (6,), {}, (None, 6, 8)),
        ("Relu", ["batch", "t", "f"], (9,), {}, (None, 8, 8)),
    ],
)
def test_what_each_operator_tells(op: str, x: Any, w: Any, attributes: Any, told: Any) -> None:
    inputs = ["x", "w", "b"][: {"Relu": 1, "InstanceNormalization": 3}.get(op, 2)]
    assert sizes(build([N(op, inputs, ["y"], **attributes)], {"x": x}, ["y"], w=weight(*w), b=weight(6))) == {"x": told}


def test_a_weight_may_come_first() -> None:
    assert sizes(build([N("Mul", ["w", "x"], ["y"])], {"x": ["batch", "f"]}, ["y"], w=weight(11))) == {"x": (None, 11)}


def test_four_bits_say_their_width() -> None:
    for width, told in ((32, 32), (None, 8)):
        node = N("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", N=4, **({"K": width} if width else {}))
        made = build([node], {"x": ["batch", "t", "f"]}, ["y"], w=np.zeros((4, 1, 16), np.uint8), s=weight(4))
        assert sizes(made) == {"x": (None, 8, told)}


def test_a_kernel_that_is_fed_tells_what_is_fixed() -> None:
    for second, told in ((6, 6), ("i", 8)):
        nodes = [N("Conv", ["x", "w"], ["y"], group=2 if second == "i" else 1)]
        made = build(nodes, {"x": ["batch", "c", "l"], "w": [4, second, "k"]}, ["y"])
        assert sizes(made)["x"][1:] == (told, 8)


@pytest.mark.parametrize(
    "op", ["MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "Add", "LayerNormalization", "Concat"]
)
@pytest.mark.parametrize("rank", ["rank", 2])
def test_values_of_which_nothing_is_known_tell_nothing(op: str, rank: Any) -> None:
    """Neither how many axes they have, or how long these are."""
    attributes = {"Concat": {"axis": 1}, "LSTM": {"hidden_size": 4}}.get(op, {})
    for order in (["x", "r"], ["r", "x"], ["r", "r"]):
        inputs = [*order, "r"] if op == "LSTM" else order
        nodes = [N("Reshape", ["x", "shape"], ["r"]), N(op, inputs, ["y"], **attributes)]
        made = build(nodes, {"x": ["batch", "t", "f"], "shape": ([rank], 7)}, ["y"])
        assert sizes(made)["x"][1:] == (8, 8)


@pytest.mark.parametrize("first", [True, False])
def test_states_of_recurrent_layers(first: bool) -> None:
    nodes = [N("GRU", ["x", "w", "r", "", "", "h"], ["y"], hidden_size=4, direction="bidirectional", layout=int(first))]
    inputs = {"x": ["t", "batch", "f"], "h": ["d", "batch", "s"]}
    if first:
        inputs = {"x": ["batch", "t", "f"], "h": ["batch", "d", "s"]}
    found = sizes(build(nodes, inputs, ["y"], w=weight(2, 12, 9), r=weight(2, 12, 4)))
    assert found == ({"x": (None, 8, 9), "h": (None, 2, 4)} if first else {"x": (8, None, 9), "h": (2, None, 4)})


@pytest.mark.parametrize("axis", [1, -2])
def test_what_is_joined_agrees_elsewhere(axis: int) -> None:
    inputs = {"a": ["batch", "p", "m"], "b": ["batch", "q", "n"], "c": ["batch", 5, 6]}
    made = build([N("Concat", ["a", "b", "c"], ["y"], axis=axis)], inputs, ["y"])
    assert sizes(made, a=(1, 3, 6)) == {"a": (None, 3, 6), "b": (None, 8, 6), "c": (None, 5, 6)}


@pytest.mark.parametrize("axis", [1, -1])
def test_what_is_split_is_as_long_as_its_parts(axis: int) -> None:
    nodes = [N("Split", ["x", "parts"], ["a", "b"], axis=axis)]
    assert sizes(build(nodes, {"x": ["batch", "f"]}, ["a", "b"], parts=np.array([2, 5]))) == {"x": (None, 7)}
    assert sizes(build([N("Split", ["x"], ["a", "b"], axis=1)], {"x": ["batch", "t", "f"]}, ["a", "b"]))["x"][1] == 8


def passing(**inputs: Any) -> ir.Model:
    """Inputs that nothing happens to."""
    return build(
        [N("Identity", [name], [f"{name}.out"]) for name in inputs], inputs, [f"{name}.out" for name in inputs]
    )


SEQUENCE, PAST = "sequence_length", "past_length"


@pytest.mark.parametrize(
    ("given", "new", "past"),
    [
        ({}, 8, 8),
        ({"ids": (1, 5)}, 5, 8),
        ({"past": (1, 2, 3, 4)}, 8, 3),
        ({"ids": (1, 5), "past": (1, 2, 3, 4)}, 5, 3),
    ],
)
def test_sums_are_those_of_their_parts(given: dict[str, tuple[int, ...]], new: int, past: int) -> None:
    made = passing(
        every=(["batch", f"{PAST} + {SEQUENCE}"], 7), ids=(["batch", SEQUENCE], 7), past=["batch", 2, PAST, 4],
        one=(["batch", f"{PAST} + 1"], 7), three=(["batch", f"{PAST} + {SEQUENCE} + 20"], 7),
        total=(["batch", "total_length"], 7), mask=(["batch", "mask_length"], 7),
    )  # fmt: skip
    found = {name: shape[1] for name, shape in sizes(made, **given).items()}
    whole = past + new
    assert found == {
        "every": whole, "ids": new, "past": 2, "one": past + 1, "three": whole + 20, "total": whole, "mask": whole,
    }  # fmt: skip


def test_a_cache_without_a_new_part_that_has_a_name_is_followed_by_one() -> None:
    made = passing(past=["batch", 2, PAST, 4], every=(["batch", "total_length"], 7), other=(["batch", "n"], 7))
    assert sizes(made) == {"past": (None, 2, 8, 4), "every": (None, 9), "other": (None, 8)}
    made = passing(past=["batch", 2, PAST, 4], every=(["batch", "total_length"], 7), x=(["batch", "input_length"], 7))
    assert sizes(made, x=(1, 6))["every"] == (None, 14)
    assert sizes(passing(x=(["batch", SEQUENCE], 7), every=(["batch", "total_length"], 7)), x=(1, 6))["every"] == (
        None,
        8,
    )


def test_a_name_has_the_size_of_the_first_that_has_it() -> None:
    assert sizes(passing(ids=(["batch", "n"], 7), x=["batch", "n"])) == {"ids": (None, 8), "x": (None, 8)}
    assert sizes(passing(x=["batch", "n"], ids=(["batch", "n"], 7))) == {"x": (None, 512), "ids": (None, 512)}
    assert feeds.default_feeds(passing(x=["batch", "n"]), 3, 20) == {"x": (3, 20)}
    assert feeds.default_feeds(passing(x=None, y=[]), 3) == {"x": (), "y": ()}


@pytest.mark.parametrize(("width", "length"), [(1 << 15, 512), ((1 << 15) + 1, 256), (1 << 24, 16)])
def test_sizes_are_halved_until_the_largest_value_fits(width: int, length: int) -> None:
    """512 rows of 2^15 numbers are 64 MiB."""
    nodes = [N("Unsqueeze", ["x", "last"], ["u"]), N("Expand", ["u", "shape"], ["y"])]
    made = build(nodes, {"x": ["batch", "t"]}, ["y"], last=np.array([2]), shape=np.array([1, 1, width]))
    assert sizes(made) == {"x": (None, length)}


@pytest.mark.parametrize(("channels", "side"), [(97, 224), (98, 112)])
def test_sizes_are_halved_until_a_sample_takes_no_more_than_a_second_or_so(channels: int, side: int) -> None:
    """224 x 224 places of 3 x 33 x 33 products are 0.1639 GMAC a channel, of 16."""
    weight = np.zeros((channels, 3, 33, 33), np.float32)
    made = build([N("Conv", ["x", "w"], ["y"], pads=[16] * 4)], {"x": ["batch", 3, "h", "w"]}, ["y"], w=weight)
    assert sizes(made) == {"x": (None, 3, side, side)}


def test_what_grows_with_the_fourth_power_fits_at_once() -> None:
    """4 * 64^4 bytes are 64 MiB; the channels are few already."""
    assert sizes(attention()) == {"x": (None, 4, 64, 64)}
    nodes = list(io.to_proto(attention()).graph.node)
    made = build(nodes, {"x": ["batch", "c", "h", "w"]}, ["y"], ends=np.array([0, 1]), rest=np.array([-1]))
    assert sizes(made) == {"x": (None, 3, 64, 64)}


@pytest.mark.parametrize("axis", [0, -2])
def test_what_is_counted_is_told_of_every_input(axis: int) -> None:
    """A single number has no axis to count along."""
    nodes = [N("Gather", ["x", "source"], ["sent"], axis=axis), N("Mul", ["sent", "number"], ["y"])]
    found = feeds.sized(build(nodes, {"x": ["n", 3], "source": (["e"], 7), "number": []}, ["y"]))
    assert [(one.shape, one.batch_axis) for one in found] == [((512, 3), -1), ((8,), -1), ((), None)]
    plain = feeds.sized(build([N("Gather", ["w", "ids"], ["y"])], {"ids": (["batch"], 7)}, ["y"], w=weight(4, 2)))
    assert plain[0].batch_axis is None


def test_tables_that_the_graph_computes_have_rows() -> None:
    """Where no size is open, too."""
    nodes = [N("Add", ["w", "x"], ["table"]), N("Gather", ["table", "ids"], ["y"])]
    found = feeds.sized(build(nodes, {"x": [1, 6], "ids": ([1, 3], 7)}, ["y"], w=weight(5, 6)))
    assert [one.rows for one in found] == [None, 5]
    nodes = [N("Reshape", ["w", "shape"], ["table"]), N("Gather", ["table", "ids"], ["y"])]
    (ids,) = feeds.sized(build(nodes, {"ids": ([1, 3], 7)}, ["y"], w=weight(5, 6), shape=np.array([15, 2])))
    assert ids.rows == 15


def scored(op: str, heads: dict[str, int], *shapes: list[int | str], **weights: np.ndarray) -> ir.Model:
    """Attention between queries and keys, of which no value of the graph holds the scores."""
    inputs = {f"x{number}": shape for number, shape in enumerate(shapes)}
    domain = "" if op == "Attention" and not weights else "com.microsoft"
    return build([N(op, [*inputs, *weights], ["y"], domain=domain, **heads)], inputs, ["y"], opset=23, **weights)


T = ["batch", "t", 8]


@pytest.mark.parametrize(
    ("op", "heads", "shapes", "limit"),
    [
        ("MultiHeadAttention", {"num_heads": 1}, [T, T, T], 1 << 12),
        ("MultiHeadAttention", {"num_heads": 4}, [T, T, T], 1 << 11),
        ("MultiHeadAttention", {"num_heads": 4}, [T], 1 << 11),
        ("GroupQueryAttention", {"num_heads": 4, "kv_num_heads": 1}, [T, T, T], 1 << 11),
        ("Attention", {"q_num_heads": 4, "kv_num_heads": 2}, [T, T, T], 1 << 11),
        ("Attention", {}, [T, T, T], 1 << 12),
        ("Attention", {}, [["batch", 4, "t", 8]] * 3, 1 << 11),
        ("Attention", {}, [["batch", 1, "t", 8]] * 3, 1 << 12),
        ("MultiHeadAttention", {"num_heads": 1}, [["batch", 64, 8], T, T], 1 << 18),
        ("MultiHeadAttention", {"num_heads": 1}, [T, ["batch", 64, 8], ["batch", 64, 8]], 1 << 18),
    ],
)
def test_scores_are_samples_times_heads_times_queries_times_keys(
    op: str, heads: dict[str, int], shapes: list[list[int | str]], limit: int
) -> None:
    """Four bytes each, 64 MiB of them fit: the limit does, and twice as long is too long."""
    made = scored(op, heads, *shapes)
    for other in (limit, 2 * limit):
        found = [dim for one in feeds.sized(made, other=other) for dim in one.shape or () if dim not in (1, 4, 8, 64)]
        assert {dim for dim in found if isinstance(dim, int)} == {limit}


@pytest.mark.parametrize("heads", [1, 4])
def test_queries_and_keys_may_come_out_of_one_product(heads: int) -> None:
    """onnxruntime's Attention has their weight for a second input."""
    weights = {"w": weight(8, 24), "b": weight(24)}
    found = feeds.sized(scored("Attention", {"num_heads": heads}, T, **weights), other=1 << 12)
    assert found[0].shape == ("batch", 4096 if heads == 1 else 2048, 8)


def test_scores_of_what_has_no_places_or_an_unknown_shape_are_none() -> None:
    found = feeds.sized(scored("MultiHeadAttention", {"num_heads": 1 << 26}, ["batch", "t"]), other=1 << 16)
    assert found[0].shape == ("batch", 1 << 16)
    attend = N("MultiHeadAttention", ["r"], ["y"], domain="com.microsoft", num_heads=1 << 26)
    nodes = [N("Reshape", ["x", "shape"], ["r"]), attend]
    found = feeds.sized(build(nodes, {"x": ["batch", "t"], "shape": (["rank"], 7)}, ["y"]), other=1 << 16)
    assert found[0].shape == ("batch", 1 << 16)


@pytest.mark.parametrize("names", [("x0", "x1"), ("x1", "x0")])
def test_of_several_scores_the_largest_has_to_fit(names: tuple[str, str]) -> None:
    nodes = [N("MultiHeadAttention", [name], [f"{name}.y"], domain="com.microsoft", num_heads=4) for name in names]
    made = build(nodes, {"x0": T, "x1": ["batch", 16, 8]}, ["x0.y", "x1.y"])
    assert feeds.sized(made, other=1 << 12)[0].shape == ("batch", 1 << 11, 8)


def test_shapes_that_are_all_given_need_no_look_at_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("looked")

    monkeypatch.setattr(feeds, "sized", fails)
    assert feeds.default_feeds(attention(), 1, None, {"x": [3, 4, 6, 7]}) == {"x": (3, 4, 6, 7)}


def test_a_length_is_a_sum_only_where_every_input_calls_it_one() -> None:
    made = passing(
        input_ids=(["batch", "n"], 7), mask=(["batch", "n"], 7), past=["batch", 2, PAST, 4],
        total=(["batch", "total_length"], 7),
    )  # fmt: skip
    found = {name: shape[1] for name, shape in sizes(made, input_ids=(1, 5)).items()}
    assert found == {"input_ids": 5, "mask": 5, "past": 2, "total": 8 + 5}


def test_names_that_meet_in_either_order_are_one() -> None:
    nodes = [N("Add", ["a", "b"], ["s"]), N("Add", ["b", "a"], ["y"])]
    made = build(nodes, {"a": ["batch", "n", 3], "b": ["batch", "m", 3]}, ["s", "y"])
    assert sizes(made, a=(1, 5, 3)) == {"a": (None, 5, 3), "b": (None, 5, 3)}
    assert sizes(made) == {"a": (None, 8, 3), "b": (None, 8, 3)}


def test_tables_of_which_nothing_is_known_tell_no_rows() -> None:
    nodes = [N("Reshape", ["x", "shape"], ["table"]), N("Gather", ["table", "ids"], ["y"])]
    made = build(nodes, {"x": ["batch", "f"], "shape": (["rank"], 7), "ids": (["batch"], 7)}, ["y"])
    assert [one.rows for one in feeds.sized(made)] == [None, None, None]


@pytest.mark.parametrize("first", [True, False])
def test_what_is_told_tells_more(first: bool) -> None:
    """Two names that are one give their sum a length, which is another's: eight times, more than guesses would mend."""
    nodes, inputs = [], {}
    for number in map(str, range(8)):
        met = ["c", f"s{number}"] if first else [f"s{number}", "c"]
        nodes += [N("Add", [f"a{number}", f"b{number}"], [f"s{number}"]), N("Add", met, [f"y{number}"])]
        inputs |= {f"{name}{number}": ["batch", f"{name}{number}", 3] for name in "ab"}
    made = build(nodes, {**inputs, "c": ["batch", 5, 3]}, [f"y{number}" for number in range(8)])
    assert set(sizes(made).values()) == {(None, 5, 3)}


@pytest.mark.parametrize("met", [["ids", "mask"], ["mask", "ids"]])
def test_a_length_that_meets_another_is_called_what_both_are(met: list[str]) -> None:
    nodes = [N("Add", met, ["y"]), N("Identity", ["past"], ["kept"])]
    inputs = {"ids": (["batch", "n"], 7), "mask": (["batch", "m"], 7), "past": ["batch", 2, PAST, 4]}
    made = build(nodes, inputs, ["y", "kept"])
    assert sizes(made) == {"ids": (None, 8), "mask": (None, 8), "past": (None, 2, 8, 4)}


def test_where_no_size_fits_the_usual_one_stays() -> None:
    """Twice a length is never five."""
    nodes = [N("Concat", ["x", "x"], ["two"], axis=1), N("Add", ["two", "c"], ["y"])]
    assert sizes(build(nodes, {"x": ["batch", "n"], "c": ["batch", 5]}, ["y"])) == {"x": (None, 512), "c": (None, 5)}
