"""Rewrites that are not the same function: caught before anything is rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import StepError
from lepton_cli.graph.edit import Editor, array_of
from lepton_cli.model import io
from lepton_cli.probe import rewrites
from lepton_cli.probe.rewrites import Rewrite, held
from lepton_cli.quantize import prepare
from lepton_cli.runtime import Session, Values
from tests.quantize.builders import Graph, context, mlp, ops, rows, sqnr


def scaled(factor: float) -> Rewrite:
    """A rewrite that multiplies the first weight of two dimensions: the same function for the factor 1 only."""

    def apply(model: ir.Model) -> None:
        node = next(node for node in model.graph if node.op_type in ("Gemm", "MatMul"))
        weight = array_of(node)
        assert weight is not None
        Editor(model).give(node, 1, weight * np.float32(factor), "scaled")

    return Rewrite(f"times {factor}", apply)


def test_rewrites_that_compute_the_same_are_all_taken(tmp_path: Path) -> None:
    model = mlp()
    before = io.to_bytes(model)
    made, warnings = held(model, [Rewrite("Gemm", prepare.matmul_to_gemm), scaled(1.0)], context(rows(), tmp_path))
    assert (ops(made), warnings) == (["Gemm", "Relu", "Gemm", "Relu", "Gemm"], ())
    assert "scaled" in made.graph.initializers
    assert io.to_bytes(model) == before


@pytest.mark.parametrize("factor", [1.001, 2.0])
def test_the_one_that_does_not_is_left_out_and_named(factor: float, tmp_path: Path) -> None:
    """A factor of 1.001 is an error at 60 dB, where equal functions in float32 agree to 80 dB and more."""
    wrong = [Rewrite("Gemm", prepare.matmul_to_gemm), scaled(factor), scaled(1.0)]
    made, warnings = held(mlp(), wrong, context(rows(), tmp_path))
    assert ops(made) == ["Gemm", "Relu", "Gemm", "Relu", "Gemm"]
    assert sqnr(mlp(), made, rows()) > 100
    (warning,) = warnings
    assert warning.startswith(f"left out, as it does not compute the same here: times {factor} (output `t5` at ")


def test_one_that_makes_a_broken_graph(tmp_path: Path) -> None:
    def breaks(model: ir.Model) -> None:
        Editor(model).give(next(iter(model.graph)), 1, np.zeros((7, 7), np.float32), "wrong")

    made, (warning,) = held(mlp(), [Rewrite("a break", breaks)], context(rows(), tmp_path))
    assert ops(made) == ops(mlp())
    assert "onnxruntime cannot run it" in warning


def test_without_the_one_that_is_needed_the_step_ends(tmp_path: Path) -> None:
    wrong = Rewrite("half", scaled(0.5).apply, needed=True, hint="do without")
    with pytest.raises(StepError, match="half does not compute the same: output `t5` at 6 dB") as caught:
        held(mlp(), [wrong], context(rows(), tmp_path))
    assert caught.value.hint == "do without"


@pytest.mark.parametrize("kind", ["dry", "draft"])
def test_a_plan_and_a_draft_run_nothing(kind: str, tmp_path: Path) -> None:
    made, warnings = held(mlp(), [scaled(2.0)], context(None, tmp_path, check=None, **{kind: True}))
    assert "scaled" in made.graph.initializers
    assert warnings == ()


def test_outputs_without_floats_and_of_other_sizes(tmp_path: Path) -> None:
    graph = Graph()
    product = graph.op("MatMul", graph.take("x", ["b", 64]), graph.constant(np.eye(64, dtype=np.float32)))
    model = graph.model(product)
    model.graph.outputs.clear()
    for op in ("ArgMax", "NonZero"):
        node = ir.node(op, [next(iter(model.graph)).outputs[0]], name=op)
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    assert held(model, [scaled(1.0)], context(rows(), tmp_path))[1] == ()
    (warning,) = held(model, [scaled(-1.0)], context(rows(), tmp_path))[1]
    assert "times -1.0" in warning
    (warning,) = held(model, [scaled(0.0)], context(rows(), tmp_path))[1]
    assert "times 0.0" in warning


def test_a_model_that_is_unsteady_itself(tmp_path: Path) -> None:
    """(x + 1e6) - 1e6 in float32 is near x to 25 dB only, in whichever way it is computed: no rewrite is at fault."""
    graph = Graph()
    x = graph.take("x", ["b", 64], TensorProto.FLOAT)
    product = graph.op("MatMul", x, graph.constant(np.eye(64, dtype=np.float32)))
    huge = graph.constant(np.full((1,), 3e6, np.float32))
    model = graph.model(graph.op("Sub", graph.op("Add", product, huge), huge))

    def by_half(model: ir.Model) -> None:
        scaled(1.0000001).apply(model)

    assert held(model, [Rewrite("rounding", by_half)], context(rows(), tmp_path))[1] == ()


def combined(op: str, start: Any, batch: int | str = "b") -> ir.Model:
    """`op(x, c)` of `x` [batch, n] and a constant."""
    graph = Graph()
    return graph.model(graph.op(op, graph.take("x", [batch, "n"]), graph.constant(np.float32(start))))


def constant(value: Any) -> Rewrite:
    """The constant is another one."""

    def apply(model: ir.Model) -> None:
        Editor(model).give(next(iter(model.graph)), 1, np.float32(value), "other")

    return Rewrite("another constant", apply)


def refused(model: ir.Model, rewrite: Rewrite, x: Any, folder: Path) -> str:
    """What is said of a rewrite, "" where it is taken."""
    warnings = held(model, [rewrite], context(Arrays({"x": np.float32(x)}), folder))[1]
    return "".join(warning.split("(", 1)[1].removesuffix(")") for warning in warnings)


def test_eighty_decibels_are_the_same_function(tmp_path: Path) -> None:
    """10000 + 1 is off by 80 dB; all numbers are exact in float32."""
    assert refused(combined("Add", 0), constant(1), [[10_000, 10_000, 0]], tmp_path)
    assert not refused(combined("Add", [0, 0]), constant([1, 0]), [[10_000, 0]], tmp_path)
    assert refused(combined("Add", [0, 0]), constant([1, 0]), [[9_999, 0]], tmp_path) == "output `t0` at 80 dB"
    assert not refused(combined("Add", [0, 0]), constant([-1, 0]), [[10_000, 0]], tmp_path)
    assert refused(combined("Add", 0), constant(1), [[1_000]], tmp_path) == "output `t0` at 60 dB"


class Unsteady(Session):
    """Gives results that are one more when it may not optimise."""

    def __init__(self, *arguments: Any, optimise: bool = True, **options: Any) -> None:
        super().__init__(*arguments, optimise=optimise, **options)
        self.more = 0 if optimise else 1

    def run(self, *arguments: Any, **options: Any) -> Values:
        return {name: array + np.float32(self.more) for name, array in super().run(*arguments, **options).items()}


def test_a_rewrite_may_differ_by_six_decibels_more_than_the_model_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1000 + 1 is off by 60 dB; 1000 + 2 by 53.98, 1000 + 1.99 by 54.02."""
    monkeypatch.setattr(rewrites, "Session", Unsteady)
    assert not refused(combined("Add", 0), constant(1.99), [[1_000]], tmp_path)
    assert refused(combined("Add", 0), constant(2), [[1_000]], tmp_path) == "output `t0` at 54 dB"


