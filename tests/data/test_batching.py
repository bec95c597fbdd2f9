"""One sample is one complete feed: states, single values, graphs, time first; samples on axis 0 of what is stored."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_cli.data import batching
from lepton_cli.data.batching import Layout, layout
from lepton_cli.data.dataset import Batch
from lepton_cli.data.memory import Arrays
from lepton_cli.data.open import open_dataset
from lepton_cli.data.reader import SourceDataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

SPEECH = (
    TensorInfo("input", "float32", ("B", 4)),
    TensorInfo("state", "float32", (2, "B", 3)),
    TensorInfo("sr", "int64", ()),
)
GRAPH = (TensorInfo("x", "float32", ("N", 3)), TensorInfo("edges", "int64", (2, "E")))


def info(*shape: int | str | None, name: str = "x", batch_axis: int | None = None) -> TensorInfo:
    return TensorInfo(name, "float32", shape, batch_axis=batch_axis)


@pytest.mark.parametrize(
    ("shapes", "axes", "fixed", "alone"),
    [
        ([("batch", 3, 8, 8)], [0], None, False),
        ([(None, None), (2, None, 128), ()], [0, 1, None], None, False),
        ([(1, 512), (2, 1, 64), ()], [0, 1, None], 1, False),
        ([(4, 512), (2, 4, 64), (1,)], [0, 1, None], 4, False),
        ([("B", 3), (1,)], [0, None], None, False),
        ([("T", "B", 40), (2, "B", 64)], [1, 1], None, False),
        ([("sequence", "batch", 40)], [1], None, False),
        ([("batch", 2, "past", 8), (2, "batch", 4, "past", 8)], [0, 1], None, False),
        ([(3, 2), ("batch", 2)], [0, 0], 3, False),
        ([("N", 16), (2, "E")], [0, None], 1, True),
        ([("T", "F"), (25,)], [0, None], 1, True),
        ([("B", 512), (2, 1, 64)], [0, 1], 1, False),
        ([()], [None], None, False),
        ([None], [0], None, False),
        ([(0, 3)], [0], None, False),
        ([(2, "n")], [0], 2, False),
        ([("batch", "bs")], [0], None, False),
        ([("T", "S", 40), (2, "S", 64)], [1, 1], None, False),
        ([("batch", 8), (4, None), (2, None, 128)], [0, None, 1], 1, True),
        ([(1, "batch", 3), (2, None, 64), ()], [1, None, None], 1, True),
        ([("batch", 3), (2, None, 64), ()], [0, 1, None], None, False),
        ([(1,), (4, 512), (2, 4, 64)], [None, 0, 1], 4, False),
        ([("batch", 2), (3, 4), (5, 6)], [0, 0, 0], 1, True),
        ([("B", 512), (2, 3, 64)], [0, 0], 2, False),
        ([("B", 512), (2, 1, 1)], [0, 1], 1, False),
        ([("batch", 3), (1, "T")], [0, 0], 1, False),
        ([("batch", 3), ("q", 5)], [0, 0], None, False),
    ],
)
def test_where_samples_are(shapes: list[Any], axes: list[int | None], fixed: int | None, alone: bool) -> None:
    found = layout([TensorInfo(str(number), "float32", shape) for number, shape in enumerate(shapes)])
    assert (list(found.axes.values()), found.fixed, found.alone) == (axes, fixed, alone)


@pytest.mark.parametrize(
    ("shapes", "axes", "open_shapes"),
    [
        ([(1, 3, 8)], {"0": 0}, [("batch", 3, 8)]),
        ([(1, 512), (2, 1, 64), (1,), ()], {"0": 0, "1": 1}, [("batch", 512), (2, "batch", 64), (1,), ()]),
        ([(1, 1)], {"0": 0}, [("batch", 1)]),
        ([("n", 4)], {"0": 0}, [("n", 4)]),
        ([("N", 16), (2, "E")], {}, [("N", 16), (2, "E")]),
        ([None], {}, [None]),
    ],
)
def test_several_samples_make_inputs_longer(shapes: list[Any], axes: dict[str, int], open_shapes: list[Any]) -> None:
    inputs = [TensorInfo(str(number), "float32", shape) for number, shape in enumerate(shapes)]
    assert batching.sample_axes(inputs) == axes
    assert [one.shape for one in batching.freed(inputs)] == open_shapes


@pytest.mark.parametrize(
    ("shape", "told", "axis", "fixed", "alone"),
    [
        (("a", "c", 4), 1, 1, None, False),
        (("a", "c", 4), -1, None, 1, True),
        (("a", 7, 4), 1, 0, None, False),
        (("batch", "c", 4), 1, 0, None, False),
        (("batch", "c", 4), -1, 0, None, False),
        ((5, 6), -1, None, 1, True),
    ],
)
def test_the_graph_knows_better_than_shapes_but_not_than_names(
    shape: tuple[Any, ...], told: int, axis: int | None, fixed: int | None, alone: bool
) -> None:
    found = layout([info(*shape, batch_axis=told), info("batch", 3, name="other")])
    assert (found.axes, found.fixed, found.alone) == ({"x": axis, "other": 0}, fixed, alone)


@pytest.mark.parametrize(("told", "axis", "fixed"), [(-1, None, 1), (0, 0, 3), (1, 1, 4)])
def test_the_graph_knows_better_where_every_size_is_fixed(told: int, axis: int | None, fixed: int) -> None:
    found = layout([info(3, 4, 5, batch_axis=told)])
    assert (found.axes, found.fixed, found.alone) == ({"x": axis}, fixed, told < 0)


@pytest.mark.parametrize(
    ("column", "whole"),
    [
        (np.zeros((4, 5, 3)), True),
        (np.zeros((4, 1, 3)), False),
        (np.zeros((4, 3)), False),
        ([np.zeros((1, 5, 3)), np.zeros((1, 7, 3))], True),
        ([np.zeros((1, 1, 3)), np.zeros((1, 7, 3))], True),
        ([np.zeros((1, 1, 3)), np.zeros((1, 1, 3))], False),
    ],
)
def test_samples_that_are_whole_and_count_something_else_go_alone(column: Any, whole: bool) -> None:
    one, other = info("N", 3), info("N", name="other")
    columns = {"x": column, "other": np.zeros(4)}
    for inputs in ((one,), (one, other), (other, one)):
        assert batching.alone(columns, inputs, layout(inputs)) is whole
    assert batching.alone({"x": np.zeros((4, 3))}, (one,), Layout({"x": 0}, 1, alone=True))
    assert not batching.alone({"x": column}, (one,), Layout({"x": None}, None, alone=False))


@pytest.mark.parametrize(
    ("column", "axis", "alone", "edges"),
    [
        (np.zeros((3, 2)), 0, False, [0, 3]),
        (np.zeros((3, 2)), 0, True, [0, 1, 2, 3]),
        ([np.zeros((1, size)) for size in (2, 3, 3, 2)], 0, False, [0, 1, 3, 4]),
        (np.array([8, 16, 16]), None, False, [0, 1, 3]),
        (np.array([8, 16, 16]), 0, False, [0, 3]),
        (np.array([np.nan, np.nan, 1]), None, False, [0, 2, 3]),
        (np.array(["a", "b", "b"], object), None, False, [0, 1, 3]),
    ],
)
def test_neighbours_that_go_into_one_feed(column: Any, axis: int | None, alone: bool, edges: list[int]) -> None:
    columns = {"first": np.zeros(len(column)), "x": column}
    found = batching.runs(columns, {"first": 0, "x": axis}, alone)
    assert [(one.start, one.stop) for one in found] == list(itertools.pairwise(edges))


@pytest.mark.parametrize(
    ("stored", "wanted", "axis", "fed"),
    [
        ((2, 4, 5), None, 0, (2, 4, 5)),
        ((2, 3), (2, 3), None, ...),
        ((2,), (1,), None, (1,)),
        ((2,), (1, 1), None, (1, 1)),
        ((2,), (), None, ()),
        ((2, 1), (), None, ()),
        ((2, 4), (1,), None, ...),
        ((2, 1), (3,), None, ...),
        ((2, 4), (1, 4), None, (1, 4)),
        ((2, 3, 5), (3, 1, 5), None, (3, 1, 5)),
        ((2, 4), (3, 4), None, ...),
        ((2, 5), (1, 4), None, ...),
        ((2, 5, 4), (1, 5, 4), 1, ...),
        ((2, 4), ("B", 4), 0, ...),
    ],
)
def test_what_a_stack_of_samples_becomes(stored: Any, wanted: Any, axis: int | None, fed: Any) -> None:
    """Of a value that all share the first is taken; `...`: the stack as it is."""
    stack = np.arange(np.prod(stored)).reshape(stored)
    found = batching.feed(stack, TensorInfo("x", "float32", wanted), axis)
    if wanted == stored[1:]:
        fed, stack = stored[1:], stack[0]
    elif fed is ... or wanted is None:
        fed = stored
    else:
        stack = stack[0]
    assert found.shape == fed
    assert found.ravel().tolist() == stack.ravel().tolist()


def npz(folder: Path, inputs: tuple[TensorInfo, ...], arrays: dict[str, Any], **options: Any) -> SourceDataset:
    np.savez(folder / "data.npz", **arrays)
    return open_dataset(DataSpec(path="data.npz", **options), inputs, name="calibration", base=folder)


def speech(count: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    state = random.standard_normal((count, 2, 3)).astype(np.float32)
    return {"input": random.standard_normal((count, 4)).astype(np.float32), "state": state, "sr": np.full(count, 8000)}


def test_states_and_single_values_from_arrays(tmp_path: Path) -> None:
    arrays = speech(5)
    dataset = npz(tmp_path, SPEECH, arrays)
    for _ in range(2):  # read, and from memory
        first, rest = dataset.batches(size=3)
        assert (first.count, rest.count, rest.start) == (3, 2, 3)
        assert first.feeds["state"].shape == (2, 3, 3)
        assert first.feeds["sr"].shape == ()
        for row in range(3):
            np.testing.assert_array_equal(first.feeds["state"][:, row], arrays["state"][row])
    memory = Arrays(arrays).of(SPEECH, "calibration")
    np.testing.assert_array_equal(next(memory.batches(3)).feeds["state"], first.feeds["state"])


def test_a_batch_of_one_kept_and_one_value_for_all(tmp_path: Path) -> None:
    arrays = speech(3)
    kept = {"input": arrays["input"][:, None], "state": arrays["state"][:, :, None], "sr": np.array(16000)}
    (batch,) = npz(tmp_path, SPEECH, kept).batches()
    np.testing.assert_array_equal(batch.feeds["input"], arrays["input"])
    np.testing.assert_array_equal(batch.feeds["state"], np.moveaxis(arrays["state"], 0, 1))
    assert (batch.count, batch.feeds["sr"].tolist()) == (3, 16000)


def test_samples_with_other_single_values_are_fed_apart(tmp_path: Path) -> None:
    arrays = speech(5) | {"sr": np.array([8, 8, 16, 16, 8])}
    found = [(b.start, b.count, b.feeds["sr"].tolist()) for b in npz(tmp_path, SPEECH, arrays).batches()]
    assert found == [(0, 2, 8), (2, 2, 16), (4, 1, 8)]


def test_a_single_value_in_a_list(tmp_path: Path) -> None:
    inputs = (info("B", 4), TensorInfo("speed", "float32", (1,)))
    for speed in (np.ones(3), np.ones((3, 1))):
        (batch,) = npz(tmp_path, inputs, {"x": np.zeros((3, 4)), "speed": speed}).batches()
        assert batch.feeds["speed"].tolist() == [1.0]


def test_swapped_axes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different numbers of samples") as caught:
        npz(tmp_path, SPEECH, speech(5) | {"state": np.zeros((2, 5, 3))})
    assert "axis 0 of every array counts the samples" in str(caught.value.hint)
    with pytest.raises(DataError, match="1x3x2 for input `state`, the model wants 2 x batch x 3"):
        npz(tmp_path, SPEECH, speech(5) | {"state": np.zeros((5, 3, 2))})


def test_time_first(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 7, 3)).astype(np.float32)
    (batch,) = npz(tmp_path, (info("T", "B", 3),), {"x": x}).batches()
    np.testing.assert_array_equal(batch.feeds["x"], x.transpose(1, 0, 2))


def test_whole_feeds_are_fed_one_by_one(tmp_path: Path) -> None:
    x, edges = np.random.default_rng(0).random((3, 5, 3), np.float32), np.arange(24).reshape(3, 2, 4)
    found = list(npz(tmp_path, GRAPH, {"x": x, "edges": edges}).batches(size=8))
    assert [batch.count for batch in found] == [1, 1, 1]
    for row, batch in enumerate(found):
        np.testing.assert_array_equal(batch.feeds["x"], x[row])
        np.testing.assert_array_equal(batch.feeds["edges"], edges[row])
        assert batch.sized(4) is batch.feeds or batch.sized(4)["x"].shape == (5, 3)


LOADER = """
import numpy as np
def graphs(path):
    for size in (5, 7):
        yield {"x": np.full((size, 3), size), "edges": np.zeros((2, size + 1)), "label": np.array([size])}
