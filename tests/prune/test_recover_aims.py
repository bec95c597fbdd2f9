"""What a layer behind a cut is fitted to, and which layers are: against graphs that are drawn by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.coupling.links import Coupling
from lepton_cli.model import io
from lepton_cli.probe import linear
from lepton_cli.probe.moments import Aim
from lepton_cli.prune import recover
from tests.coupling.networks import Network, analysed
from tests.prune.recovered import Case, perceptron, rows

Added = Callable[[Network, str, str], list[str]]


def aim_of(make: Added, *, conv: bool = False) -> tuple[Aim, Coupling]:
    """Aim of the layer `Gemm_2` (or `Conv_2`), whose output `make` puts to use; the stem's output is at hand too."""
    n = Network()
    if conv:
        stem = n.node("Tanh", n.conv(n.input("x", "batch", 3, 5, 5), 3, 4))
        made = n.conv(stem, 4, 4)
    else:
        stem = n.node("Tanh", n.node("Gemm", n.input("x", "batch", 4), n.weight(4, 4), n.weight(4)))
        made = n.node("Gemm", stem, n.weight(4, 4), n.weight(4))
    prepared, coupling = analysed(n.model(*make(n, stem, made)))
    layer = linear.find(prepared)["Conv_2" if conv else "Gemm_2"]
    removed = coupling.labels[(layer.output, 1)][[1]]
    return recover.aim(prepared, layer, coupling, removed), coupling


AIMS: dict[str, tuple[Added, str, str | None, bool]] = {
    "its output": (lambda n, s, y: [n.node("Neg", y)], "Gemm_2_out", None, False),
    "a relu": (lambda n, s, y: [n.node("Relu", y)], "Gemm_2_out", None, True),
    "two relus": (lambda n, s, y: [n.node("Relu", y), n.node("Relu", y)], "Gemm_2_out", None, True),
    "a relu and more": (lambda n, s, y: [n.node("Relu", y), n.node("Neg", y)], "Gemm_2_out", None, False),
    "a relu and the caller": (lambda n, s, y: [n.node("Relu", y), y], "Gemm_2_out", None, False),
    "the caller": (lambda n, s, y: [y], "Gemm_2_out", None, False),
    "a sum": (lambda n, s, y: [n.node("Neg", n.node("Add", y, s))], "Add_3_out", "Tanh_1_out", False),
    "a sum, second": (lambda n, s, y: [n.node("Neg", n.node("Add", s, y))], "Add_3_out", "Tanh_1_out", False),
    "a sum and a relu": (lambda n, s, y: [n.node("Relu", n.node("Add", y, s))], "Add_3_out", "Tanh_1_out", True),
    "the caller's sum": (lambda n, s, y: [n.node("Add", y, s)], "Add_3_out", "Tanh_1_out", False),
    "a product": (lambda n, s, y: [n.node("Neg", n.node("Mul", y, s))], "Gemm_2_out", None, False),
    "a constant": (lambda n, s, y: [n.node("Neg", n.node("Add", y, n.weight(2, 4)))], "Gemm_2_out", None, False),
    "the input": (lambda n, s, y: [n.node("Neg", n.node("Add", y, "x"))], "Gemm_2_out", None, False),
    "itself": (lambda n, s, y: [n.node("Neg", n.node("Add", y, y))], "Gemm_2_out", None, False),
    "a row": (
        lambda n, s, y: [n.node("Neg", n.node("Add", y, n.node("ReduceSum", s, n.literal(1))))],
        "Gemm_2_out",
        None,
        False,
    ),
    "a sum and more": (
        lambda n, s, y: [n.node("Neg", n.node("Add", y, s)), n.node("Neg", y)],
        "Gemm_2_out",
        None,
        False,
    ),
    "a sum and the caller": (lambda n, s, y: [n.node("Neg", n.node("Add", y, s)), y], "Gemm_2_out", None, False),
}


