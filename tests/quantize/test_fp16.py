"""`convert.fp16`: half the bytes, the same inputs and outputs, nothing beyond float16's range."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import ModelError
from lepton_cli.model import io
from lepton_cli.probe.distances import Closeness
from lepton_cli.quantize import fp16
from lepton_cli.quantize.details import ConvertFp16Details
from lepton_cli.quantize.spec import ConvertFp16
from lepton_cli.quantize.targets import TARGETS
from lepton_cli.step import Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, images, mlp, residual_net, rows, run, sqnr


def convert(model: ir.Model, tmp_path: Path, data: Arrays, **options: object) -> Outcome:
    return STEPS["convert.fp16"].apply(
        model, ConvertFp16.model_validate({"step": "convert.fp16", **options}), context(data, tmp_path)
    )


def test_half_the_size_same_interface(tmp_path: Path) -> None:
    for model, data in ((mlp(), rows()), (residual_net(), images())):
        outcome = convert(model, tmp_path, data)
        assert io.inputs(outcome.model) == io.inputs(model)
        assert [output.dtype for output in io.outputs(outcome.model)] == ["float32"]
        assert io.weight_bytes(outcome.model) < 0.51 * io.weight_bytes(model)
        assert sqnr(model, outcome.model, data) > 50


def test_without_keep_io(tmp_path: Path) -> None:
    outcome = convert(mlp(), tmp_path, rows(), keep_io=False)
    assert io.inputs(outcome.model)[0].dtype == "float16"
    assert any("callers" in warning for warning in outcome.warnings)


def test_what_leaves_the_range_stays_float32(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 64]), 64, 64)
    large = graph.op("Mul", x, graph.constant(np.float32(1e5)))
    model = graph.model(graph.linear(graph.op("Mul", large, graph.constant(np.float32(1e-5))), 64, 64))
    outcome = convert(model, tmp_path, rows())
    assert {d.node for d in outcome.decisions} >= {"Mul_1", "Mul_2"}
    assert np.isfinite(run(outcome.model, rows())).all()
    assert sqnr(model, outcome.model, rows()) > 50


@pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0, 3), (0, 2, 1)])
def test_what_ends_onnxruntime_is_not_written(order: tuple[int, ...], tmp_path: Path) -> None:
    """Relu, Transpose, MatMul: in float16, with the first axis moved behind the others, no session survives that."""
    graph, rank = Graph(), len(order)
    x = graph.op("Relu", graph.take("x", ["a", *[16] * (rank - 1)]))
    x = graph.op("Transpose", x, perm=list(order))
    model = graph.model(graph.op("MatMul", x, graph.constant(graph.random.normal(size=(16, 16)).astype(np.float32))))
    data = Arrays({"x": np.random.default_rng(0).normal(size=(8, *[16] * (rank - 1))).astype(np.float32)})
    outcome = convert(model, tmp_path, data)
    (kind,) = {value.dtype for node in outcome.model.graph if node.op_type == "Transpose" for value in node.outputs}
    assert (kind == ir.DataType.FLOAT) == (order != (0, 2, 1))
    assert ("Transpose_1" in {decision.node for decision in outcome.decisions}) == (order != (0, 2, 1))
    found, wanted = run(outcome.model, data), run(model, data)
    assert np.square(found - wanted).sum() < 1e-5 * np.square(wanted).sum()


@pytest.mark.parametrize(
    ("order", "after", "ends"),
    [
        ((1, 2, 0), "MatMul", True),
        ((1, 2, 3, 0), "MatMul", True),
        ((1, 0), "MatMul", False),
        ((2, 0, 1), "MatMul", False),
        ((0, 2, 1, 3), "MatMul", False),
        ((2, 1, 0, 3), "MatMul", False),
        ((1, 0, 2), "Add", False),
    ],
)
def test_which_transposes_end_onnxruntime(order: tuple[int, ...], after: str, ends: bool) -> None:
    """Tried in processes of their own, all orders of three to five axes."""
    graph = Graph()
    x = graph.op("Transpose", graph.take("x", [4] * len(order)), perm=list(order))
    model = graph.model(graph.op(after, x, graph.constant(np.ones((4, 4), np.float32))))
    assert bool(fp16._deadly(model)) == ends


def test_an_output_beyond_the_range_is_returned_in_float32(tmp_path: Path) -> None:
    """Kept in float32, but cast to float16 on its way out it was infinite."""
    graph = Graph()
    large = graph.op("Mul", graph.take("x", ["b", 64]), graph.constant(np.float32(1e5)))
    model = graph.model(large, graph.op("Tanh", graph.op("Mul", large, graph.constant(np.float32(1e-5)))))
    outcome = convert(model, tmp_path, rows())
    np.testing.assert_array_equal(run(outcome.model, rows()), run(model, rows()))
    assert [value.name for value in outcome.model.graph.outputs] == ["t0", "t2"]
    assert outcome.details.sqnr_db > 50


def test_nodes_left_out_are_told_once_and_not_counted_as_changed(tmp_path: Path) -> None:
    """Add_1 cuts float16 short, so that Adds go back; Add_0 was left out already. Only Softmax changes."""
    graph = Graph()
    x = graph.op("Add", graph.take("x", ["b", 8]), graph.constant(np.float32(1)))
    masked = graph.op("Add", x, graph.constant(np.full(8, -3.4e38, np.float32)))
    outcome = convert(graph.model(graph.op("Softmax", masked)), tmp_path, rows(8, 8), exclude=["Add_0"])
    (first, second) = outcome.decisions
    assert (first.node, first.op, first.action, first.reason) == ("Add_0", "Add", "kept", "left out by include/exclude")
    assert (second.node, second.op, second.action) == ("Add_1", "Add", "kept")
    assert second.reason.startswith("with `Add` in float32 the outputs are at ")
    assert outcome.changed == 1
    assert outcome.details.kept == 2


def test_nothing_in_float32(tmp_path: Path) -> None:
    half = convert(mlp(), tmp_path, rows(), keep_io=False).model
    assert convert(half, tmp_path, Arrays({"x": rows().feeds["x"].astype(np.float16)})).changed == 0


def array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def reasons(outcome: Outcome) -> dict[str, str]:
    assert all(one.reason == "weights in float16" for one in outcome.decisions if one.action == "converted")
    return {one.node: one.reason for one in outcome.decisions if one.action == "kept"}


def test_weights_are_rounded_to_float16_and_tiny_ones_to_its_least(tmp_path: Path) -> None:
    """Subnormals stay; what is nearer to 0 than the least float16 becomes that, with its sign, and 0 stays 0."""
    values = np.float32([1 / 3, -2.5, 65504, 6.1e-5, 3e-7, -1e-7, 2e-8, -1e-9, 0])
    graph = Graph()
    scaled = graph.op("Tanh", graph.op("Mul", graph.take("x", ["b", 9]), graph.constant(values)))
    # One number a sample: columns of their own would each have to stay as they are.
    model = graph.model(graph.op("ReduceSum", scaled, graph.constant(np.array([1]))))
    outcome = convert(model, tmp_path, Arrays({"x": np.full((4, 9), 1e-3, np.float32)}))
    found = array(outcome.model, "w0")
    assert found.dtype == np.float16
    least = 2.0**-24
    expected = [1 / 3, -2.5, 65504, 6.1e-5, 5 * least, -2 * least, least, -least, 0]
    np.testing.assert_array_equal(found, np.float16(expected))
    assert outcome.summary == "1 tensors in float16, 0 operators kept in float32"
    assert (outcome.changed, outcome.details.kept, reasons(outcome)) == (3, 0, {})


def multiplied(factor: float, data: float, **options: object) -> tuple[ir.Model, Arrays]:
    graph = Graph()
    y = graph.op("Mul", graph.take("x", ["b", 4]), graph.constant(np.float32([factor, 1, 1, 1])))
    feeds = np.full((3, 4), 1e-3, np.float32)
    feeds[1, 2] = data
    return graph.model(graph.op("Tanh", y)), Arrays({"x": feeds})


@pytest.mark.parametrize(
    ("factor", "kept"),
    [(65504, False), (65505, True), (-65504, False), (-65505, True), (9.9e29, True), (-9.9e29, True),
     (1e30, False), (-3.4e38, False), (np.inf, False)],
)  # fmt: skip
def test_constants_beyond_float16_stay_but_masks_are_cut(factor: float, kept: bool, tmp_path: Path) -> None:
    model, data = multiplied(factor, 0.0)
    outcome = STEPS["convert.fp16"].apply(model, ConvertFp16(step="convert.fp16"), context(data, tmp_path, dry=True))
    told = f"constant `w0` reaches {abs(np.float32(factor)):.3g}, beyond float16"
    assert reasons(outcome) == ({"Mul_0": told} if kept else {})
    assert (outcome.model is not model, outcome.changed) == (True, 2 - kept)
    assert outcome.summary == f"{1 - kept} tensors in float16, {int(kept)} operators kept in float32"


@pytest.mark.parametrize(("value", "kept"), [(16376.0, False), (16377.0, True), (-16376.0, False), (-16377.0, True)])
def test_results_need_a_margin_of_four_below_the_end_of_float16(value: float, kept: bool, tmp_path: Path) -> None:
    """Other data reach further. Both the node that makes the tensor and the one that reads it stay."""
    model, data = multiplied(1.0, value)
    outcome = convert(model, tmp_path, data)
    told = f"`t0` reaches {abs(value):.3g}, float16 ends at 65504"
    assert reasons(outcome) == (dict.fromkeys(["Mul_0", "Tanh_1"], told) if kept else {})
    assert outcome.details.kept == 2 * kept
    without = STEPS["convert.fp16"].apply(model, ConvertFp16(step="convert.fp16"), context(None, tmp_path, check=data))
    assert reasons(without) == reasons(outcome), "any data will do"


def test_between_two_float32_nodes_nothing_goes_through_float16(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.op("Tanh", graph.take("x", ["b", 64]))
    for factor in (1e5, 3.0, 1e-5):
        x = graph.op("Mul", x, graph.constant(np.float32(factor)))
    model = graph.model(graph.op("Tanh", graph.op("Relu", x)))
    outcome = convert(model, tmp_path, rows())
    made = outcome.model
    assert set(reasons(outcome)) == {"Mul_1", "Mul_2", "Mul_3"}
    nodes = {node.name: node for node in made.graph}
    assert [nodes[name].inputs[0].producer().op_type for name in ("Mul_2", "Mul_3")] == ["Mul", "Mul"]  # type: ignore[union-attr]
    casts = [node.attributes.get_int("to") for node in made.graph if node.op_type == "Cast"]
    assert sorted(casts) == [1, 1, 10, 10], "in and out of the graph, and of the three"
    assert sqnr(model, made, rows()) > 60


def test_casts_that_the_model_has_itself_are_left(tmp_path: Path) -> None:
    """To int and back loses what is behind the point, as the model says."""
    graph = Graph()
    x = graph.op("Cast", graph.op("Cast", graph.take("x", ["b", 64]), to=int(ir.DataType.INT32)), to=1)
    model = graph.model(graph.op("Mul", x, graph.constant(np.float32(0.5))))
    data = Arrays({"x": np.rint(rows().feeds["x"] * 8) / 8})
    outcome = convert(model, tmp_path, data)
    np.testing.assert_array_equal(run(outcome.model, data), np.trunc(data.feeds["x"]) / 2)


class Judged:
    """A fidelity that scores a model by the kinds of operators that read float16."""

    scores: dict[frozenset[str], float] = {}
    asked: list[frozenset[str]] = []

    def __init__(self, model: ir.Model, context: object, most: int, batch: int) -> None:
        assert (most, batch) == (16, 4)

    def closeness(self, model: ir.Model) -> Closeness:
        kept = frozenset(
            node.op_type
            for node in model.graph
            for value in node.inputs
            if node.op_type != "Cast" and value is not None and value.const_value is not None
            if value.const_value.dtype == ir.DataType.FLOAT
        )
        self.asked.append(kept)
        score = self.scores.get(kept, 1.0)
        return Closeness(score, score)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> type[Judged]:
    monkeypatch.setattr(fp16, "Reference", Judged)
    monkeypatch.setattr(Judged, "asked", [])
    monkeypatch.setattr(Judged, "scores", {})
    return Judged


def arithmetic() -> ir.Model:
    """Add, Mul, Sub, Div, Pow of constants."""
    graph = Graph()
    x = graph.take("x", ["b", 64])
    for kind in ("Add", "Mul", "Sub", "Div", "Pow"):
        x = graph.op(kind, x, graph.constant(np.float32(1.5)))
    return graph.model(x)


def kinds(*names: str) -> frozenset[str]:
    return frozenset(names)


def test_good_outputs_are_not_repaired(judged: type[Judged], tmp_path: Path) -> None:
    judged.scores = {kinds(): 30.0}
    outcome = convert(arithmetic(), tmp_path, rows())
    assert judged.asked == [kinds()]
    assert (outcome.details, outcome.changed) == (ConvertFp16Details(sqnr_db=30.0, assured_db=30.0, kept=0), 5)
    assert not any("changes the outputs" in warning for warning in outcome.warnings)


def test_the_kinds_that_ruin_outputs_go_back_one_after_the_other_the_best_first(
    judged: type[Judged], tmp_path: Path
) -> None:
    judged.scores = {
        kinds(): 3.0, kinds("Mul"): 10.0, kinds("Add"): 8.0, kinds("Mul", "Sub"): 20.0, kinds("Mul", "Add"): 19.0,
        kinds("Add", "Mul", "Sub"): 29.999, kinds("Div", "Mul", "Sub"): 28.0,
        kinds("Add", "Div", "Mul", "Sub"): 50.0,
    }  # fmt: skip
    outcome = convert(arithmetic(), tmp_path, rows())
    assert set(reasons(outcome)) == {"Mul_1", "Sub_2", "Add_0"}, "three kinds at most"
    assert reasons(outcome)["Mul_1"] == "with `Mul` in float32 the outputs are at 10 dB, in float16 at 3 dB (measured)"
    assert outcome.details == ConvertFp16Details(sqnr_db=30.0, assured_db=30.0, kept=3)
    assert outcome.changed == 2
    assert outcome.warnings[0] == "float16 changes the outputs much: 30.0 dB"
    assert array(outcome.model, "w1").dtype == np.float32
    assert array(outcome.model, "w3").dtype == np.float16


def test_a_repair_that_halves_the_error_is_kept(judged: type[Judged], tmp_path: Path) -> None:
    """6 dB; less is not worth the bytes and casts, whatever the outputs are at."""
    judged.scores = {kinds(): 29.9, kinds("Mul"): 35.9}
    assert set(reasons(convert(arithmetic(), tmp_path, rows()))) == {"Mul_1"}
    judged.scores = {kinds(): 29.9, kinds("Mul"): 35.8}
    assert reasons(convert(arithmetic(), tmp_path, rows())) == {}


def test_a_repair_that_does_not_help_is_not_kept(judged: type[Judged], tmp_path: Path) -> None:
    judged.scores = {kinds(): 5.0, kinds("Mul"): 12.346, kinds("Mul", "Add"): 18.345, kinds("Mul", "Sub"): 11.0}
    outcome = convert(arithmetic(), tmp_path, rows())
    assert set(reasons(outcome)) == {"Mul_1"}
    assert outcome.details.sqnr_db == 12.35


def test_what_onnxruntime_cannot_run_counts_as_nothing(judged: type[Judged], tmp_path: Path) -> None:
    judged.scores = {kinds("Mul"): 40.0}

    def refuse(self: Judged, model: ir.Model, score=judged.closeness) -> Closeness:
        found = score(self, model)
        if not self.asked[-1]:
            raise ModelError("model.runtime", "no")
        return found

    judged.closeness, kept = refuse, judged.closeness  # type: ignore[method-assign]
    try:
        told = reasons(convert(arithmetic(), tmp_path, rows()))
    finally:
        judged.closeness = kept  # type: ignore[method-assign]
    assert told == {"Mul_1": "with `Mul` in float32 the outputs are at 40 dB, in float16 not usable (measured)"}


def test_nodes_left_out_stay_with_their_weights(judged: type[Judged], tmp_path: Path) -> None:
    judged.scores = {kinds("Mul"): 5.0, kinds("Mul", "Div"): 40.0}
    outcome = convert(arithmetic(), tmp_path, rows(), exclude=["Mul_1"])
    assert reasons(outcome) == {
        "Mul_1": "left out by include/exclude",
        "Div_3": "with `Div` in float32 the outputs are at 40 dB, in float16 at 5 dB (measured)",
    }
    assert judged.asked[0] == kinds("Mul")
    assert kinds("Mul", "Add", "Sub") not in judged.asked


def test_half_inputs_and_outputs_are_judged_as_float_ones(judged: type[Judged], tmp_path: Path) -> None:
    judged.scores = {kinds(): 33.0}
    outcome = convert(arithmetic(), tmp_path, rows(), keep_io=False)
    assert judged.asked == [kinds()]
    assert outcome.details == ConvertFp16Details(sqnr_db=33.0, assured_db=33.0, kept=0)
    assert [value.dtype for value in (*outcome.model.graph.inputs, *outcome.model.graph.outputs)] == [
        ir.DataType.FLOAT16, ir.DataType.FLOAT16
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("provider", "machine", "told"), [("cpu", "x86-vnni", True), ("cpu", "arm", False), ("cuda", "x86", False)]
)
def test_x86_gains_no_speed_by_it(
    provider: str, machine: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp16, "resolve", lambda name: TARGETS[machine])
    outcome = STEPS["convert.fp16"].apply(
        mlp(), ConvertFp16(step="convert.fp16"), context(rows(), tmp_path, provider=provider)
    )
    assert any("not more speed" in warning for warning in outcome.warnings) == told
    assert not any("callers" in warning for warning in outcome.warnings)


def test_the_largest_models_are_run_only_on_data(judged: type[Judged], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(io, "EXTERNAL_ABOVE", 1)
    monkeypatch.setattr(fp16, "SPILL_ABOVE", 1)
    convert(arithmetic(), tmp_path, rows())
    assert judged.asked
    judged.asked.clear()
    step = ConvertFp16(step="convert.fp16")
    outcome = STEPS["convert.fp16"].apply(arithmetic(), step, context(None, tmp_path, check=rows()))
    assert (judged.asked, outcome.details.sqnr_db, outcome.changed) == ([], None, 5)
    assert isinstance(outcome.model.graph.initializers["w0"].const_value, ir.ExternalTensor)
    np.testing.assert_array_equal(array(outcome.model, "w0"), np.float16(1.5))


def test_the_given_model_stays_and_constant_nodes_are_converted_too(tmp_path: Path) -> None:
    graph = Graph()
    tensor = numpy_helper.from_array(np.full(64, 3, np.float32))
    model = graph.model(graph.op("Mul", graph.take("x", ["b", 64]), graph.op("Constant", value=tensor)))
    before = io.to_bytes(model)
    outcome = convert(model, tmp_path, rows())
    assert io.to_bytes(model) == before
    assert outcome.changed == 1, "the constant is no node any more"
    assert sqnr(model, outcome.model, rows()) > 50
