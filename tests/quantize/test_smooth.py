"""SmoothQuant's scales by hand, and that the float model computes the same with them."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.probe import channels
from lepton_cli.probe.channels import Channels
from lepton_cli.quantize import choose, smooth
from tests.quantize.builders import Graph, context, ops, run, sqnr


def net(
    spread: list[float], *, readers: int = 1, shown: bool = False, weight: np.ndarray | None = None, seed: int = 0
) -> ir.Model:
    """x [b, n] times `spread`, read by `readers` MatMuls whose results are added, and by a sum with itself."""
    graph = Graph(seed=seed)
    n = len(spread)
    wide = graph.op("Mul", graph.take("x", ["b", n]), graph.constant(np.float32(spread)))
    results = []
    for i in range(readers):
        matrix = graph.random.normal(0, 1 + i, (n, n)).astype(np.float32) if weight is None else weight
        results.append(graph.op("MatMul", wide, graph.constant(matrix)))
    y = graph.op("Sum", *results, wide)
    return graph.model(*([y, wide] if shown else [y]))


def choice_of(model: ir.Model) -> choose.Choice:
    return choose.Choice(
        frozenset(node.name or "" for node in model.graph if node.op_type == "MatMul"), frozenset(), ()
    )


def constant(model: ir.Model, name: str) -> np.ndarray:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def data(width: int, count: int = 20) -> Arrays:
    return Arrays({"x": np.random.default_rng(3).uniform(-1, 1, (count, width)).astype(np.float32)})


def test_three_channels_by_hand() -> None:
    # Greatest inputs 16, 1, 0.25; greatest weights of the rows 1, 4, 0.25. With strength 0.5:
    # sqrt(16 / 1) = 4, sqrt(1 / 4) = 0.5, sqrt(0.25 / 0.25) = 1; their geometric mean is 2 ** (1 / 3).
    weight = np.array([[1, -0.5, 0.1], [-4, 2, 3], [0.2, -0.25, 0]], dtype=np.float32)
    model = net([16, 1, 0.25], weight=weight)
    ends = {"t0": Channels(np.float32([-16, -1, 0]), np.float32([8, 1, 0.25]))}
    made, ranges = smooth.smooth(model, choice_of(model), ends, 0.5)
    scale = np.array([4, 0.5, 1]) / 2 ** (1 / 3)
    assert np.allclose(constant(made, "t0.smooth"), 1 / scale, rtol=1e-6)
    assert np.allclose(constant(made, "MatMul_1.smooth_weight"), weight * scale[:, None], rtol=1e-6)
    low, high = ranges["t0.smoothed"]
    assert low == pytest.approx(-16 / scale[0], rel=1e-6)
    assert high == pytest.approx(8 / scale[0], rel=1e-6)


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_scales_follow_the_published_formula_over_all_readers(strength: float) -> None:
    spread = [100.0, 2, 1, 0.5, 3, 1]
    model = net(spread, readers=3)
    ends = Channels(-np.float32(spread), np.float32(spread) / 2)
    made, ranges = smooth.smooth(model, choice_of(model), {"t0": ends}, strength)
    weights = [constant(model, f"w{i}") for i in (1, 2, 3)]
    expected = []
    for j in range(6):
        most = max(abs(float(weight[j, k])) for weight in weights for k in range(6))
        expected.append(spread[j] ** strength / most ** (1 - strength))
    scale = np.array(expected) / np.prod(expected) ** (1 / 6)
    assert np.allclose(constant(made, "t0.smooth"), 1 / scale, rtol=1e-5)
    for i, weight in enumerate(weights):
        assert np.allclose(constant(made, f"MatMul_{i + 1}.smooth_weight"), weight * scale[:, None], rtol=1e-5)
    assert ranges == {"t0.smoothed": pytest.approx((-max(spread / scale), max(np.array(spread) / 2 / scale)), rel=1e-5)}


@pytest.mark.parametrize("strength", smooth.STRENGTHS)
def test_the_float_model_computes_the_same_and_the_input_is_even(strength: float, tmp_path: Path) -> None:
    spread = [100.0, 1, 1, 0.02, 5, 1, 2, 0.3]
    model, samples = net(spread, readers=2), data(8)
    ends = channels.collect(model, {"t0": -1}, samples, context(samples, tmp_path))
    made, ranges = smooth.smooth(model, choice_of(model), ends, strength)
    assert sqnr(model, made, samples) > 110
    assert ops(made) == ["Mul", "Mul", "MatMul", "MatMul", "Sum"]
    even = next(node for node in made.graph if node.name == "t0.smoothing").outputs[0]
    assert even.name == "t0.smoothed"
    assert even.dtype == ir.DataType.FLOAT
    assert {user.name for user, _ in even.uses()} == {"MatMul_1", "MatMul_2"}
    made.graph.outputs.insert(0, even)
    seen = run(made, samples)
    assert (float(seen.min()), float(seen.max())) == pytest.approx(ranges["t0.smoothed"], rel=1e-5)
    widest = np.abs(seen).max(axis=0)
    assert widest.max() / np.median(widest) < 0.5 * 100


def test_the_tensor_itself_and_the_model_given_stay_as_they_are() -> None:
    spread = [100.0, 1, 1, 1]
    model, samples = net(spread, shown=True), data(4)
    made, _ = smooth.smooth(model, choice_of(model), {"t0": Channels(-np.float32(spread), np.float32(spread))}, 0.8)
    assert ops(model) == ["Mul", "MatMul", "Sum"]
    assert next(node for node in made.graph if node.op_type == "Sum").inputs[1].name == "t0"  # type: ignore[union-attr]
    for one in (model, made):
        one.graph.outputs.insert(0, one.graph.outputs.pop())
    assert np.array_equal(run(model, samples), run(made, samples))


@pytest.mark.parametrize(("widest", "done"), [(3.0, False), (3.001, True), (100.0, True), (np.inf, False)])
def test_only_a_channel_three_times_wider_than_the_median_is_worth_it(widest: float, done: bool) -> None:
    spread = np.float32([widest, 1, 1, 0.5, 1])
    model = net([1.0] * 5)
    made, ranges = smooth.smooth(model, choice_of(model), {"t0": Channels(-spread / 2, spread)}, 0.8)
    assert bool(ranges) == done
    assert ("t0.smooth" in made.graph.initializers) == done


def test_dead_channels_and_rows_are_taken_for_one_hundred_thousandth() -> None:
    weight = np.array([[1, 1, 1], [0, 0, 0], [1, 1, 1]], dtype=np.float32)
    model = net([1.0] * 3, weight=weight)
    ends = Channels(np.zeros(3, np.float32), np.float32([1, 1, 0]))
    ends = Channels(ends.low, np.float32([100, 1, 0]))
    made, _ = smooth.smooth(model, choice_of(model), {"t0": ends}, 0.5)
    scale = np.sqrt([100, 1 / 1e-5, 1e-5])
    assert np.allclose(constant(made, "t0.smooth"), np.prod(scale) ** (1 / 3) / scale, rtol=1e-5)
    assert np.isfinite(constant(made, "MatMul_1.smooth_weight")).all()


def test_mostly_dead_channels_are_uneven_without_a_division_by_zero() -> None:
    model = net([1.0] * 3)
    zeros = np.zeros(3, np.float32)
    assert smooth.smooth(model, choice_of(model), {"t0": Channels(zeros, np.float32([1e-9, 0, 0]))}, 0.5)[1]
    assert not smooth.smooth(model, choice_of(model), {"t0": Channels(zeros, zeros)}, 0.5)[1]
    assert not smooth.smooth(model, choice_of(model), {"t0": Channels(zeros, np.float32([2e-12, 0, 0]))}, 0.5)[1]


def test_tensors_of_unknown_or_other_width_are_left() -> None:
    model = net([1.0] * 3)
    assert smooth.smooth(model, choice_of(model), {}, 0.5)[1] == {}
    other = Channels(np.zeros(4, np.float32), np.float32([100, 1, 1, 1]))
    made, ranges = smooth.smooth(model, choice_of(model), {"t0": other}, 0.5)
    assert ranges == {}
    assert ops(made) == ops(model)


def test_products_may_have_more_results_than_inputs() -> None:
    graph = Graph()
    weight = graph.random.normal(size=(3, 7)).astype(np.float32)
    model = graph.model(graph.op("MatMul", graph.op("Tanh", graph.take("x", ["b", 3])), graph.constant(weight)))
    made, ranges = smooth.smooth(
        model, choice_of(model), {"t0": Channels(-np.ones(3, np.float32), np.float32([9, 1, 1]))}, 0.5
    )
    assert list(ranges) == ["t0.smoothed"]
    assert sqnr(model, made, data(3)) > 110


def test_a_tensor_left_alone_does_not_keep_the_next_one_from_it() -> None:
    graph = Graph()
    x = graph.take("x", ["b", 4])
    for _ in range(3):
        x = graph.op("MatMul", graph.op("Tanh", x), graph.constant(np.eye(4, dtype=np.float32)))
    model = graph.model(x)
    even, wide = (Channels(np.zeros(n, np.float32), np.float32([a] + [1] * (n - 1))) for n, a in ((5, 100), (4, 100)))
    _, ranges = smooth.smooth(model, choice_of(model), {"t2": even, "t4": wide}, 0.5)
    assert list(ranges) == ["t4.smoothed"]


def test_readers_are_chosen_matmuls_behind_float_operators() -> None:
    graph = Graph()
    x = graph.take("x", ["b", 4])
    eye = np.eye(4, dtype=np.float32)
    first = graph.op("MatMul", x, graph.constant(eye))  # reads the model's input: nothing makes it
    wide = graph.op("Tanh", first)
    second, third = (graph.op("MatMul", wide, graph.constant(eye)) for _ in range(2))
    left = graph.op("MatMul", wide, graph.constant(eye))
    gemm = graph.op("Gemm", wide, graph.constant(eye))
    behind = graph.op("MatMul", graph.op("Relu", gemm), graph.constant(eye))
    model = graph.model(graph.op("Sum", second, third, left, behind))
    nodes = {node.outputs[0].name: node.name or "" for node in model.graph}
    anchors = frozenset(nodes[name] for name in (first, second, third, gemm, behind))
    relu = next(node.name or "" for node in model.graph if node.op_type == "Relu")
    choice = choose.Choice(anchors, frozenset({relu}), ())
    found = smooth.readers(model, choice)
    assert {name: [node.name for node in users] for name, users in found.items()} == {
        wide: [nodes[second], nodes[third]]
    }


def test_strengths_move_more_than_half_of_the_difficulty() -> None:
    assert smooth.STRENGTHS == (0.65, 0.8, 0.95)