@pytest.mark.parametrize("name", AIMS)
def test_a_layer_aims_at_the_sum_that_it_ends_or_at_its_own_output(name: str) -> None:
    make, value, shortcut, rectified = AIMS[name]
    found, _ = aim_of(make)
    assert (found.value, found.shortcut, found.rectified) == (value, shortcut, rectified)
    assert found.keep is not None
    np.testing.assert_array_equal(found.keep, [True, False, True, True])


def test_a_convolution_aims_along_its_channel_axis() -> None:
    for make in (AIMS["its output"][0], AIMS["a sum"][0]):
        found, _ = aim_of(make, conv=True)
        assert found.keep is not None
        np.testing.assert_array_equal(found.keep, [True, False, True, True])


def test_a_target_that_keeps_every_channel_has_no_mask() -> None:
    prepared, coupling = analysed(perceptron())
    removed = coupling.labels[("Gemm_0_out", 1)][[0]]
    assert recover.aim(prepared, linear.find(prepared)["Gemm_2"], coupling, removed).keep is None


def dirty(case: Case, model: ir.Model | None = None, **options: Any) -> list[str]:
    return [layer.node for layer in recover.after_the_cut(model or case.model, case.coupling, case.removed, **options)]


def parallel() -> ir.Model:
    """Two chains on one input; the first (Gemm_0 to Gemm_4) loses channels, the second (Gemm_5, Gemm_7) does not."""
    n = Network()
    x = n.input("x", "batch", 6)
    first = n.node("Gemm", n.node("Tanh", n.node("Gemm", x, n.weight(6, 8), n.weight(8))), n.weight(8, 4), n.weight(4))
    first = n.node("Gemm", n.node("Tanh", first), n.weight(4, 3), n.weight(3))
    second = n.node("Gemm", n.node("Tanh", n.node("Gemm", x, n.weight(6, 5))), n.weight(5, 3), n.weight(3))
    return n.model(n.node("Gemm", n.node("Add", first, second), n.weight(3, 2)))


def test_layers_behind_the_cut_are_those_that_see_other_inputs(tmp_path: Path) -> None:
    case = Case(parallel(), [("Gemm_0_out", [1, 4])], rows(4), tmp_path)
    assert dirty(case) == ["Gemm_2", "Gemm_4", "Gemm_9"]
    assert dirty(case, reference=case.reference) == ["Gemm_2", "Gemm_4", "Gemm_9"]
    untouched = Case(parallel(), [], rows(4), tmp_path)
    assert dirty(untouched) == []
    late = Case(parallel(), [("Gemm_5_out", [0])], rows(4), tmp_path)
    assert dirty(late) == ["Gemm_7", "Gemm_9"]


def test_layers_behind_a_dropped_branch_see_other_inputs(tmp_path: Path) -> None:
    case = Case(parallel(), [], rows(4), tmp_path)
    model = io.clone(case.model)
    nodes = {node.name: node for node in model.graph}
    ir.convenience.replace_all_uses_with(nodes["Add_8"].outputs[0], nodes["Gemm_4"].outputs[0])
    assert dirty(case, model) == []
    assert dirty(case, model, reference=case.reference) == ["Gemm_9"]
    stand_in = {"Gemm_4_out"}
    assert dirty(case, model, reference=case.reference, stand_ins=stand_in) == ["Gemm_4", "Gemm_9"]
    assert dirty(case, model, stand_ins=stand_in) == ["Gemm_4", "Gemm_9"]


def test_weights_that_are_new_and_inputs_left_empty_make_no_other_input(tmp_path: Path) -> None:
    n = Network()
    clipped = n.node("Clip", n.input("x", "batch", 3), "", n.weight(values=np.array(2, np.float32)))
    model = n.model(n.node("Gemm", n.node("Tanh", n.node("Gemm", clipped, n.weight(3, 3))), n.weight(3, 2)))
    case = Case(model, [], rows(4, 3), tmp_path)
    changed = io.clone(case.model)
    first = linear.find(changed)["Gemm_1"]
    linear.store(changed, first, linear.matrix_of(changed, first), np.ones(3))
    assert dirty(case, changed, reference=case.reference) == []
