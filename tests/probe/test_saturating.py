"""Where tensors stand on flat ends, against the functions themselves in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.model import io
from lepton_cli.probe import saturating
from lepton_cli.probe.clipping import limits
from lepton_cli.probe.histogram import Histogram
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph


def through(kind: str, **attributes: float) -> tuple[ir.Model, str]:
    """`4 x` through a function; the tensor that the function reads."""
    graph = Graph(opset=20)
    wide = graph.op("Mul", graph.take("x", ["b", 4]), graph.constant(np.full(4, 4.0, np.float32)))
    if kind in ("SiLU", "HardSiLU"):
        gate = graph.op("Sigmoid" if kind == "SiLU" else "HardSigmoid", wide, **attributes)
        return graph.model(graph.op("Mul", wide, gate)), wide
    return graph.model(graph.op(kind, wide, **attributes)), wide


BOTH, LEFT = (True, True), (True, False)


@pytest.mark.parametrize(
    ("kind", "ends", "attributes"),
    [
        ("Sigmoid", BOTH, {}),
        ("Tanh", BOTH, {}),
        ("Erf", BOTH, {}),
        ("HardSigmoid", BOTH, {"alpha": 0.25, "beta": 0.25}),
        ("HardSwish", LEFT, {}),
        ("Gelu", LEFT, {}),
        ("Relu", LEFT, {}),
        ("SiLU", LEFT, {}),
        ("HardSiLU", LEFT, {"alpha": 0.125, "beta": 0.5}),
    ],
)
def test_values_beyond_the_bounds_come_to_the_same(
    kind: str, ends: tuple[bool, bool], attributes: dict[str, float]
) -> None:
    model, wide = through(kind, **attributes)
    found = saturating.bounds(model)
    assert set(found) == {wide}
    low, high = found[wide]
    assert (bool(np.isfinite(low)), bool(np.isfinite(high))) == ends
    session = Session(io.to_bytes(model), threads=1)

    def value(at: float) -> float:
        (result,) = session.run({"x": np.full((1, 4), at / 4, np.float32)}).values()
        return float(np.asarray(result)[0, 0])

    for end in (end for end in (low, high) if np.isfinite(end)):
        assert value(end) == pytest.approx(value(20 * end), abs=1e-4)
        assert value(0.3 * end) != pytest.approx(value(end), abs=1e-4) or kind == "Relu"


def test_every_reader_counts_and_outputs_have_no_bounds() -> None:
    graph = Graph(opset=20)
    wide = graph.op("Neg", graph.take("x", ["b", 4]))
    both = [graph.op("Sigmoid", wide), graph.op("HardSwish", wide)]
    model = graph.model(graph.op("Concat", *both, axis=1))
    assert saturating.bounds(model) == {wide: (-12.0, np.inf)}
    for other in ("Abs", "Neg"):
        graph = Graph(opset=20)
        wide = graph.op("Neg", graph.take("x", ["b", 4]))
        seen = [graph.op("Sigmoid", wide), graph.op(other, wide)]
        assert saturating.bounds(graph.model(graph.op("Concat", *seen, axis=1))) == {}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 0)])
def test_a_product_with_another_gate_has_none(low: int, high: int) -> None:
    graph = Graph(opset=20)
    pair = [graph.op("Neg", graph.take(name, ["b", 4])) for name in ("x", "y")]
    model = graph.model(graph.op("Mul", pair[low], graph.op("Sigmoid", pair[high])))
    assert saturating.bounds(model) == {pair[high]: (-12.0, 12.0)}


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_levels_are_spent_within_the_bounds(method: str) -> None:
    """Of SiLU's input all that is below -12 is 0: the step is that of what is left, and so is the error."""
    values = np.concatenate([np.linspace(-2000, -20, 4000), np.linspace(-12, 50, 4000)]).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    low, high = limits(histogram, method, bounds=(-12.0, np.inf))  # type: ignore[arg-type]
    assert -12.0 <= low < 0
    step = (high - low) / 255
    rounded = np.clip(np.rint(values / step), np.rint(low / step), np.rint(high / step)) * step
    silu = [exact * (1 + np.tanh(exact / 2)) / 2 for exact in (values.astype(np.float64), rounded)]
    assert np.abs(silu[0] - silu[1]).max() < 0.75 * 62 / 255
    assert limits(histogram, method)[0] < -1900 or method == "mse"  # type: ignore[arg-type]
