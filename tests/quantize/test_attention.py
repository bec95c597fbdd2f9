"""Attention as one operator: every way to write it down computes what the formula says, and near misses stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.graph import shapes
from lepton_cli.model import io
from lepton_cli.quantize import attention, cpu
from lepton_cli.quantize.spec import QuantizeDynamic, QuantizeStatic
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context, ops, run, sqnr

WIDTH, HEADS, SIZE = 24, 2, 12
Floats = NDArray[np.float32]
Sides = Callable[[Graph, str, "Weights"], list[str]]


class Weights:
    """Projections to queries, keys and values."""

    def __init__(self, seed: int = 5) -> None:
        random = np.random.default_rng(seed)
        self.all = [random.normal(0, 0.4, (WIDTH, WIDTH)).astype(np.float32) for _ in range(3)]


def formula(x: Floats, weights: Weights, scale: float, mask: Floats | float = 0.0) -> Floats:
    """softmax(scale q k^T + mask) v of every head, side by side, in float64."""
    query, key, value = (
        (x.astype(np.float64) @ one).reshape(*x.shape[:2], HEADS, SIZE).transpose(0, 2, 1, 3) for one in weights.all
    )
    scores = scale * query @ key.transpose(0, 1, 3, 2) + mask
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = shares / shares.sum(-1, keepdims=True) @ value
    return mixed.transpose(0, 2, 1, 3).reshape(*x.shape[:2], WIDTH).astype(np.float32)


def ints(graph: Graph, *numbers: int) -> str:
    return graph.constant(np.array(numbers, np.int64))


def product(graph: Graph, x: str, weight: Floats) -> str:
    return str(graph.op("MatMul", x, graph.constant(weight)))


def parted(graph: Graph, x: str) -> str:
    return str(graph.op("Reshape", x, ints(graph, 0, -1, HEADS, SIZE)))


def turned(graph: Graph, x: str, *perm: int) -> str:
    return str(graph.op("Transpose", x, perm=list(perm)))


def apart(graph: Graph, x: str, weights: Weights) -> list[str]:
    """Three products, the keys turned at once."""
    orders = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
    pairs = zip(weights.all, orders, strict=True)
    return [turned(graph, parted(graph, product(graph, x, weight)), *order) for weight, order in pairs]


def merged(graph: Graph, x: str, weights: Weights) -> list[str]:
    """Keys turned with batch and heads as one axis, as torch writes it for a batch of 2 and a length of 6."""
    query, key, value = (turned(graph, parted(graph, product(graph, x, one)), 0, 2, 1, 3) for one in weights.all)
    one = graph.op("Reshape", key, ints(graph, -1, 6, SIZE))
    return [query, graph.op("Reshape", turned(graph, one, 0, 2, 1), ints(graph, 2, HEADS, SIZE, 6)), value]


def _packed(graph: Graph, x: str, weights: Weights) -> str:
    """[3, batch, heads, length, size]"""
    whole = product(graph, x, np.concatenate(weights.all, axis=1))
    return turned(graph, graph.op("Reshape", whole, ints(graph, 0, -1, 3, HEADS, SIZE)), 2, 0, 3, 1, 4)


def sliced(graph: Graph, x: str, weights: Weights) -> list[str]:
    whole, zero = _packed(graph, x, weights), ints(graph, 0)
    ends = (1, 2, np.iinfo(np.int64).max)
    cut = [graph.op("Slice", whole, ints(graph, i), ints(graph, end), zero) for i, end in enumerate(ends)]
    query, key, value = (graph.op("Squeeze", one, zero) for one in cut)
    return [query, turned(graph, key, 0, 1, 3, 2), value]


def split(graph: Graph, x: str, weights: Weights) -> list[str]:
    cut = graph.op("Split", _packed(graph, x, weights), outputs=3, axis=0)
    query, key, value = (graph.op("Squeeze", one, ints(graph, 0)) for one in cut)
    return [query, turned(graph, key, 0, 1, 3, 2), value]


def gathered(graph: Graph, x: str, weights: Weights) -> list[str]:
    whole = _packed(graph, x, weights)
    query, key, value = (graph.op("Gather", whole, graph.constant(np.int64(i)), axis=0) for i in (0, 1, -1))
    return [query, turned(graph, key, 0, 1, 3, 2), value]


LAYOUTS: dict[str, Sides] = {
    "apart": apart, "merged": merged, "sliced": sliced, "split": split, "gathered": gathered,
}  # fmt: skip


def written(
    sides: Sides = apart,
    *,
    shape: tuple[int | str, int | str] = ("b", "s"),
    scale: Callable[[Graph, str], str] | None = None,
    before: tuple[float, float] = (1, 1),
    mask: Floats | None = None,
    shown: bool = False,
    axis: int = -1,
    values: float = 1,
    back: str = "flat",
) -> ir.Model:
    """Attention over `x`. `before`: factors of queries and keys; `values`: of values; `back`: the last Reshape."""
    graph = Graph()
    query, key, value = sides(graph, graph.take("x", [*shape, WIDTH]), Weights())

    def grown(side: str, factor: float) -> str:
        return side if factor == 1 else str(graph.op("Mul", graph.constant(np.float32(factor)), side))

    scores = graph.op("MatMul", grown(query, before[0]), grown(key, before[1]))
    scores = scores if scale is None else scale(graph, scores)
    if mask is not None:
        scores = graph.op("Add", scores, graph.constant(mask))
    shares = graph.op("Softmax", scores, axis=axis)
    mixed = turned(graph, graph.op("MatMul", shares, grown(value, values)), 0, 2, 1, 3)
    rows = (-1, WIDTH) if back == "rows" else (0, -1, WIDTH)
    y = graph.linear(graph.op("Reshape", mixed, ints(graph, *rows)), WIDTH, WIDTH, gemm=False)
    return graph.model(*([y, shares] if shown else [y]))


def times(factor: float) -> Callable[[Graph, str], str]:
    return lambda graph, x: str(graph.op("Mul", x, graph.constant(np.float32(factor))))


def over(divisor: float) -> Callable[[Graph, str], str]:
    return lambda graph, x: str(graph.op("Div", x, graph.constant(np.array([divisor], np.float32))))


def inputs(batch: int = 2, length: int = 6) -> Arrays:
    return Arrays({"x": np.random.default_rng(1).normal(0, 1, (batch, length, WIDTH)).astype(np.float32)})


def expected(data: Arrays, scale: float, mask: Floats | float = 0.0) -> Floats:
    """Behind the projection that `written` puts last, whose weights its graph draws first."""
    random = np.random.default_rng(0)
    weight = random.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
    bias = random.normal(0, 0.1, WIDTH).astype(np.float32)
    return np.asarray(formula(data.feeds["x"], Weights(), scale, mask) @ weight + bias, np.float32)


def joined(model: ir.Model) -> int:
    return ops(attention.join(model, ())).count("Attention")


@pytest.mark.parametrize("sides", LAYOUTS)
@pytest.mark.parametrize("shape", [("b", "s"), (2, 6)])
def test_every_layout_computes_the_formula(sides: str, shape: tuple[int | str, int | str]) -> None:
    if sides == "merged" and shape == ("b", "s"):
        pytest.skip("its numbers hold for one size")
    model = written(LAYOUTS[sides], shape=shape, scale=over(SIZE**0.5))
    made = attention.join(model, ())
    assert ops(made).count("Attention") == 1
    assert not {"Softmax", "Transpose"} & set(ops(made))
    for batch, length in ((2, 6),) if shape == (2, 6) else ((2, 6), (1, 9), (3, 1)):
        data = inputs(batch, length)
        np.testing.assert_allclose(run(made, data), expected(data, SIZE**-0.5), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 1.0),
        ({"scale": times(0.25)}, 0.25),
        ({"scale": over(4)}, 0.25),
        ({"before": (0.5, 0.6)}, 0.3),
        ({"before": (-0.5, -0.6), "scale": times(2)}, 0.6),
    ],
)
def test_the_scale_is_the_product_of_all_factors(options: dict[str, Any], scale: float) -> None:
    made = attention.join(written(**options), ())
    node = next(node for node in made.graph if node.op_type == "Attention")
    assert node.attributes["scale"].as_float() == pytest.approx(scale, rel=1e-6)
    assert np.allclose(run(made, inputs()), expected(inputs(), scale), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(6, 6), (1, 6), (2, 1, 6), (2, 1, 6, 6), (1, 2, 1, 6)])
def test_masks_are_added_where_they_were(shape: tuple[int, ...]) -> None:
    mask = np.where(np.random.default_rng(2).random(shape) < 0.4, -3.0, 0).astype(np.float32)
    made = attention.join(written(mask=mask, shape=(2, 6)), ())
    assert ops(made).count("Attention") == 1
    assert np.allclose(run(made, inputs()), expected(inputs(), 1.0, mask), rtol=0, atol=2e-5)


def test_rows_of_all_samples_may_follow() -> None:
    model = written(back="rows", shape=(2, 6))
    made = attention.join(model, ())
    assert ops(made).count("Attention") == 1
    assert np.allclose(run(made, inputs()), expected(inputs(), 1.0).reshape(-1, WIDTH), rtol=0, atol=2e-5)


def interleaved(graph: Graph, x: str, weights: Weights) -> list[str]:
    """Numbers of one head are not side by side."""
    whole = [graph.op("Reshape", product(graph, x, one), ints(graph, 0, -1, SIZE, HEADS)) for one in weights.all]
    orders = ((0, 3, 1, 2), (0, 3, 2, 1), (0, 3, 1, 2))
    return [turned(graph, one, *order) for one, order in zip(whole, orders, strict=True)]


def time_first(graph: Graph, x: str, weights: Weights) -> list[str]:
    orders = ((1, 2, 0, 3), (1, 2, 3, 0), (1, 2, 0, 3))
    pairs = zip(weights.all, orders, strict=True)
    return [turned(graph, parted(graph, product(graph, x, weight)), *order) for weight, order in pairs]


def half_the_size(graph: Graph, x: str, weights: Weights) -> list[str]:
    """Queries and keys are cut in the middle of a head."""
    query, key, value = apart(graph, x, weights)
    cut = [ints(graph, 0), ints(graph, SIZE // 2)]
    return [graph.op("Slice", query, *cut, ints(graph, 3)), graph.op("Slice", key, *cut, ints(graph, 2)), value]


def not_turned(graph: Graph, x: str, weights: Weights) -> list[str]:
    """Keys of a length that happens to be the size of a head."""
    return [turned(graph, parted(graph, product(graph, x, one)), 0, 2, 1, 3) for one in weights.all]


def swapped(graph: Graph, x: str, weights: Weights) -> list[str]:
    """The heads of the values stand in another order."""
    query, key, value = apart(graph, x, weights)
    return [query, key, graph.op("Gather", value, ints(graph, 1, 0), axis=1)]


def grows(graph: Graph, scores: str) -> str:
    """Divided by the length."""
    size = graph.op("Gather", graph.op("Shape", scores), graph.constant(np.int64(3)))
    return str(graph.op("Div", scores, graph.op("Cast", size, to=1)))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: written(interleaved), id="interleaved heads"),
        pytest.param(lambda: written(time_first), id="time first"),
        pytest.param(lambda: written(half_the_size), id="half of each head"),
        pytest.param(lambda: written(not_turned, shape=(2, SIZE)), id="keys not turned"),
        pytest.param(lambda: written(swapped), id="heads swapped"),
        pytest.param(lambda: written(scale=grows), id="scale by length"),
        pytest.param(lambda: written(scale=times(-0.5)), id="negative scale"),
        pytest.param(lambda: written(scale=times(0)), id="no scale"),
        pytest.param(lambda: written(values=2), id="values scaled"),
        pytest.param(lambda: written(shown=True), id="shares are an output"),
        pytest.param(lambda: written(axis=2), id="softmax over queries"),
        pytest.param(lambda: written(mask=np.zeros((2, 1, 6, 1), np.float32), shape=(2, 6)), id="mask of queries"),
        pytest.param(lambda: written(mask=np.zeros(6, np.float32), shape=(2, 6)), id="mask of one axis"),
    ],
)
def test_near_misses_stay_as_they_are(model: Callable[[], ir.Model]) -> None:
    given = model()
    assert attention.join(given, ()) is given


def test_excluded_nodes_stay() -> None:
    model = written()
    for kind in ("Softmax", "Transpose", "Reshape"):
        name = next(node.name or "" for node in model.graph if node.op_type == kind)
        assert attention.join(model, {name}) is model
    assert joined(model) == 1


def test_a_model_that_onnx_cannot_convert_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    model = written()
    assert attention.join(model, ()) is model


def test_the_opset_and_the_format_are_those_that_have_the_operator() -> None:
    made = attention.join(written(), ())
    assert shapes.opset(made) == attention.OPSET
    assert (made.ir_version or 0) >= 11


@pytest.mark.parametrize(("rows", "reader"), [(1, "Expand"), (6, "Attention")])
def test_masks_of_the_operator_are_softened(rows: int, reader: str, tmp_path: Path) -> None:
    row = np.where(np.arange(6) < 4, 0, np.finfo(np.float32).min).astype(np.float32)
    mask = np.tile(row, (rows, 1))
    given = attention.join(written(mask=mask, shape=(2, 6)), ())
    made, decisions = cpu.soften_masks(given, context(inputs(), tmp_path))
    assert [one.op for one in decisions] == [reader]
    assert np.allclose(run(made, inputs()), expected(inputs(), 1.0, mask), rtol=0, atol=2e-5)
    assert cpu.soften_masks(written(), context(inputs(), tmp_path))[1] == []


@pytest.mark.parametrize("step", ["quantize.static", "quantize.dynamic"])
@pytest.mark.parametrize("sides", ["apart", "split"])
def test_quantized_models_have_it_and_say_so(step: str, sides: str, tmp_path: Path) -> None:
    model, data = written(LAYOUTS[sides], scale=over(SIZE**0.5)), inputs(16)
    options = (
        QuantizeStatic(target="x86-vnni", speed_guard=False)
        if step == "quantize.static"
        else QuantizeDynamic(target="x86-vnni")
    )
    outcome = STEPS[step].apply(model, options, context(data, tmp_path))
    assert ops(outcome.model).count("Attention") == 1
    told = [one for one in outcome.decisions if one.op == "Attention" and one.action == "rewritten"]
    assert len(told) == 1
    assert attention.NEEDS in told[0].reason
    assert sqnr(model, outcome.model, data) > 25
    softmax = next(node.name or "" for node in model.graph if node.op_type == "Softmax")
    kept = STEPS[step].apply(model, options.model_copy(update={"exclude": (softmax,)}), context(data, tmp_path))
    assert ops(kept.model).count("Softmax") == 1
    assert sqnr(outcome.model, kept.model, data) > 35


def test_a_gpu_gets_it_in_parts(tmp_path: Path) -> None:
    outcome = STEPS["quantize.static"].apply(written(), QuantizeStatic(target="cuda"), context(inputs(16), tmp_path))
    assert "Attention" not in ops(outcome.model)
    assert io.to_bytes(outcome.model)
