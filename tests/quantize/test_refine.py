"""Every repair on a model that it must mend, and on one where it must be refused and leave nothing behind."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.probe import calibration
from lepton_cli.probe.distances import Closeness, Reference
from lepton_cli.quantize import choose, equalise, qdq, refine, smooth
from lepton_cli.quantize.spec import QuantizeStatic
from lepton_cli.quantize.targets import TARGETS
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph, context, ops

#: What switches single repairs off.
NO_EQUALISE = {"equalise": False}
NO_RANGES = {"calibration": "minmax"}
NO_ROUNDING = {"rounding": "nearest", "bias_correction": False}


def everything(model: ir.Model) -> choose.Choice:
    return choose.candidates(model, {node.name or "" for node in model.graph})


def best(model: ir.Model, data: Arrays, tmp_path: Path, target: str = "x86-vnni", **options: Any) -> refine.Best:
    choice, here = everything(model), context(data, tmp_path)
    found = calibration.collect(model, choose.activations(model, choice), data, here)
    params = QuantizeStatic.model_validate({"step": "quantize.static", "target": target, **options})
    return refine.best(model, choice, found, TARGETS[target], params, Reference(model, here), data, here)


def outputs(model: ir.Model, data: Arrays) -> np.ndarray:
    """What the model gives for the first 64 samples."""
    feeds = {name: array[:64] for name, array in data.feeds.items()}
    return next(iter(Session(io.to_bytes(model), threads=1).run(feeds).values())).astype(np.float64)


def measured(model: ir.Model, made: refine.Best, data: Arrays) -> float:
    """SQNR of the written model, by numpy."""
    exact, found = outputs(model, data), outputs(made.write(everything(model)), data)
    return 10 * math.log10(np.square(exact).sum() / np.square(exact - found).sum())


def constant(model: ir.Model, name: str) -> np.ndarray:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def codes(matrix: np.ndarray, power: int = -6) -> np.ndarray:
    """Weights that 8 bits hold exactly: every channel (column) has 127 steps of a power of two."""
    made = np.rint(matrix * 40).clip(-126, 126)
    made[0] = 127
    return (made * 2.0**power).astype(np.float32)


# Cross-layer equalisation


def pair(spread: np.ndarray, use: np.ndarray) -> ir.Model:
    """Conv -> Relu -> Conv; the channels between are `spread` times wider and count `use` times as much."""
    graph = Graph(seed=3)
    x = graph.conv(graph.take("x", ["b", 3, 8, 8]), 3, 16, 1)
    model = graph.model(graph.conv(x, 16, 16, 1, relu=False))
    for name, factor in (("w0", spread.reshape(16, 1, 1, 1)), ("w1", spread), ("w2", use.reshape(1, 16, 1, 1))):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor((constant(model, name) * factor).astype(np.float32), name=name)
    return model


def pictures(count: int = 80) -> Arrays:
    return Arrays({"x": np.random.default_rng(1).normal(0.2, 1, (count, 3, 8, 8)).astype(np.float32)})


WIDE = np.array([100.0] + [1] * 15)
ALONE = {**NO_RANGES, **NO_ROUNDING}


def test_equalisation_is_kept_where_narrow_channels_count(tmp_path: Path) -> None:
    model, data = pair(WIDE, 1 / WIDE), pictures()
    plain = best(model, data, tmp_path, equalise=False, **ALONE)
    made = best(model, data, tmp_path, **ALONE)
    assert made.details.equalised == 1
    assert made.details.repairs["equalise"] > made.details.repairs["none"] + 3
    assert measured(model, made, data) > measured(model, plain, data) + 3
    assert measured(model, made, data) == pytest.approx(made.details.repairs["equalise"], abs=0.01)
    assert measured(model, plain, data) == pytest.approx(plain.details.repairs["none"], abs=0.01)
    assert made.details.repairs["none"] == plain.details.repairs["none"]
    # The ranges are those of the equalised model: each channel is multiplied by the root of widest / own.
    results = np.einsum("oi,bihw->obhw", constant(model, "w0")[:, :, 0, 0], data.feeds["x"]).reshape(16, -1)
    widest = np.maximum(results.max(axis=1) + constant(model, "w1"), 0)
    scale = np.sqrt(widest.max() / np.maximum(widest, widest.max() / 64))
    assert np.allclose(constant(made.model, "w1"), constant(model, "w1") * scale, rtol=1e-4)
    kernel, bias = constant(made.model, "w0")[:, :, 0, 0], constant(made.model, "w1").reshape(16, 1, 1)
    inner = np.einsum("oi,bihw->bohw", kernel, data.feeds["x"]) + bias
    assert made.plan.ranges["t1"] == pytest.approx((0, inner.max()), rel=1e-5)
    assert not np.allclose(constant(made.model, "w0"), constant(model, "w0"))


def test_equalisation_is_refused_where_only_the_wide_channel_counts(tmp_path: Path) -> None:
    model, data = pair(WIDE, np.eye(16)[0]), pictures()
    made = best(model, data, tmp_path, **ALONE)
    assert made.details.repairs["equalise"] <= made.details.repairs["none"] + 0.2
    assert made.details.equalised is None
    assert made.model is model
    forced = best(model, data, tmp_path, equalise=True, **ALONE)
    assert forced.details.equalised == 1
    assert forced.model is not model


@pytest.mark.parametrize("demanded", [False, True])
def test_what_a_repair_must_reach_is_said_so_that_few_samples_may_settle_it(
    demanded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the trials: none, equalised, three clipped and rounded ones; what is demanded is run on all."""
    asked: list[tuple[int, float]] = []
    scores = iter([30.0, 140.0, 29.0, 32.0, 31.0, 33.0])

    def closeness(self: Reference, made: ir.Model, *few: float) -> Closeness:
        if few:
            asked.append((int(few[0]), few[1]))
        found = next(scores)
        return Closeness(found, found)

    monkeypatch.setattr(Reference, "closeness", closeness)
    model, data = pair(WIDE, 1 / WIDE), pictures()
    made = best(model, data, tmp_path, **({"equalise": True, "rounding": "gptq"} if demanded else {}))
    best_so_far = [29.0, 29.0, 32.0, 32.0] if demanded else [30.0, 30.0, 32.0, 32.0]
    wanted = [-math.inf, *(score + refine.WORTH_DB for score in best_so_far)]
    if demanded:
        wanted[1] = wanted[4] = -math.inf
    assert asked == [(8, pytest.approx(one)) for one in wanted]
    assert made.details.repairs == {
        "none": 30, "equalise": 29, "percentile": 32, "mse": 31, "gptq": 33,
    }  # fmt: skip
    assert made.details.equalised == (1 if demanded else None)


