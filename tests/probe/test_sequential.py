"""Walking through a model gives the same values as running it whole, also while its weights change."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lepton_cli import runtime
from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.probe import sequential
from lepton_cli.probe.sequential import SequentialPass, crossing, piece
from lepton_cli.runtime import Values
from tests.coupling.networks import Network
from tests.prune.context import whole


def two_inputs() -> ir.Model:
    """x -> Gemm, Relu, Gemm + skip, Gemm over (sum, second input); `Gemm_0_out` is also an output of the model."""
    n = Network()
    x, z = n.input("x", "batch", 6), n.input("z", "batch", 4)
    first = n.node("Gemm", x, n.weight(6, 8), n.weight(8))
    second = n.node("Gemm", n.node("Relu", first), n.weight(8, 8), n.weight(8))
    total = n.node("Add", second, first)
    third = n.node("Gemm", n.node("Concat", total, z, axis=1), n.weight(12, 5), n.weight(5))
    return n.model(n.node("Gemm", n.node("Relu", third), n.weight(5, 3), n.weight(3)), first)


def batches(*sizes: int) -> list[Values]:
    random = np.random.default_rng(0)
    widths = {"x": 6, "z": 4}
    return [
        {name: random.normal(size=(size, width)).astype(np.float32) for name, width in widths.items()} for size in sizes
    ]


def double(model: ir.Model, weight: str) -> None:
    tensor = model.graph.initializers[weight].const_value
    assert tensor is not None
    set_weight(model.graph.initializers[weight], tensor.numpy() * 2)


def assert_visits(
    steps: SequentialPass, model: ir.Model, data: Sequence[Values], node: str, needed: Sequence[str]
) -> None:
    found = list(steps.visit(model, node, needed))
    assert len(found) == len(data)
    for feeds, values in zip(data, found, strict=True):
        expected = whole(model, feeds, needed)
        assert set(values) == set(needed)
        for name in needed:
            np.testing.assert_allclose(values[name], expected[name], rtol=1e-5, atol=1e-5)


def stored(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npz"))


#: Position, the values needed there, and the weight of that layer, which changes after the visit.
STOPS = [
    ("Gemm_0", ["x"], "w0"),
    ("Gemm_2", ["Relu_1_out", "Gemm_0_out"], "w2"),
    ("Gemm_5", ["Concat_4_out"], "w4"),
    ("Gemm_7", ["Relu_6_out", "Gemm_5_out"], "w6"),
]


@pytest.fixture(autouse=True)
def _on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """But where a test says otherwise."""
    monkeypatch.setattr(sequential, "MEMORY", -1)


#: Of all batches 9 x 6 x 4 bytes cross at the first position, more behind it.
@pytest.mark.parametrize(("memory", "disk"), [(-1, 0), (-1, 400), (-1, 10**9), (300, 10**9), (10**9, 10**9)])
def test_every_visit_gives_what_a_whole_run_gives_while_weights_behind_change(
    memory: int, disk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequential, "DISK", disk)
    monkeypatch.setattr(sequential, "MEMORY", memory)
    model, data = two_inputs(), batches(4, 4, 1)
    steps = SequentialPass(lambda: data, len(data), tmp_path, threads=1)
    for node, needed, weight in STOPS:
        assert_visits(steps, model, data, node, needed)
        double(model, weight)
        double(model, "w6")
    assert len(stored(tmp_path)) == (3 if memory < 0 < disk else 0), "at the last position"


def test_a_position_can_be_visited_again_and_again(tmp_path: Path) -> None:
    model, data = two_inputs(), batches(3, 2)
    steps = SequentialPass(lambda: data, len(data), tmp_path, threads=1)
    for _ in range(3):
        assert_visits(steps, model, data, "Gemm_2", ["Relu_1_out"])
        double(model, "w2")
        assert_visits(steps, model, data, "Gemm_2", ["Gemm_2_out", "Gemm_0_out"])
        assert len(stored(tmp_path)) == 2


def test_data_is_read_once_where_the_disk_holds_what_crosses(tmp_path: Path) -> None:
    model, data, reads = two_inputs(), batches(3, 2), []

    def read() -> list[Values]:
        reads.append(1)
        return data

    steps = SequentialPass(read, len(data), tmp_path, threads=1)
    for node, needed, _ in STOPS:
        assert_visits(steps, model, data, node, needed)
    assert len(reads) == 1


def test_a_visit_that_is_not_taken_to_its_end_leaves_the_position(tmp_path: Path) -> None:
    model, data = two_inputs(), batches(3, 2, 2)
    steps = SequentialPass(lambda: data, len(data), tmp_path, threads=1)
    assert_visits(steps, model, data, "Gemm_2", ["Relu_1_out"])
    before = stored(tmp_path)
    assert len(list(itertools.islice(steps.visit(model, "Gemm_7", ["Relu_6_out"]), 2))) == 2
    double(model, "w2")
    assert set(before) <= set(stored(tmp_path))
    assert_visits(steps, model, data, "Gemm_5", ["Concat_4_out"])
    assert not set(before) & set(stored(tmp_path))


@pytest.mark.parametrize("spare", [0, -1])
def test_the_limit_is_that_of_all_batches_together(spare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At Gemm_2 the inputs of Relu and Add cross (8 numbers each a sample) and the second input (4)."""
    model, data = two_inputs(), batches(3, 3, 3)
    monkeypatch.setattr(sequential, "DISK", 3 * 3 * 4 * (8 + 8 + 4) + spare)
    steps = SequentialPass(lambda: data, len(data), tmp_path, threads=1)
    assert_visits(steps, model, data, "Gemm_2", ["Relu_1_out"])
    assert len(stored(tmp_path)) == (3 if spare == 0 else 0)


