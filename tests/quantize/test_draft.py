"""Drafts of quantized models, which are only timed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.cache import Cache
from lepton_cli.data.memory import Arrays
from lepton_cli.probe import rewrites
from lepton_cli.progress import Silent
from lepton_cli.quantize import cpu, dynamic, fp16, static
from lepton_cli.quantize.draft import coarse, drafter, drafting
from lepton_cli.quantize.spec import ConvertFp16, QuantizeDynamic, QuantizeStatic, QuantizeWeights
from lepton_cli.step import Outcome
from tests.coupling.networks import Network
from tests.prune.context import context
from tests.quantize.builders import Graph, images, residual_net


def test_models_to_time_are_quantized_as_the_later_step_would(tmp_path: Path) -> None:
    net = Network()
    model = net.model(net.linear(net.input("x", "N", 64), 64, 64))
    data = Arrays({"x": np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)})
    for precision, operator in (("int8", "QuantizeLinear"), ("dynamic", "DynamicQuantizeLinear")):
        quantize = drafter(precision, context(model, tmp_path, data))
        assert quantize is not None
        assert operator in {node.op_type for node in quantize(model).graph}
    assert drafter("float", context(model, tmp_path, data)) is None


def test_models_to_time_are_calibrated_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples of the check data, no search, no measurement, nothing kept; dynamic ones see no data at all."""
    net = Network()
    model = net.model(net.linear(net.input("x", "N", 64), 64, 64))
    data = Arrays({"x": np.zeros((32, 64), np.float32)})
    given = context(model, tmp_path, data, cache=tmp_path)
    asked: list[tuple[Any, Any, Any]] = []

    def asking(*arguments: Any) -> Any:
        asked.append(arguments)
        return Outcome(model, 1)

    monkeypatch.setattr(static, "quantize", asking)
    monkeypatch.setattr(dynamic, "quantize", asking)
    for precision in ("int8", "dynamic"):
        quantize = drafter(precision, given)
        assert quantize is not None
        assert quantize(model) is model
    (_, first, one), (_, second, two) = asked
    quick = {"calibration": "minmax", "equalise": False, "bias_correction": False, "rounding": "nearest"}
    unguarded = {"speed_guard": False, "fidelity_guard": False}
    assert first == QuantizeStatic.model_validate({"step": "quantize.static", **unguarded, **quick})
    assert second == QuantizeDynamic(step="quantize.dynamic")
    assert one.calibration is one.check
    assert (one.draft, two.draft) == (True, True)
    assert (one.cache, two.cache, two.calibration) == (Cache(None), Cache(None), None)
    assert sum(len(batch.feeds["x"]) for batch in one.check.batches(4)) == 4
    assert isinstance(one.progress, Silent)