def test_even_channels_are_equalised_only_on_demand(tmp_path: Path) -> None:
    model, data = pair(np.ones(16), np.ones(16)), pictures()
    assert "equalise" not in best(model, data, tmp_path, **ALONE).details.repairs
    assert "equalise" in best(model, data, tmp_path, equalise=True, **ALONE).details.repairs


def test_equalisation_that_changes_the_float_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = pair(WIDE, 1 / WIDE), pictures()
    true = equalise.equalise

    for factor, same in ((1.001, False), (1.00001, True)):  # 60 and 100 dB

        def changed(*arguments: Any, factor: float = factor) -> tuple[ir.Model, int]:
            made, count = true(*arguments)
            for name in ("w2", "w3"):
                value = made.graph.initializers[name]
                value.const_value = ir.tensor(constant(made, name) * np.float32(factor), name=name)
            return made, count

        monkeypatch.setattr(equalise, "equalise", changed)
        made = best(model, data, tmp_path, equalise=True, **ALONE)
        assert ("equalise" in made.details.repairs) == same
        assert (made.model is model) == (not same)


def test_no_pairs_no_trial(tmp_path: Path) -> None:
    data = Arrays({"x": np.random.default_rng(0).normal(size=(70, 16)).astype(np.float32)})
    graph = Graph()
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 16]), graph.constant(codes(np.ones((16, 16))))))
    for wanted in (None, True):
        details = best(model, data, tmp_path, equalise=wanted, **ALONE).details
        assert set(details.model_dump(exclude_none=True)) == {"repairs", "calibration"}


