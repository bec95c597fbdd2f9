"""Rewrites for onnxruntime's CPU provider: they compute the same, and only where they may."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.quantize import cpu
from lepton_cli.quantize.targets import TARGETS
from lepton_cli.runtime import Session
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, ops, rows, run, sqnr

LOWEST = float(np.finfo(np.float32).min)


def attention(low: float = LOWEST, *, shown: bool = False, late: bool = False) -> ir.Model:
    """Scores with a mask added, softmax, a product, layer norm of a sum; inputs `x`, `keep` [b, 1, 32].

    `late`: the scores are scaled with the mask.
    """
    graph = Graph()
    x, keep = graph.take("x", ["b", 32, 32]), graph.take("keep", ["b", 1, 32])
    scores = graph.op("MatMul", x, graph.op("Transpose", x, perm=[0, 2, 1]))
    hidden = graph.op("Less", keep, graph.constant(np.float32(0.5)))
    mask = graph.op("Where", hidden, graph.constant(np.float32(low)), graph.constant(np.float32(0)))
    scale = graph.constant(np.float32(0.1))
    scores = (
        graph.op("Mul", graph.op("Add", scores, mask), scale)
        if late
        else graph.op("Add", graph.op("Mul", scores, scale), mask)
    )
    weights = graph.op("Softmax", scores)
    y = graph.linear(graph.op("MatMul", weights, x), 32, 32, gemm=False)
    norm = [graph.constant(np.ones(32, np.float32)), graph.constant(np.zeros(32, np.float32))]
    y = graph.op("LayerNormalization", graph.op("Add", y, x), *norm)
    return graph.model(*([y, mask] if shown else [y]))


def sentences(count: int = 12) -> Arrays:
    random = np.random.default_rng(3)
    keep = (np.arange(32)[None, None] < random.integers(4, 33, (count, 1, 1))).astype(np.float32)
    return Arrays({"x": random.normal(0, 1, (count, 32, 32)).astype(np.float32), "keep": keep})


def constants(model: ir.Model) -> list[float]:
    values = [value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value is not None]
    return [float(array) for array in values if array.ndim == 0]


def test_softer_masks_compute_the_same_without_denormal_numbers(tmp_path: Path) -> None:
    model, data = attention(), sentences()
    made, decisions = cpu.soften_masks(model, context(data, tmp_path))
    assert LOWEST in constants(model)
    assert LOWEST not in constants(made)
    assert [decision.op for decision in decisions] == ["Where"]
    assert sqnr(model, made, data) > 100
    softmax = next(node for node in made.graph if node.op_type == "Softmax").outputs[0]
    made.graph.outputs.append(softmax)
    weights = Session(io.to_bytes(made), threads=1).run(data.feeds)[softmax.name or ""]
    assert weights.min() > np.finfo(np.float32).tiny


@pytest.mark.parametrize("late_sample", [0, 15])
def test_softer_masks_leave_the_visible_weights_as_they_are_bit_by_bit(late_sample: int, tmp_path: Path) -> None:
    model, data = attention(), sentences(16)
    data.feeds["keep"][late_sample, :, 4:] = 0
    made, _ = cpu.soften_masks(model, context(data, tmp_path))
    found = []
    for one in (io.clone(model), io.clone(made)):
        softmax = next(node for node in one.graph if node.op_type == "Softmax").outputs[0]
        one.graph.outputs.append(softmax)
        found.append(Session(io.to_bytes(one), threads=1).run(data.feeds)[softmax.name or ""])
    visible = np.broadcast_to(data.feeds["keep"] >= 0.5, found[0].shape)
    assert np.array_equal(found[0][visible], found[1][visible])
    assert not found[0][~visible].any()
    assert found[1][~visible].max() < 1e-24
    assert [value for value in constants(made) if value < -1] == [-65.0]


def added(mask: np.ndarray, *, length: int = 8) -> ir.Model:
    """Softmax of `x` [b, length] and a constant mask."""
    graph = Graph()
    return graph.model(graph.op("Softmax", graph.op("Add", graph.take("x", ["b", length]), graph.constant(mask))))


def softened(model: ir.Model, tmp_path: Path, name: str = "w0") -> np.ndarray | None:
    """The mask now; `None` where the model is left as it is."""
    made, decisions = cpu.soften_masks(model, context(rows(8, 8), tmp_path))
    assert (made is model) == (decisions == [])
    if made is model:
        return None
    value = made.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def test_only_the_huge_values_of_a_mask_change(tmp_path: Path) -> None:
    mask = np.float32([0, LOWEST, -1e30, 1, -10, -np.inf, -64, -66])
    model = added(mask)
    found = softened(model, tmp_path)
    assert found is not None
    assert found.tolist() == [0, -65, -65, 1, -10, -65, -64, -65]
    assert softened(model, tmp_path) is not None, "the model given keeps its own"


def test_a_mask_of_1e30_is_one(tmp_path: Path) -> None:
    found = softened(added(np.float32([0] * 7 + [-1e30])), tmp_path)
    assert found is not None
    assert found.min() == -65


@pytest.mark.parametrize("other", [1.001, 1e30, np.inf, np.nan])
def test_constants_with_other_large_values_are_no_masks(other: float, tmp_path: Path) -> None:
    assert softened(added(np.float32([LOWEST, other] + [0] * 6)), tmp_path) is None


@pytest.mark.parametrize("low", [-50.0, -10000.0, -9.9e29])
def test_other_constants_stay(low: float, tmp_path: Path) -> None:
    model = attention(low)
    assert cpu.soften_masks(model, context(sentences(), tmp_path)) == (model, [])


def test_masks_up_to_four_million_values_are_read() -> None:
    mask = np.zeros((1 << 22) + 1, dtype=np.float32)
    mask[0] = LOWEST
    assert cpu._masks(ir.tensor(mask[:-1]))
    assert not cpu._masks(ir.tensor(mask))


def test_masks_of_other_types_stay(tmp_path: Path) -> None:
    graph = Graph()
    wide = graph.op("Cast", graph.constant(np.array([0] * 6 + [LOWEST] * 2, dtype=np.float64)), to=1)
    model = graph.model(graph.op("Softmax", graph.op("Add", graph.take("x", ["b", 8]), wide)))
    assert softened(model, tmp_path) is None


def test_the_decision_names_the_reader_and_the_value(tmp_path: Path) -> None:
    model = added(np.float32([0] * 7 + [-1e34]))
    (decision,) = cpu.soften_masks(model, context(rows(8, 8), tmp_path))[1]
    assert (decision.node, decision.op, decision.action) == ("Add_0", "Add", "rewritten")
    assert "-1e+34 is -65 now" in decision.reason


def masked(graph: Graph, mask: str) -> str:
    """Softmax of `x` with `mask` added."""
    return str(graph.op("Softmax", graph.op("Add", graph.take("x", ["b", 8]), mask)))


def foreign(model: ir.Model, kind: str) -> ir.Model:
    """The model with one operator in a domain of its own."""
    next(node for node in model.graph if node.op_type == kind).domain = "other"
    return model


def lowest() -> tuple[Graph, str]:
    graph = Graph()
    return graph, graph.constant(np.full((1, 8), LOWEST, dtype=np.float32) * np.float32([0] * 6 + [1] * 2))


def test_masks_are_followed_through_what_moves_and_adds(tmp_path: Path) -> None:
    graph, mask = lowest()
    mask = graph.op("Reshape", graph.op("Transpose", mask, perm=[1, 0]), graph.constant(np.array([1, 8])))
    model = graph.model(masked(graph, graph.op("Identity", mask)))
    assert softened(model, tmp_path) is not None


def test_a_mask_multiplied_with_something_computed_is_softened(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 8])
    hidden = graph.op("Cast", graph.op("Less", x, graph.constant(np.float32(-0.3))), to=1)
    mask = graph.op("Mul", hidden, graph.constant(np.float32(LOWEST)))
    model = graph.model(graph.op("Softmax", graph.op("Add", x, mask)))
    found = softened(model, tmp_path, "w1")
    assert found is not None
    assert float(found) == -65


def test_two_readers_and_both_must_end_in_a_softmax(tmp_path: Path) -> None:
    for kind, changed in (("Softmax", True), ("Tanh", False)):
        graph, mask = lowest()
        y = masked(graph, mask)
        model = graph.model(y, graph.op(kind, graph.op("Add", graph.op("Neg", y), mask)))
        assert (softened(model, tmp_path) is not None) == changed


def test_a_mask_that_is_read_by_nothing_stays(tmp_path: Path) -> None:
    graph, mask = lowest()
    assert softened(graph.model(graph.op("Relu", graph.take("x", ["b", 8]))), tmp_path) is None
    graph, mask = lowest()
    graph.op("Identity", mask)  # and this is read by nothing
    assert softened(graph.model(masked(graph, mask)), tmp_path) is None


@pytest.mark.parametrize("kind", ["Softmax", "Identity"])
def test_operators_of_other_domains_are_not_known(kind: str, tmp_path: Path) -> None:
    graph, mask = lowest()
    model = graph.model(masked(graph, graph.op("Identity", mask)))
    assert softened(model, tmp_path) is not None
    assert softened(foreign(model, kind), tmp_path) is None


def test_several_masks_are_softened_and_one_that_stays_keeps_none_from_it(tmp_path: Path) -> None:
    graph = Graph()
    low = np.float32([0] * 7 + [LOWEST])
    names = [graph.constant(low), graph.constant(low), graph.constant(low), graph.constant(np.ones(8, np.float32))]
    x = graph.take("x", ["b", 8])
    first = graph.op("Softmax", graph.op("Add", graph.op("Mul", x, names[3]), names[1]))
    second = graph.op("Softmax", graph.op("Add", first, names[2]))
    model = graph.model(second, graph.op("Tanh", graph.op("Add", x, names[0])))
    made, decisions = cpu.soften_masks(model, context(rows(8, 8), tmp_path))
    assert [float(made.graph.initializers[name].const_value.numpy().min()) for name in names] == [LOWEST, -65, -65, 1]  # type: ignore[union-attr]
    assert len(decisions) == 2


def test_a_mask_that_the_model_returns_stays(tmp_path: Path) -> None:
    model = attention(shown=True)
    assert cpu.soften_masks(model, context(sentences(), tmp_path)) == (model, [])


@pytest.mark.parametrize(("sample", "stays"), [(0, True), (3, True), (15, True), (16, False)])
def test_a_mask_that_changes_results_of_the_first_16_samples_stays(sample: int, stays: bool, tmp_path: Path) -> None:
    data = sentences(20)
    data.feeds["keep"][sample] = 0  # nothing is visible: -3.4e38 then swallows the scores, -65 does not
    model = attention()
    assert (cpu.soften_masks(model, context(data, tmp_path)) == (model, [])) == stays


def test_a_mask_that_is_scaled_later_stays(tmp_path: Path) -> None:
    data = sentences()
    data.feeds["keep"][:] = 1  # calibration without padding shows no difference
    model = attention(late=True)
    assert cpu.soften_masks(model, context(data, tmp_path)) == (model, [])


def test_sums_before_layer_norm_are_not_fused(tmp_path: Path) -> None:
    model, data = attention(), sentences()
    made = io.clone(model)
    add = next(node for node in made.graph if node.op_type == "LayerNormalization").inputs[0].producer()  # type: ignore[union-attr]
    assert add is not None
    name, inputs, kind = add.name, list(add.inputs), add.outputs[0].type
    cpu.spare_slow_sums(made)
    assert ops(made).count("Sum") == 1
    assert ops(made).count("Add") == ops(model).count("Add") - 1
    joined = next(node for node in made.graph if node.op_type == "Sum")
    assert (joined.name, list(joined.inputs), joined.domain) == (name, inputs, "")
    assert joined.outputs[0].type == kind
    assert joined.outputs[0].shape == next(node for node in model.graph if node.name == name).outputs[0].shape
    assert sqnr(model, made, data) > 120


def norm(graph: Graph, x: str) -> str:
    return str(graph.op("LayerNormalization", x, *(graph.constant(np.ones(8, np.float32)) for _ in range(2))))


def test_only_sums_of_two_computed_tensors_are_written_anew() -> None:
    for constant, domain, sums in ((False, "", 1), (True, "", 0), (False, "other", 0)):
        graph = Graph()
        x = graph.take("x", ["b", 8])
        other = graph.constant(np.ones(8, np.float32)) if constant else graph.op("Tanh", x)
        model = graph.model(norm(graph, graph.op("Add", x, other)))
        if domain:
            foreign(model, "Add")
        cpu.spare_slow_sums(model)
        assert ops(model).count("Sum") == sums


def test_sums_that_stay_keep_none_behind_them_from_it() -> None:
    graph = Graph()
    x = norm(graph, graph.take("x", ["b", 8]))
    y = norm(graph, graph.op("Mul", x, x))
    z = graph.op("Add", x, y)
    model = graph.model(graph.op("Neg", graph.op("Add", norm(graph, z), z)))
    before = run(model, rows(8, 8))
    cpu.spare_slow_sums(model)
    assert ops(model) == ["LayerNormalization", "Mul", "LayerNormalization", "Sum", "LayerNormalization", "Add", "Neg"]
    assert np.array_equal(run(model, rows(8, 8)), before)


@pytest.mark.parametrize("step", ["quantize.static", "quantize.dynamic"])
def test_steps_rewrite_for_the_cpu_only(step: str, tmp_path: Path) -> None:
    model, data = attention(), sentences()
    for target, rewritten in (("x86-vnni", True), ("tensorrt", False)):
        options = {"step": step, "target": target} | ({"speed_guard": False} if step == "quantize.static" else {})
        outcome = STEPS[step].apply(model, STEPS[step].options.model_validate(options), context(data, tmp_path))
        assert outcome.changed
        assert ("Sum" in ops(outcome.model)) == rewritten
        assert any(decision.action == "rewritten" for decision in outcome.decisions) == rewritten
        assert sqnr(model, outcome.model, data) > 25


def test_suits() -> None:
    assert [name for name, target in TARGETS.items() if cpu.suits(target)] == ["x86-vnni", "x86", "arm"]


def test_models_without_masks_are_left(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.linear(graph.take("x", ["b", 64]), 64, 64))
    assert cpu.soften_masks(model, context(rows(), tmp_path)) == (model, [])


def _added(x_shape: list[int | str], other: list[int | str] | np.ndarray, *, swapped: bool = False) -> ir.Model:
    """A product of 20 columns and what is added to it, computed (a shape) or constant."""
    graph = Graph()
    weight = graph.constant(np.ones((20, 20), np.float32))
    y = graph.op("MatMul", graph.take("x", x_shape), weight)
    given = graph.constant(other) if isinstance(other, np.ndarray) else graph.op("Tanh", graph.take("y", other))
    return graph.model(graph.op("Add", *([given, y] if swapped else [y, given])))


def test_what_is_added_to_a_product_is_summed_where_onnxruntime_would_join_the_two() -> None:
    """Rows of two dimensions, whatever is added; of more where all are known and a row is added."""
    matrix, row = np.ones((4, 20), np.float32), np.ones(20, np.float32)
    found = {
        "matrix": _added([4, 20], matrix),
        "in front": _added([4, 20], matrix, swapped=True),
        "open": _added(["b", 20], ["b", 20]),
        "row of three dimensions": _added([2, 3, 20], [20]),
        "constant row of three": _added([2, 3, 20], row),
        "three dimensions": _added([2, 3, 20], [2, 3, 20]),
        "open, of three": _added(["b", 3, 20], [20]),
    }
    made = {}
    for name, model in found.items():
        cpu.spare_products(model, {"MatMul_0"})
        made[name] = [node.op_type for node in model.graph if node.op_type in ("Add", "Sum")]
        assert [node.name for node in model.graph][-1].startswith("Add_"), name
    assert made == {
        "matrix": ["Sum"], "in front": ["Sum"], "open": ["Sum"], "row of three dimensions": ["Sum"],
        "constant row of three": ["Sum"], "three dimensions": ["Add"], "open, of three": ["Add"],
    }  # fmt: skip


def test_additions_behind_other_products_stay() -> None:
    graph = Graph()
    x, weight = graph.take("x", [4, 20]), graph.constant(np.ones((20, 20), np.float32))
    other = graph.op("Add", graph.op("MatMul", x, weight), x)
    twice = graph.op("MatMul", x, weight)
    model = graph.model(other, graph.op("Add", twice, x), graph.op("Tanh", twice))
    output = Graph()
    x, weight = output.take("x", [4, 20]), output.constant(np.ones((20, 20), np.float32))
    product = output.op("MatMul", x, weight)
    given = output.model(output.op("Add", product, x), product)
    cpu.spare_products(model, {"MatMul_2"})
    cpu.spare_products(given, {"MatMul_0"})
    assert "Sum" not in [*ops(model), *ops(given)]


def _gelu(
    *, half: float = 0.5, swapped: bool = False, of: str = "x", op: str = "Div", shown: bool = False, kind: str = "Erf"
) -> ir.Model:
    """x times half of one more than its error function."""
    graph = Graph()
    x, other = graph.take("x", ["b", 32]), graph.take("other", ["b", 32])
    number = np.float32(2**0.5 if op == "Div" else 0.5**0.5)
    y = graph.op(kind, graph.op(op, x if of == "x" else other, graph.constant(number)))
    inner = [graph.constant(np.float32(half)), graph.op("Add", y, graph.constant(np.float32(1)))]
    product = graph.op("Mul", *(inner[::-1] if swapped else inner))
    last = graph.op("Mul", *([product, x] if swapped else [x, product]))
    return graph.model(last, *([product] if shown else []))


@pytest.mark.parametrize("options", [{}, {"swapped": True}])
def test_gelu_is_multiplied_by_its_half_last(options: dict[str, object], tmp_path: Path) -> None:
    """For onnxruntime it is one kernel then, and the numbers are the same."""
    model = _gelu(**options)  # type: ignore[arg-type]
    feed = {name: np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32) for name in ("x", "other")}
    before = Session(io.to_bytes(model), threads=1, optimise=False).run(feed)
    cpu.order_gelu(model)
    last = list(model.graph)[-1]
    assert (last.op_type, last.name, last.outputs[0].is_graph_output()) == ("Mul", "Mul_4", True)
    assert last.inputs[0].producer().inputs[0].name == "x"  # type: ignore[union-attr]
    after = Session(io.to_bytes(model), threads=1, optimise=False).run(feed)
    np.testing.assert_array_equal(after[last.outputs[0].name or ""], before[last.outputs[0].name or ""])
    path = tmp_path / "optimised.onnx"
    Session(io.to_bytes(model), threads=1, optimised_path=path)
    assert "Gelu" in ops(io.load(path).model)


@pytest.mark.parametrize(
    "options", [{"half": 0.25}, {"of": "other"}, {"shown": True}, {"kind": "Tanh"}, {"op": "Add"}, {"op": "Mul"}]
)
def test_what_is_no_gelu_stays(options: dict[str, object]) -> None:
    model = _gelu(**options)  # type: ignore[arg-type]
    before = [(node.name, [value.name for value in node.inputs if value is not None]) for node in model.graph]
    cpu.order_gelu(model)
    assert before == [(node.name, [value.name for value in node.inputs if value is not None]) for node in model.graph]