def test_beyond_the_limit_a_walk_goes_on_from_an_earlier_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = two_inputs(), batches(3, 2)
    steps = SequentialPass(lambda: data, len(data), tmp_path, threads=1)
    assert_visits(steps, model, data, "Gemm_2", ["Relu_1_out"])
    kept = stored(tmp_path)
    monkeypatch.setattr(sequential, "DISK", 0)
    double(model, "w2")
    for node, needed, _ in STOPS[2:]:
        assert_visits(steps, model, data, node, needed)
        assert stored(tmp_path) == kept


def test_at_most_three_gigabytes_are_kept() -> None:
    assert sequential.DISK == 3_000_000_000


def test_no_batches_leave_the_position(tmp_path: Path) -> None:
    model, data = two_inputs(), batches(2)
    waiting: list[Values] = []
    steps = SequentialPass(lambda: list(waiting), 1, tmp_path, threads=1)
    assert list(steps.visit(model, "Gemm_2", ["Relu_1_out"])) == []
    waiting += data
    assert_visits(steps, model, data, "Gemm_2", ["Relu_1_out"])


def test_what_is_kept_lies_in_the_working_folder_until_the_walk_is_closed(tmp_path: Path) -> None:
    model, data = two_inputs(), batches(2)
    steps = SequentialPass(lambda: data, 1, tmp_path, threads=1)
    other = SequentialPass(lambda: data, 1, tmp_path, threads=1)
    for one in (steps, other):
        assert_visits(one, model, data, "Gemm_2", ["Relu_1_out"])
    assert len(list(tmp_path.iterdir())) == len(stored(tmp_path)) == 2
    steps.close()
    steps.close()
    assert_visits(other, model, data, "Gemm_5", ["Concat_4_out"])
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_values_that_cross_a_position_are_those_made_before_and_read_from_it_on() -> None:
    model = two_inputs()
    expected = {
        "Gemm_0": {"x", "z"},
        "Relu_1": {"Gemm_0_out", "z"},
        "Gemm_2": {"Relu_1_out", "Gemm_0_out", "z"},
        "Concat_4": {"Add_3_out", "z"},
        "Gemm_5": {"Concat_4_out"},
        "Gemm_7": {"Relu_6_out"},
    }
    for node, names in expected.items():
        found = crossing(model, node)
        assert set(found) == names
        assert len(found) == len(names)