def test_clipped_pairs_are_named(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 8, 8]), 3, 16, 1, relu=False)
    x = graph.op("Clip", x, *(graph.constant(np.float32(value)) for value in (0, 6)))
    model = graph.model(graph.conv(x, 16, 16, 1, relu=False))
    made = best(model, pictures(), tmp_path, **ALONE)
    assert made.details.equalise_skipped.nodes == ("Conv_0",)
    assert best(model, pictures(), tmp_path, equalise=False, **ALONE).details.equalise_skipped is None


# Smoothing


def product(spread: np.ndarray, use: np.ndarray) -> ir.Model:
    """x [b, 32] times `spread`, then a MatMul whose rows count `use` times as much."""
    graph = Graph(seed=4)
    wide = graph.op("Mul", graph.take("x", ["b", 32]), graph.constant(spread.astype(np.float32)))
    matrix = graph.random.normal(size=(32, 32)) * use[:, None]
    return graph.model(graph.op("MatMul", wide, graph.constant(matrix.astype(np.float32))))


def table(count: int = 80, width: int = 32) -> Arrays:
    return Arrays({"x": np.random.default_rng(2).uniform(-1, 1, (count, width)).astype(np.float32)})


BROAD = np.array([300.0, 200] + [1] * 30)


def test_smoothing_is_kept_where_narrow_channels_count(tmp_path: Path) -> None:
    model, data = product(BROAD, 1 / BROAD), table()
    plain = best(model, data, tmp_path, equalise=False, **ALONE)
    made = best(model, data, tmp_path, **ALONE)
    assert made.details.smoothed == 1
    tried = {strength: made.details.repairs[f"smooth {strength}"] for strength in smooth.STRENGTHS}
    assert max(tried.values()) > made.details.repairs["none"] + 10
    assert measured(model, made, data) > measured(model, plain, data) + 10
    assert measured(model, made, data) == pytest.approx(max(tried.values()), abs=0.3)
    assert ops(made.model) == ["Mul", "Mul", "MatMul"]
    # The range of the new tensor is what it really holds.
    even = data.feeds["x"] * BROAD.astype(np.float32) * constant(made.model, "t0.smooth")
    assert made.plan.ranges["t0.smoothed"] == pytest.approx((even.min(), even.max()), rel=1e-5)


def test_sequences_are_smoothed_along_their_last_axis(tmp_path: Path) -> None:
    graph = Graph(seed=4)
    wide = graph.op("Mul", graph.take("x", ["b", 5, 32]), graph.constant(BROAD.astype(np.float32)))
    matrix = graph.random.normal(size=(32, 32)) / BROAD[:, None]
    model = graph.model(graph.op("MatMul", wide, graph.constant(matrix.astype(np.float32))))
    data = Arrays({"x": table(400).feeds["x"].reshape(80, 5, 32)})
    made = best(model, data, tmp_path, **ALONE)
    assert made.details.smoothed == 1
    assert measured(model, made, data) > made.details.repairs["none"] + 10