def speech(path):
    for start in (0, 2):
        state = np.arange(start, start + 2)[None, :, None] * np.ones((2, 1, 3))
        yield {"input": np.ones((2, 4)), "state": state, "sr": np.array(8000)}
def swapped(path):
    yield {"input": np.ones((4, 4)), "state": np.ones((4, 2, 3)), "sr": np.array(8000)}
def pictures(path):
    for size in (8, 8, 9):
        yield {"x": np.full((2, 3, size, size), size)}
"""


def loaded(folder: Path, inputs: tuple[TensorInfo, ...], function: str, **options: Any) -> SourceDataset:
    (folder / "load.py").write_text(LOADER)
    spec = DataSpec(path=".", loader=f"load.py:{function}", **options)
    return open_dataset(spec, inputs, name="calibration", base=folder, allow_code=True)


def test_loaders_yield_what_the_model_takes(tmp_path: Path) -> None:
    (batch,) = loaded(tmp_path, SPEECH, "speech").batches()
    assert (batch.count, batch.feeds["sr"].shape) == (4, ())
    np.testing.assert_array_equal(batch.feeds["state"][:, :, 0], [[0, 1, 2, 3]] * 2)
    with pytest.raises(DataError, match="yielded an array of 4 x 2 x 3 for input `state`"):
        loaded(tmp_path, SPEECH, "swapped")


def test_loaders_of_graphs_and_of_pictures_of_any_size(tmp_path: Path) -> None:
    found = list(loaded(tmp_path, GRAPH, "graphs", labels="label").batches())
    assert [batch.feeds["x"].shape for batch in found] == [(5, 3), (7, 3)]
    assert [batch.labels["labels"].tolist() for batch in found] == [[5], [7]]
    pictures = list(loaded(tmp_path, (info("n", 3, "h", "w"),), "pictures").batches())
    assert [batch.feeds["x"].shape for batch in pictures] == [(4, 3, 8, 8), (2, 3, 9, 9)]
    with pytest.raises(DataError, match="2x3x9x9 for input `x`"):
        list(loaded(tmp_path, (info("n", 3, 8, 8),), "pictures").batches())


def test_batches_of_another_size() -> None:
    feeds = {"x": np.arange(3), "state": np.arange(6).reshape(2, 3), "sr": np.array(8)}
    batch = Batch(feeds, {}, 0, {"x": 0, "state": 1, "sr": None})
    assert batch.count == 3
    assert batch.sized(3) is feeds
    assert {name: array.tolist() for name, array in batch.sized(5).items()} == {
        "x": [0, 1, 2, 0, 1],
        "state": [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]],
        "sr": 8,
    }
    assert batch.sized(2)["x"].tolist() == [0, 1]
    assert Batch({"sr": np.array(8)}, {}, 0).count == 1


@pytest.mark.parametrize("stored", [np.int64(16000), np.array([16000]), np.array([[16000]])])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("samples", ["B", 1])
def test_a_single_value_in_a_file_goes_with_every_sample(
    tmp_path: Path, stored: Any, shape: tuple[int, ...], samples: Any
) -> None:
    """Whatever it is stored as, and whether the model takes one sample or many."""
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.savez(tmp_path / "d.npz", x=x, sr=stored)
    inputs = (TensorInfo("x", "float32", (samples, 4)), TensorInfo("sr", "int64", shape))
    spec = DataSpec.model_validate({"path": "d.npz", "batch": 2})
    found = list(open_dataset(spec, inputs, name="calibration", base=tmp_path).batches())
    np.testing.assert_array_equal(np.concatenate([batch.feeds["x"] for batch in found]), x)
    assert [batch.count for batch in found] == ([1] * 5 if samples == 1 else [2, 2, 1])
    assert all(batch.feeds["sr"].shape == shape and (batch.feeds["sr"] == 16000).all() for batch in found)


def test_a_single_value_fills_what_has_one_for_each_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 4), np.float32), flag=np.float32(7), name=np.array("all"))
    inputs = (
        TensorInfo("x", "float32", ("B", 4)),
        TensorInfo("flag", "float32", ("B", 1)),
        TensorInfo("name", "str", ("B",)),
    )
    (batch,) = open_dataset(DataSpec(path="d.npz"), inputs, name="calibration", base=tmp_path).batches()
    assert batch.feeds["flag"].tolist() == [[7], [7], [7]]
    assert batch.feeds["name"].tolist() == ["all"] * 3


def test_one_sample_is_not_one_value_for_others(tmp_path: Path) -> None:
    """An array with a single row is a sample too few, unless the input takes one value."""
    np.savez(tmp_path / "d.npz", input=np.ones((3, 4)), state=np.ones((1, 2, 3)), sr=np.array([16000]))
    with pytest.raises(DataError, match="different numbers of samples: `input` 3, `state` 1") as caught:
        open_dataset(DataSpec(path="d.npz"), SPEECH, name="calibration", base=tmp_path)
    assert "a value that all share is stored as a single one" in (caught.value.hint or "")