def test_a_piece_has_what_leads_from_the_kept_values_to_the_asked_ones_and_no_more() -> None:
    model, (feeds,) = two_inputs(), batches(3)
    values = whole(model, feeds, ["Relu_1_out", "Gemm_0_out", "Add_3_out"])
    kept = {name: values[name] for name in ("Relu_1_out", "Gemm_0_out", "z")}
    part = piece(model, kept, ["Add_3_out"])
    assert [node.name for node in part.graph] == ["Gemm_2", "Add_3"]
    assert [value.name for value in part.graph.outputs] == ["Add_3_out"]
    assert len(part.graph.inputs) == 2
    assert set(part.graph.initializers) == {"w2", "w3"}
    assert next(node.name for node in model.graph) == "Gemm_0"
    session = runtime.Session(io.to_bytes(part), threads=1)
    given = {info.name: kept[info.name.removesuffix("__kept")] for info in session.inputs}
    np.testing.assert_allclose(session.run(given)["Add_3_out"], values["Add_3_out"], rtol=1e-5, atol=1e-5)


def branching() -> ir.Model:
    """An If whose branches read values of the outer graph, one of them made long before."""
    n = Network()
    x = n.input("x", "batch", 4)
    first = n.node("Relu", n.node("Gemm", x, n.weight(4, 4), n.weight(4)))
    second = n.node("Gemm", first, n.weight(4, 4), n.weight(4))
    positive = n.node("Greater", n.node("ReduceSum", second, keepdims=0), n.weight(values=np.array(0, np.float32)))
    branches = {}
    for name, op, inputs in (("then_branch", "Add", [first, second]), ("else_branch", "Sub", [second, first])):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        node = helper.make_node(op, inputs, [name], name=f"inner_{name}")
        branches[name] = helper.make_graph([node], name, [], [out])
    chosen = n.node("If", positive, **branches)
    return n.model(n.node("Gemm", chosen, n.weight(4, 2), n.weight(2)))


@pytest.mark.parametrize("disk", [0, 3_000_000_000])
def test_what_subgraphs_read_of_the_outer_graph_crosses_too(
    disk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequential, "DISK", disk)
    model = branching()
    assert set(crossing(model, "Gemm_2")) == {"Relu_1_out"}
    assert set(crossing(model, "If_5")) == {"Relu_1_out", "Gemm_2_out", "Greater_4_out"}
    random = np.random.default_rng(3)
    data = [{"x": random.normal(shift, 1, (3, 4)).astype(np.float32)} for shift in (-3, 3)]
    steps = SequentialPass(lambda: data, len(data), tmp_path, threads=1)
    for node, needed in (("Gemm_2", ["Relu_1_out"]), ("If_5", ["Gemm_2_out"]), ("Gemm_6", ["If_5_out"])):
        assert_visits(steps, model, data, node, needed)
        if node == "Gemm_2":
            double(model, "w2")


def test_weights_that_a_caller_may_replace_are_no_data(tmp_path: Path) -> None:
    """Such a weight is an input of the model as well, with its numbers as the default."""
    proto = ir.to_proto(two_inputs())
    proto.graph.input.append(helper.make_tensor_value_info("w6", TensorProto.FLOAT, [5, 3]))
    model, data = ir.from_proto(proto), batches(3, 2)
    assert set(crossing(model, "Gemm_5")) == {"Concat_4_out"}
    steps = SequentialPass(lambda: data, len(data), tmp_path, threads=1)
    for node, needed, _ in STOPS:
        assert_visits(steps, model, data, node, needed)