def test_smoothing_keeps_the_best_strength(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = product(BROAD, 1 / BROAD), table()
    factors = {}
    for strengths in ((0.05, 0.5, 0.1), (0.5, 0.05), (0.5,)):
        monkeypatch.setattr(smooth, "STRENGTHS", strengths)
        made = best(model, data, tmp_path, **ALONE)
        scores = {strength: made.details.repairs[f"smooth {strength}"] for strength in strengths}
        assert max(scores, key=lambda strength: scores[strength]) == 0.5
        factors[strengths] = constant(made.model, "t0.smooth").tolist()
    assert len({tuple(values) for values in factors.values()}) == 1


def test_smoothing_is_refused_where_only_the_wide_channel_counts(tmp_path: Path) -> None:
    model, data = product(BROAD, np.eye(32)[0]), table()
    made = best(model, data, tmp_path, **ALONE)
    assert {name for name in made.details.repairs if name != "none"} == {f"smooth {s}" for s in smooth.STRENGTHS}
    assert max(made.details.repairs.values()) <= made.details.repairs["none"] + 0.2
    assert made.details.smoothed is None
    assert made.model is model
    assert set(made.plan.ranges) == {"t0"}


def test_even_inputs_are_not_smoothed(tmp_path: Path) -> None:
    model, data = product(np.ones(32), np.ones(32)), table()
    assert set(best(model, data, tmp_path, **ALONE).details.repairs) == {"none"}
    assert set(best(product(BROAD, 1 / BROAD), data, tmp_path, equalise=False, **ALONE).details.repairs) == {"none"}


# Calibration methods


def exact_product(width: int = 256) -> ir.Model:
    """x [b, width] times a matrix that 8 bits hold exactly: all error comes from the input's range."""
    graph = Graph(seed=5)
    matrix = codes(graph.random.normal(size=(width, 16)))
    return graph.model(graph.op("MatMul", graph.take("x", ["b", width]), graph.constant(matrix)))


RANGES_ALONE = {**NO_EQUALISE, **NO_ROUNDING}


def test_percentile_is_kept_where_a_rare_value_does_not_count(tmp_path: Path) -> None:
    model, data = exact_product(), table(100, 256)
    data.feeds["x"][90, 7] = 100  # beyond the 64 samples that are compared
    plain = best(model, data, tmp_path, **RANGES_ALONE, calibration="minmax")
    made = best(model, data, tmp_path, **RANGES_ALONE)
    assert made.details.calibration == "percentile"
    assert made.details.repairs["percentile"] > made.details.repairs["none"] + 20
    assert measured(model, made, data) > measured(model, plain, data) + 20
    assert measured(model, made, data) == pytest.approx(made.details.repairs["percentile"], abs=0.01)
    assert plain.plan.ranges["x"][1] == 100
    assert made.plan.ranges["x"][1] <= 1


def test_percentile_and_mse_are_refused_where_rare_values_count(tmp_path: Path) -> None:
    model, data = exact_product(), table(100, 256)
    data.feeds["x"][5, 7] = 60
    made = best(model, data, tmp_path, **RANGES_ALONE)
    assert made.details.calibration == "minmax"
    assert made.details.repairs["percentile"] < made.details.repairs["none"]
    assert made.details.repairs["mse"] <= made.details.repairs["none"] + 0.2
    assert made.plan.ranges["x"] == (float(data.feeds["x"].min()), 60)
    assert made.model is model


def test_mse_is_kept_where_a_little_clipping_pays(tmp_path: Path) -> None:
    model, data = exact_product(512), table(100, 512)
    data.feeds["x"] *= 0.5
    # More than percentile leaves out (one in 20000 at each end), but only in samples that are not compared.
    data.feeds["x"][80:84, 3], data.feeds["x"][84:88, 3] = 1, -1
    made = best(model, data, tmp_path, **RANGES_ALONE)
    plain = best(model, data, tmp_path, **RANGES_ALONE, calibration="minmax")
    assert made.details.calibration == "mse"
    assert made.details.repairs["percentile"] <= made.details.repairs["none"] + 0.2
    assert measured(model, made, data) > measured(model, plain, data) + 0.2
    assert measured(model, made, data) == pytest.approx(made.details.repairs["mse"], abs=0.01)


def test_a_named_method_is_taken_without_trials(tmp_path: Path) -> None:
    model, data = exact_product(), table(100, 256)
    data.feeds["x"][90, 7] = 100
    made = best(model, data, tmp_path, **RANGES_ALONE, calibration="percentile")
    assert set(made.details.repairs) == {"none"}
    assert made.details.calibration == "percentile"
    assert made.plan.ranges["x"][1] <= 1


def test_sixteen_bits_need_no_other_method(tmp_path: Path) -> None:
    model, data = exact_product(), table(100, 256)
    data.feeds["x"][90, 7] = 100
    made = best(model, data, tmp_path, **RANGES_ALONE, activations="int16")
    assert set(made.details.repairs) == {"none"}
    assert made.details.calibration == "minmax"
    assert made.plan.activations == "int16"
    eight = best(model, data, tmp_path, **RANGES_ALONE, calibration="minmax")
    assert made.details.repairs["none"] > eight.details.repairs["none"] + 30


# Rounding

ROUNDING_ALONE = {**NO_EQUALISE, **NO_RANGES, "activations": "int16"}


def dense(matrix: np.ndarray, bias: float = 0.5) -> ir.Model:
    graph = Graph()
    names = [graph.constant(array) for array in (matrix.astype(np.float32), np.full(matrix.shape[1], bias, np.float32))]
    return graph.model(graph.op("Gemm", graph.take("x", ["b", len(matrix)]), *names))


def mixtures(mean: float = 0.0) -> Arrays:
    random = np.random.default_rng(6)
    mixed = random.normal(size=(96, 6)) @ random.normal(size=(6, 48)) + 0.05 * random.normal(size=(96, 48))
    return Arrays({"x": (mixed + mean).astype(np.float32)})


def irregular() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(48, 24))