def attention() -> ir.Model:
    """Two heads of 16 over padded rows, and a projection behind them."""
    graph = Graph()
    x, length, shape = graph.take("x", ["b", 4, 32]), 4, graph.constant(np.array([0, 4, 2, 16]))
    query, keys, values = (
        graph.op("Transpose", graph.op("Reshape", graph.linear(x, 32, 32, gemm=False), shape), perm=perm)
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    mask = graph.constant(np.where(np.arange(length) < 3, 0, np.finfo(np.float32).min).astype(np.float32))
    weights = graph.op("Softmax", graph.op("Add", graph.op("MatMul", query, keys), mask), axis=-1)
    mixed = graph.op("Transpose", graph.op("MatMul", weights, values), perm=[0, 2, 1, 3])
    return graph.model(graph.linear(graph.op("Reshape", mixed, graph.constant([0, 4, 32])), 32, 32, gemm=False))


def drawn(model: ir.Model) -> list[object]:
    """All of a graph but the numbers that it computes with; those of whole numbers are sizes and axes."""

    def told(value: ir.Value | None) -> object:
        held = None if value is None else value.const_value
        name = None if value is None else value.name
        if held is None:
            return name
        return name, held.dtype, list(held.shape), held.numpy().tolist() if held.dtype == ir.DataType.INT64 else None

    return [
        (
            node.op_type,
            node.domain,
            node.name,
            [told(v) for v in node.inputs],
            sorted(map(str, node.attributes.items())),
        )
        for node in model.graph
    ]


REAL: dict[str, Any] = {
    "int8": (static.quantize, QuantizeStatic(speed_guard=False, equalise=False)),
    "dynamic": (dynamic.quantize, QuantizeDynamic()),
    "fp16": (fp16.convert, ConvertFp16()),
}


@pytest.mark.parametrize(
    ("precision", "made"),
    [("int8", residual_net), ("fp16", residual_net), ("int8", attention), ("dynamic", attention), ("fp16", attention)],
)
def test_a_draft_is_drawn_as_the_real_one_and_nothing_of_it_is_run(
    precision: Any, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made()
    random = np.random.default_rng(1)
    data = images(32) if made is residual_net else Arrays({"x": random.normal(size=(32, 4, 32)).astype(np.float32)})
    step, options = REAL[precision]
    given = context(model, tmp_path, data)
    wanted = step(model, options, given)
    assert wanted.changed

    def fail(*_: object, **__: object) -> None:
        pytest.fail("a draft is run")

    monkeypatch.setattr(rewrites, "Given", fail)
    for module in (static, dynamic, fp16, cpu):
        monkeypatch.setattr(module, "Reference", fail)
    quantize = drafter(precision, given)
    assert quantize is not None
    draft = quantize(model)
    assert drawn(draft) == drawn(wanted.model)
    if precision != "fp16":  # masks decide how long a softmax takes
        floats = [v.const_value for v in draft.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
        assert min(float(one.numpy().min()) for one in floats if one is not None) >= cpu.SOFT


def test_steps_that_are_drafted_keep_what_decides_about_kernels_and_bytes() -> None:
    given = QuantizeStatic(
        prefer="size", activations="int16", exclude=("head",), target="arm", calibration="percentile",
        accuracy_guard={"max_drop": "1 pp"},
    )  # fmt: skip
    rough = coarse(given)
    changed = {name for name in QuantizeStatic.model_fields if getattr(rough, name) != getattr(given, name)}
    quick = {
        "calibration",
        "equalise",
        "bias_correction",
        "rounding",
        "speed_guard",
        "fidelity_guard",
        "accuracy_guard",
    }
    assert changed <= quick
    assert (rough.calibration, rough.accuracy_guard, rough.speed_guard) == ("minmax", None, False)
    assert coarse(ConvertFp16()) == ConvertFp16(repair=False)
    for same in (QuantizeDynamic(), QuantizeWeights(bits=4, symmetric=False)):
        assert coarse(same) is same


def test_a_draft_may_look_at_few_samples_and_at_nothing_else(tmp_path: Path) -> None:
    net = Network()
    model = net.model(net.linear(net.input("x", "N", 64), 64, 64))
    data = Arrays({"x": np.arange(32 * 64, dtype=np.float32).reshape(32, 64)})
    given = dataclasses.replace(
        context(model, tmp_path, data, cache=tmp_path), evaluation=data, score=lambda *_: pytest.fail("judged")
    )
    static_, dynamic_ = drafting(QuantizeStatic(), given), drafting(QuantizeDynamic(), given)
    for one in (static_, dynamic_):
        assert (one.evaluation, one.score, one.draft, one.cache) == (None, None, True, Cache(None))
        (batch,) = one.check.batches(8)
        np.testing.assert_array_equal(batch.feeds["x"], data_of(data)[:4])
        same = {"workdir", "provider", "threads", "seed", "batch", "original"}
        assert all(getattr(one, name) == getattr(given, name) for name in same)
    assert static_.calibration is static_.check
    assert dynamic_.calibration is None


def data_of(data: Arrays) -> np.ndarray:
    return np.concatenate([batch.feeds["x"] for batch in data.batches()])
