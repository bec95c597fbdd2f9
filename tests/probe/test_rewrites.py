"""Rewrites that are not the same function: planted here, and caught before anything is rounded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from lepton_cli.coupling import shortcuts
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import StepError
from lepton_cli.graph import batch_norm
from lepton_cli.graph.edit import Editor, array_of
from lepton_cli.model import io
from lepton_cli.probe import rewrites
from lepton_cli.probe.rewrites import Rewrite, held, kept, strayed
from lepton_cli.quantize import blocks, cpu, dynamic, prepare, static
from lepton_cli.quantize.spec import QuantizeWeights
from lepton_cli.runtime import Session, Values
from lepton_cli.step import Decision
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, images, mlp, ops, rows, sqnr


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


def test_a_plan_runs_nothing(tmp_path: Path) -> None:
    _, warnings = held(mlp(), [scaled(2.0)], context(None, tmp_path, check=None, dry=True))
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


def normalised() -> ir.Model:
    """Conv, BatchNormalization, a shortcut that thins out and pads, LayerNormalization of a sum, Gemm and MatMul."""
    graph = Graph()
    draw = graph.random.normal
    x = graph.conv(graph.take("x", ["b", 3, 8, 8]), 3, 16, relu=False)
    parts = [graph.constant(abs(draw(1, 0.2, 16)).astype(np.float32)) for _ in range(4)]
    x = graph.op("Relu", graph.op("BatchNormalization", x, *parts))
    flat = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    both = graph.op("Add", graph.linear(flat, 16, 32), graph.linear(flat, 16, 32, gemm=False))
    scale = [graph.constant(np.ones(32, np.float32)), graph.constant(np.zeros(32, np.float32))]
    norm = graph.op("LayerNormalization", both, *scale)
    return graph.model(graph.linear(norm, 32, 32))


def doubled(model: ir.Model) -> None:
    """Plants an error: the first weight is twice what it was."""
    for node in model.graph:
        weight = array_of(node)
        if node.op_type in ("Conv", "Gemm", "MatMul") and weight is not None:
            Editor(model).give(node, 1, 2 * weight, "planted")
            return


PLANTS = [
    ("quantize.static", static, "matmul_to_gemm"),
    ("quantize.static", static, "unshare"),
    ("quantize.static", shortcuts, "as_convolutions"),
    ("quantize.static", cpu, "spare_slow_sums"),
    ("quantize.static", batch_norm, "fold_batch_norm"),
    ("quantize.dynamic", dynamic, "gemm_to_matmul"),
    ("quantize.dynamic", cpu, "spare_slow_sums"),
    ("quantize.dynamic", batch_norm, "fold_batch_norm"),
]


@pytest.mark.parametrize(("step", "module", "name"), PLANTS)
def test_a_wrong_rewrite_never_leaves_the_step(
    step: str, module: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(module, name)

    def wrong(model: ir.Model, *others: object) -> object:
        found = real(model, *others)
        doubled(model)
        return found

    monkeypatch.setattr(module, name, wrong)
    data = images(32, size=8)
    guard = {"speed_guard": False} if step == "quantize.static" else {}
    options = STEPS[step].options.model_validate({"step": step, "target": "x86-vnni", **guard})
    run = partial(STEPS[step].apply, normalised(), options, context(data, tmp_path, batch=8))
    if name == "gemm_to_matmul":
        with pytest.raises(StepError, match="Gemm as MatMul and Add does not compute the same"):
            run()
        return
    outcome = run()
    assert sqnr(normalised(), outcome.model, data) > 35, "a doubled weight leaves less than 10 dB"
    assert any("does not compute the same" in warning for warning in outcome.warnings)


@pytest.mark.parametrize("plant", ["half", "no bias", "turned"])
def test_a_node_that_is_written_wrong_goes_back_to_float(
    plant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of int8 itself: what it loses besides rounding is seen at the node, whatever follows it."""
    real = dynamic._written

    def wrong(model: ir.Model, nodes: set[str], *others: Any) -> ir.Model:
        made = real(model, nodes, *others)
        if "MatMul_2" in nodes:
            result = next(v for node in made.graph for v in node.outputs if v.name == "t2")
            readers = list(result.uses())
            factor = ir.node("Mul", [result, Editor(made).constant("f", np.float32(0.5))], name="plant")
            if plant == "turned":
                factor = ir.node("Neg", [result], name="plant")
            if plant == "no bias":
                factor = ir.node("Sub", [result, Editor(made).constant("f", np.float32(5))], name="plant")
            factor.outputs[0].name = "t2"
            result.name = "t2_right"
            made.graph.append(factor)
            for use in readers:
                use.node.replace_input_with(use.idx, factor.outputs[0])
            made.graph.sort()
        return made

    options = STEPS["quantize.dynamic"].options.model_validate({"step": "quantize.dynamic", "target": "x86-vnni"})
    monkeypatch.setattr(dynamic, "_written", wrong)
    outcome = STEPS["quantize.dynamic"].apply(mlp(), options, context(rows(), tmp_path))
    told = {one.node: one for one in outcome.decisions}
    assert told["MatMul_2"].action == "kept"
    assert told["MatMul_2"].reason.startswith("stays float: in 8 or fewer bits its result is")
    assert told["Gemm_0"].action == "quantized"
    assert outcome.changed == 1
    assert sqnr(mlp(), outcome.model, rows()) > 30