@pytest.mark.parametrize(("target", "limit"), [("x86", 63), ("x86-vnni", 127), ("arm", 127)])
def test_optimal_brain_rounding_is_kept_where_inputs_are_correlated(target: str, limit: int, tmp_path: Path) -> None:
    model, data = dense(irregular()), mixtures()
    plain = best(model, data, tmp_path, target, **ROUNDING_ALONE, **NO_ROUNDING)
    made = best(model, data, tmp_path, target, **ROUNDING_ALONE)
    assert made.details.rounding == "gptq"
    assert plain.details.rounding is None
    assert made.details.repairs["gptq"] > made.details.repairs["none"] + 3
    assert measured(model, made, data) > measured(model, plain, data) + 3
    assert measured(model, made, data) == pytest.approx(made.details.repairs["gptq"], abs=0.01)
    written = [value.const_value for value in made.write(everything(model)).graph.initializers.values()]
    weights = [t.numpy().astype(int) for t in written if t is not None and t.dtype == ir.DataType.INT8 and t.size > 48]
    assert [np.abs(weight).max() for weight in weights] == [limit]
    (scales,) = made.plan.scales.values()
    assert np.allclose(weights[0] * scales[1], constant(made.model, "w0"), atol=1e-6)


def test_rounding_is_refused_where_weights_are_on_their_grid(tmp_path: Path) -> None:
    model, data = dense(codes(irregular())), mixtures()
    made = best(model, data, tmp_path, **ROUNDING_ALONE)
    assert made.details.rounding == "nearest"
    assert made.details.repairs["gptq"] <= made.details.repairs["none"] + 0.2
    assert made.model is model
    assert made.plan.scales == {}
    forced = best(model, data, tmp_path, **ROUNDING_ALONE, rounding="gptq")
    assert forced.details.rounding == "gptq"
    assert list(forced.plan.scales) == ["w0"]