@pytest.mark.parametrize(("batch", "row", "seen"), [(1, 7, True), (1, 8, False), (3, 8, True), (3, 9, False)])
def test_batches_are_compared_until_there_are_eight_samples(batch: int, row: int, seen: bool, tmp_path: Path) -> None:
    """max(x, c) is another function only where x is negative: in one row."""
    x = np.ones((12, 2), np.float32)
    x[row] = -1
    assert bool(refused(combined("Max", -9, batch), constant(0), x, tmp_path)) is seen


def test_nothing_is_run_without_a_rewrite(tmp_path: Path) -> None:
    model = mlp()
    assert held(model, [], context(None, tmp_path, check=None)) == (model, ())


def test_a_rewrite_may_return_another_model(tmp_path: Path) -> None:
    other = combined("Add", 1)
    made, warnings = held(
        combined("Sub", -1),
        [Rewrite("a sum", lambda _: other)],
        context(Arrays({"x": np.ones((2, 2), np.float32)}), tmp_path),
    )
    assert (ops(made), warnings) == (["Add"], ())


def test_every_output_counts(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 2])
    first, second = graph.op("Add", x, graph.constant(np.float32(0))), graph.op("Neg", x)
    for order in ((first, second), (second, first)):
        assert refused(graph.model(*order), constant(1), [[1, 0]], tmp_path) == "output `t0` at -3 dB"


def test_decisions_may_turn_in_one_of_a_hundred(tmp_path: Path) -> None:
    model = combined("Greater", 0.5)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    x = np.zeros((1, 100), np.float32)
    x[0, :50] = 2
    x[0, 60] = 1
    assert not refused(model, constant(1.5), x, tmp_path)
    x[0, 70] = 1
    assert refused(model, constant(1.5), x, tmp_path) == "output `t0`"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ([np.nan, np.inf, 0, 0], [np.nan, np.inf, 0, 1], True),
        ([np.nan, np.inf, 0, 0], [0, np.inf, 0, 0], False),
        ([np.nan, np.inf, 0, 0], [np.nan, -np.inf, 0, 0], False),
        ([np.nan, np.inf, 0, 0], [np.nan, np.nan, 0, 0], False),
        ([np.nan, np.inf, 0, 0], [np.nan, np.inf, np.nan, 0], False),
        ([np.nan, np.inf, 0, 0], [np.nan, np.inf, 0, np.inf], False),
        ([np.nan] * 4, [np.nan] * 4, True),
    ],
)
def test_numbers_that_are_none_have_to_stay(old: list[float], new: list[float], same: bool, tmp_path: Path) -> None:
    assert refused(combined("Add", old), constant(new), [[0, 0, 0, 1e4]], tmp_path) == ("" if same else "output `t0`")


def behind(*nodes: tuple[str, dict[str, Any]]) -> Rewrite:
    """Further nodes that make what is returned, under the old name or another."""

    def apply(model: ir.Model) -> None:
        value = model.graph.outputs[0]
        name, value.name = value.name, "inner"
        for op, attributes in nodes:
            node = ir.node(op, [value], attributes, name=op)
            model.graph.append(node)
            (value,) = node.outputs
        value.name = name
        model.graph.outputs[0] = value

    return Rewrite("nodes behind", apply)


def test_shape_type_and_name_of_outputs_are_part_of_the_function(tmp_path: Path) -> None:
    x = [[0, 1], [2, 3]]
    assert not refused(combined("Add", 0), behind(("Identity", {})), x, tmp_path)
    for node in (("Cast", {"to": 11}), ("Flatten", {"axis": 0})):
        assert refused(combined("Add", 0), behind(node), x, tmp_path) == "output `t0`"

    def rename(model: ir.Model) -> None:
        model.graph.outputs[0].name = "z"

    assert refused(combined("Add", 0), Rewrite("another name", rename), x, tmp_path) == "output `t0`"