def test_blocks_that_are_written_wrong_go_back_to_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks with scales of half their size, in one of two layers."""
    real = blocks._by_rows

    def wrong(tensor: ir.TensorProtocol, size: int, options: QuantizeWeights, empty: bool) -> Any:
        made = real(tensor, size, options, empty)
        made.scales /= 2
        return made

    model = mlp()
    options = STEPS["quantize.weights"].options.model_validate({"step": "quantize.weights", "bits": 8})
    monkeypatch.setattr(blocks, "_by_rows", wrong)
    outcome = STEPS["quantize.weights"].apply(model, options, context(rows(), tmp_path))
    told = {one.node: one for one in outcome.decisions}
    assert (told["Gemm_0"].action, told["MatMul_2"].action) == ("kept", "quantized")
    assert "its result is 0.5" in told["Gemm_0"].reason
    assert ops(outcome.model).count("MatMulNBits") == 1
    assert sqnr(model, outcome.model, rows()) > 30


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


TURN = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]], np.float32)
EYE = np.eye(4, dtype=np.float32)


def chain(first: Any = EYE, second: Any = EYE, names: tuple[str, str] = ("m", "y")) -> ir.Model:
    """Two products with a Neg between, and one that nobody asks for."""
    graph = Graph()
    m = graph.op("MatMul", graph.take("x", ["b", 4]), graph.constant(np.float32(first)))
    y = graph.op("MatMul", graph.op("Neg", m), graph.constant(np.float32(second)))
    model = graph.model(y, graph.op("MatMul", m, graph.constant(EYE)))
    for value, name in zip((model.graph[0].outputs[0], model.graph[2].outputs[0]), names, strict=True):
        value.name = name
    return model


def seen(before: ir.Model, after: ir.Model, folder: Path, *names: str) -> dict[str, str]:
    x = np.float32([[1, 0, -2, 3], [0, 5, 1, 0]])
    return strayed(before, after, names or ("MatMul_0", "MatMul_2"), context(Arrays({"x": x}), folder, batch=2))


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (EYE, ""),
        (1.19 * EYE, ""),
        (0.81 * EYE, ""),
        (1.21 * EYE, "1.21 times what it was, at 14 dB"),
        (0.79 * EYE, "0.79 times what it was, at 14 dB"),
        (-EYE, "-1.00 times what it was, at -6 dB"),
        (EYE + 0.5 * TURN, ""),
        (EYE + 0.502 * TURN, "1.00 times what it was, at 6 dB"),
        (0 * EYE, "0.00 times what it was, at 0 dB"),
    ],
)
def test_rounding_leaves_size_and_direction(weight: np.ndarray, said: str, tmp_path: Path) -> None:
    """A turn by 90 degrees is orthogonal to what it turns: half of it is an error at 6.02 dB."""
    for node, after in (("MatMul_0", chain(first=weight)), ("MatMul_2", chain(second=weight))):
        told = f"stays float: in 8 or fewer bits its result is {said}"
        assert seen(chain(), after, tmp_path) == ({node: told} if said else {})


def test_errors_of_nodes_do_not_add_up(tmp_path: Path) -> None:
    assert seen(chain(), chain(1.15 * EYE, 1.15 * EYE), tmp_path) == {}
    assert seen(chain(), chain(2 * EYE, EYE), tmp_path).keys() == {"MatMul_0"}


def test_only_the_nodes_named_are_looked_at_and_only_where_their_result_is_left(tmp_path: Path) -> None:
    after = chain(2 * EYE, 2 * EYE)
    assert seen(chain(), after, tmp_path, "MatMul_2").keys() == {"MatMul_2"}
    assert seen(chain(), after, tmp_path, "Neg_1", "nobody") == {}
    assert seen(chain(), after, tmp_path, "nobody") == {}
    assert seen(chain(names=("m", "y")), chain(2 * EYE, 2 * EYE, names=("gone", "y")), tmp_path).keys() == {"MatMul_2"}


def test_a_result_of_another_shape_or_of_nothing(tmp_path: Path) -> None:
    wide = chain(second=np.ones((4, 6)))
    assert seen(chain(), wide, tmp_path) == {"MatMul_2": "its result has the shape [2, 6], not [2, 4]"}
    assert seen(chain(second=0 * EYE), chain(), tmp_path) == {}
    assert seen(chain(second=0 * EYE), chain(second=0 * EYE), tmp_path) == {}


def test_wrong_nodes_stay_as_they_are() -> None:
    made = [Decision(node=name, op="MatMul", action="quantized", reason="") for name in "ab"]
    assert [(one.node, one.action, one.reason) for one in kept(made, {"b": "no"})] == [
        ("a", "quantized", ""),
        ("b", "kept", "no"),
    ]


def test_without_a_batch_that_the_model_takes_nothing_is_said(tmp_path: Path) -> None:
    """A fixed batch of three, and two samples."""
    before, after = combined("Add", 0, batch=3), combined("Add", 9, batch=3)
    few = context(Arrays({"x": np.ones((2, 2), np.float32)}), tmp_path)
    assert strayed(before, after, ["Add_0"], few) == {}
    assert strayed(before, after, ["Add_0"], context(Arrays({"x": np.ones((3, 2), np.float32)}), tmp_path)).keys() == {
        "Add_0"
    }


def test_numbers_that_are_none_say_nothing_of_size_and_direction(tmp_path: Path) -> None:
    endless = EYE.copy()
    endless[1, 1] = np.inf
    assert seen(chain(second=endless), chain(second=endless), tmp_path) == {}
    assert seen(chain(second=endless), chain(second=2 * endless), tmp_path).keys() == {"MatMul_2"}


def test_of_several_results_the_first_is_compared(tmp_path: Path) -> None:
    def halves(last: str, factor: float) -> ir.Model:
        graph = Graph()
        first, second = graph.op("Split", graph.take("x", ["b", 4]), outputs=2, axis=1)
        model = graph.model(graph.op("Mul", first, graph.constant(np.float32(factor))), second)
        model.graph[0].outputs[1].name = last
        if factor != 1:
            model.graph[0].outputs[0].name, model.graph[1].outputs[0].name = "raw", first
        return model

    assert seen(halves("b", 1), halves("other", 2), tmp_path, "Split_0").keys() == {"Split_0"}