def test_bias_correction_is_kept_where_inputs_have_a_mean(tmp_path: Path) -> None:
    model, data = dense(irregular()), mixtures(mean=20)
    plain = best(model, data, tmp_path, "x86", **ROUNDING_ALONE, **NO_ROUNDING)
    made = best(model, data, tmp_path, "x86", **ROUNDING_ALONE, rounding="nearest")
    assert made.details.rounding == "nearest"
    assert made.details.repairs["nearest"] > made.details.repairs["none"] + 5
    assert measured(model, made, data) > measured(model, plain, data) + 5
    assert not np.array_equal(constant(made.model, "w1"), constant(model, "w1"))
    assert set(made.details.repairs) == {"none", "nearest"}


def test_bias_correction_is_refused_where_nothing_is_lost(tmp_path: Path) -> None:
    model, data = dense(codes(irregular())), mixtures(mean=20)
    made = best(model, data, tmp_path, **ROUNDING_ALONE, rounding="nearest")
    assert made.details.repairs["nearest"] <= made.details.repairs["none"] + 0.2
    assert made.model is model
    assert np.array_equal(constant(made.model, "w1"), np.full(24, 0.5, np.float32))


def test_biases_stay_where_their_correction_is_switched_off(tmp_path: Path) -> None:
    model, data = dense(irregular()), mixtures(mean=20)
    made = best(model, data, tmp_path, "x86", **ROUNDING_ALONE, rounding="gptq", bias_correction=False)
    assert made.details.rounding == "gptq"
    assert np.array_equal(constant(made.model, "w1"), constant(model, "w1"))
    assert not np.array_equal(constant(made.model, "w0"), constant(model, "w0"))


def test_a_fifth_of_a_decibel_is_what_a_repair_must_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = exact_product(), table(100, 256)
    for gain, name in ((0.19, "minmax"), (0.21, "percentile")):
        scores = iter([30.0, 30.0 + gain, 30.0])
        monkeypatch.setattr(
            Reference, "closeness", lambda self, made, *few, scores=scores: Closeness(next(scores), 0.0)
        )
        assert best(model, data, tmp_path, **RANGES_ALONE).details.calibration == name


def test_exactly_the_worth_of_a_repair_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = exact_product(32), table(100, 32)
    monkeypatch.setattr(refine, "WORTH_DB", 0.25)
    for gain, name in ((0.25, "minmax"), (0.2501, "percentile")):
        scores = iter([30.0, 30.0 + gain, 30.0])
        monkeypatch.setattr(
            Reference, "closeness", lambda self, made, *few, scores=scores: Closeness(next(scores), 0.0)
        )
        assert best(model, data, tmp_path, **RANGES_ALONE).details.calibration == name


def test_scores_are_reported_to_two_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([30.12345, 31.98765, 29.111])
    monkeypatch.setattr(Reference, "closeness", lambda self, made, *few: Closeness(next(scores), 0.0))
    made = best(exact_product(32), table(100, 32), tmp_path, **RANGES_ALONE)
    assert made.details.repairs == {"none": 30.12, "percentile": 31.99, "mse": 29.11}


