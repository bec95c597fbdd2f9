"""Where what is found moves with the least change, what is searched is compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.probe import activations
from lepton_cli.probe.comparable import comparable, searched
from lepton_cli.probe.distances import Reference
from lepton_cli.runtime import Session
from tests.corpus import MEMBERS
from tests.hostile.models import parse
from tests.quantize.builders import context, mlp


def _read(text: str) -> ir.Model:
    return io.read(parse(text).SerializeToString()).model


def _detector() -> ir.Model:
    return io.read(MEMBERS["detector with nms"].make().SerializeToString()).model


def test_a_model_without_such_outputs_is_itself() -> None:
    model = mlp()
    assert comparable(model) is model


def test_boxes_and_scores_stand_for_what_suppression_leaves() -> None:
    """The values are those that plain onnxruntime computes for all boxes, and nothing else is an output."""
    model = _detector()
    feed = MEMBERS["detector with nms"].feed(np.random.default_rng(0))
    found = Session(io.to_bytes(comparable(model)), threads=1).run(feed)
    readers = {node.name: node for node in model.graph}
    wanted = io.clone(model)
    values = {value.name: value for node in wanted.graph for value in node.outputs}
    place = {"boxes": 0, "scores": 1, "data": 0}
    read = {name: readers[name.rpartition(".")[0]].inputs[place[name.rpartition(".")[2]]] for name in found}
    sources = {name: value.name for name, value in read.items() if value is not None}
    wanted.graph.outputs.clear()
    wanted.graph.outputs.extend(values[name] for name in dict.fromkeys(sources.values()))
    plain = Session(io.to_bytes(wanted), threads=1).run(feed)
    for name, array in found.items():
        np.testing.assert_array_equal(array, plain[sources[name] or ""])
    assert len(searched(model).searched) == len(plain) == 3  # type: ignore[union-attr]
    suppression = next(node for node in model.graph if node.op_type == "NonMaxSuppression")
    assert f"{suppression.name}.scores" in found
    assert {array.shape for array in found.values()} == {(1, 64, 4), (1, 3, 64), (1, 64)}
    assert len(model.graph.outputs) == 3


def test_other_outputs_stay() -> None:
    model = _read(
        """g (float[n] x) => (float[n] kept, int64[1, m] found) {
            kept = Neg (x)
            h = Relu (x)
            found = NonZero (h)
        }"""
    )
    made = comparable(model)
    node = next(node for node in model.graph if node.op_type == "NonZero")
    assert [value.name for value in made.graph.outputs] == ["kept", f"{node.name}.X"]
    x = np.array([-1, 0, 2], np.float32)
    found = Session(io.to_bytes(made), threads=1).run({"x": x})
    np.testing.assert_array_equal(found[f"{node.name}.X"], [0, 0, 2])


def test_a_mask_is_followed_back_to_the_numbers_it_compares() -> None:
    model = _read(
        """g (float[n] x, float[n] z) => (float[m] y) {
            h = Relu (x)
            c = Greater (h, z)
            y = Compress (x, c)
        }"""
    )
    node = next(node for node in model.graph if node.op_type == "Greater")
    assert [value.name for value in comparable(model).graph.outputs] == [f"{node.name}.A"]


def test_a_search_in_the_inputs_themselves_leaves_nothing_to_compare() -> None:
    model = _read("g (float[n] x) => (int64[1, m] y) { y = NonZero (x) }")
    assert comparable(model) is model


def _moved(model: ir.Model, by: float) -> ir.Model:
    """The detector with the last layer of its scores moved."""
    copy = io.clone(model)
    bias = [node.inputs[2] for node in copy.graph if node.op_type == "Conv"][-1]
    assert bias is not None
    set_weight(bias, bias.const_value.numpy() + np.float32(by))  # type: ignore[union-attr]
    return copy


def test_another_number_of_boxes_is_no_loss_where_all_scores_are_close(tmp_path: Path) -> None:
    """Scores that move by a little leave other boxes, and the distance is that of the scores."""
    model = _detector()
    feed = MEMBERS["detector with nms"].feed(np.random.default_rng(0))
    moved = _moved(model, 0.1)
    left = [len(Session(io.to_bytes(m), threads=1).run(feed)["labels"]) for m in (model, moved)]
    assert left[0] != left[1]
    data = Arrays({"images": feed["images"]})
    found = Reference(model, context(data, tmp_path)).sqnr(moved)
    before, after = (Session(io.to_bytes(comparable(m)), threads=1).run(feed) for m in (model, moved))
    pairs = [(a.astype(np.float64), after[name]) for name, a in before.items()]
    wanted = [10 * np.log10(np.square(a).sum() / np.square(a - b).sum()) for a, b in pairs if not np.array_equal(a, b)]
    assert found == pytest.approx(min(wanted), abs=0.01)
    assert found > 20


def test_runs_of_any_number_of_boxes_are_joined(tmp_path: Path) -> None:
    """One row a picture, whatever suppression leaves of it."""
    feeds = [MEMBERS["detector with nms"].feed(np.random.default_rng(seed)) for seed in range(3)]
    found = activations.outputs(_detector(), feeds, tmp_path, 1)
    assert {array.shape for array in found.values()} == {(3, 64, 4), (3, 3, 64), (3, 64)}


def test_another_model_gives_what_is_asked_for_or_nothing() -> None:
    beside = searched(_detector())
    assert beside is not None
    assert beside.only(["of another model"]) is None
    made = beside.only(beside.searched[1:])
    assert made is not None
    assert [value.name for value in made.graph.outputs] == ["boxes", "scores", "labels", *beside.searched[1:]]