@pytest.mark.parametrize(("activations", "levels"), [("int8", 256), ("int16", 65536)])
def test_ranges_are_chosen_for_the_levels_of_the_type(
    activations: str, levels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    true = calibration.Ranges.limits

    def limits(found: calibration.Ranges, method: Any, levels: int = 0) -> Any:
        asked.append(levels)
        return true(found, method, levels)

    monkeypatch.setattr(calibration.Ranges, "limits", limits)
    best(exact_product(32), table(100, 32), tmp_path, **RANGES_ALONE, activations=activations)
    assert set(asked) == {levels}


def test_each_repair_must_be_better_than_the_last_one_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = exact_product(32), table(100, 32)
    for scores, name in (([30.0, 31, 31.1, 40], "percentile"), ([30.0, 31, 31.3, 40], "mse")):
        given = iter(scores)
        monkeypatch.setattr(Reference, "closeness", lambda self, made, *few, given=given: Closeness(next(given), 0.0))
        made = best(model, data, tmp_path, **NO_EQUALISE)
        assert made.details.calibration == name
        assert made.details.repairs == {"none": 30.0, "percentile": 31, "mse": scores[2], "gptq": 40}


def test_repairs_build_on_each_other(tmp_path: Path) -> None:
    model, data = pair(WIDE, 1 / WIDE), pictures()
    alone = best(model, data, tmp_path, equalise=False, **ALONE)
    made = best(model, data, tmp_path)
    assert made.details.equalised == 1
    last = made.details.repairs["gptq" if made.details.rounding == "gptq" else "equalise"]
    assert measured(model, made, data) >= last - 0.01
    assert measured(model, made, data) > measured(model, alone, data) + 3


def test_any_part_of_the_choice_can_be_written(tmp_path: Path) -> None:
    model, data = pair(np.ones(16), np.ones(16)), pictures()
    made = best(model, data, tmp_path, **ALONE)
    choice = everything(model)
    counts = [ops(made.write(one)).count("DequantizeLinear") for one in (choice, choice.without(["Conv_2"], "", model))]
    assert counts[0] > counts[1] > 0
    expected = qdq.write(model, qdq.Scheme(TARGETS["x86-vnni"], choice, made.plan.ranges))
    assert np.array_equal(outputs(made.write(choice), data), outputs(expected, data))


def test_what_is_written_leaves_the_models_it_is_made_of_as_they_are(tmp_path: Path) -> None:
    """Also a part of the choice, which is written into a copy with the weights as they were before rounding."""
    model, data = dense(irregular()), mixtures()
    made = best(model, data, tmp_path, **ROUNDING_ALONE)
    assert made.model is not made.exact
    before = [io.to_bytes(one) for one in (made.model, made.exact)]
    choice = everything(model)
    none = made.write(choice.without(choice.anchors, "", model))
    assert np.array_equal(outputs(none, data), outputs(model, data))
    made.write(choice)
    assert [io.to_bytes(one) for one in (made.model, made.exact)] == before


class Unasked(Reference):
    """A fidelity that must not be asked."""

    def closeness(self, model: ir.Model, *few: float) -> Closeness:
        raise AssertionError


def clipped() -> Arrays:
    """An input with a rare value that only samples which are not compared have."""
    data = table(100, 256)
    data.feeds["x"][90, 7] = 100
    return data


@pytest.mark.parametrize("kept", ["equalise", "smooth", "percentile", "gptq", "nothing"])
def test_repairs_decided_before_are_made_without_judging(kept: str, tmp_path: Path) -> None:
    given: dict[str, tuple[ir.Model, Arrays, dict[str, Any]]] = {
        "equalise": (pair(WIDE, 1 / WIDE), pictures(), ALONE),
        "smooth": (product(BROAD, 1 / BROAD), table(), ALONE),
        "percentile": (exact_product(), clipped(), RANGES_ALONE),
        "gptq": (dense(irregular()), mixtures(), ROUNDING_ALONE),
        "nothing": (dense(codes(irregular())), mixtures(), ROUNDING_ALONE),
    }
    model, data, options = given[kept]
    first = best(model, data, tmp_path, **options)
    assert {name.split()[0] for name in first.repairs} == ({kept} - {"nothing"})
    choice, here = everything(model), context(data, tmp_path)
    found = calibration.collect(model, choose.activations(model, choice), data, here)
    params = QuantizeStatic.model_validate({"step": "quantize.static", "target": "x86-vnni", **options})
    again = refine.best(
        model, choice, found, TARGETS["x86-vnni"], params, Unasked(model, here), data, here, first.repairs
    )
    assert again.repairs == first.repairs
    assert io.to_bytes(again.write(choice)) == io.to_bytes(first.write(choice))
    assert (again.details.equalised, again.details.smoothed) == (first.details.equalised, first.details.smoothed)
    assert (again.details.calibration, again.details.rounding) == (first.details.calibration, first.details.rounding)
