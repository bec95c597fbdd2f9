"""SQNR of a candidate's outputs, against the formula written out in numpy."""

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from lepton_cli.data.memory import Arrays
from lepton_cli.probe.distances import Closeness, Reference, _assured, relative_error
from lepton_cli.probe.parts import Division, Segments
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph, Scalars, WithConstants, context


def net(factor: float = 1.0, shift: float = 0.0, start: int = 0) -> ir.Model:
    """`y` = factor x, `z` = x + shift, and `whole`, int64; of input `x` [b, 4] only the columns from `start` on."""
    graph = Graph()
    x = graph.take("x", ["b", 4])
    if start:
        ends = [graph.constant(np.array([value], dtype=np.int64)) for value in (start, 4, 1)]
        x = graph.op("Slice", x, *ends)
    y = graph.op("Mul", x, graph.constant(np.float32(factor)))
    z = graph.op("Add", x, graph.constant(np.float32(shift)))
    whole = graph.op("Cast", x, to=TensorProto.INT64)
    model = graph.model(y, z, whole)
    for value, name in zip(model.graph.outputs, ("y", "z", "whole"), strict=True):
        value.name = name
    model.graph.outputs[2].type = ir.TensorType(ir.DataType.INT64)
    return model


def samples(count: int = 40) -> Arrays:
    return Arrays({"x": np.random.default_rng(0).normal(0.5, 1, (count, 4)).astype(np.float32)})


def decibel(signal: np.ndarray, noise: np.ndarray) -> float:
    signal, noise = signal.astype(np.float64), noise.astype(np.float64)
    return 10 * math.log10(float((signal * signal).sum() / (noise * noise).sum()))


def test_sqnr_is_signal_power_over_error_power_in_decibel(tmp_path: Path) -> None:
    data = samples()
    x = data.feeds["x"]
    fidelity = Reference(net(), context(data, tmp_path))
    assert fidelity.sqnr(net(factor=1.1)) == pytest.approx(20, abs=1e-4)
    assert fidelity.sqnr(net(factor=0.5)) == pytest.approx(20 * math.log10(2), abs=1e-6)
    assert fidelity.sqnr(net(factor=3)) == pytest.approx(-20 * math.log10(2), abs=1e-6)
    expected = decibel(x, (x + np.float32(0.25)) - x)
    assert fidelity.sqnr(net(shift=0.25)) == pytest.approx(expected, abs=1e-6)


def test_the_worst_output_decides(tmp_path: Path) -> None:
    data = samples()
    x = data.feeds["x"]
    fidelity = Reference(net(), context(data, tmp_path))
    assert fidelity.names == ["y", "z"]
    for factor, shift in ((1.01, 0.5), (1.5, 0.01)):
        made = net(factor, shift)
        found = fidelity.by_output(fidelity.run(made))
        expected = {"y": decibel(x, x * np.float32(factor) - x), "z": decibel(x, x + np.float32(shift) - x)}
        assert found == pytest.approx(expected, abs=1e-4)
        assert fidelity.sqnr(made) == min(found.values())


def test_equal_outputs_reach_the_ceiling(tmp_path: Path) -> None:
    fidelity = Reference(net(), context(samples(), tmp_path))
    assert fidelity.sqnr(net()) == 140.0
    # A difference far below float32's resolution of the signal is cut at the ceiling, too.
    tiny = [
        {"y": batch["y"] + 1e-12, "z": batch["z"]}
        for batch in ({k: v.astype(float) for k, v in b.items()} for b in fidelity.reference)
    ]
    assert fidelity.by_output(tiny) == {"y": 140.0, "z": 140.0}


def test_a_model_without_float_outputs_is_never_worse(tmp_path: Path) -> None:
    model = net()
    del model.graph.outputs[:2]
    fidelity = Reference(model, context(samples(), tmp_path))
    assert fidelity.names == []
    assert fidelity.sqnr(model) == 140.0


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_float_types_are_compared(kind: int, tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.op("Cast", graph.take("x", ["b", 4]), to=kind))
    model.graph.outputs[0].type = ir.TensorType(ir.DataType(kind))
    assert len(Reference(model, context(samples(), tmp_path)).names) == 1


def test_outputs_that_are_not_finite_or_change_shape_count_as_lost(tmp_path: Path) -> None:
    fidelity = Reference(net(), context(samples(), tmp_path))
    assert fidelity.sqnr(net(factor=math.nan)) == -math.inf
    assert fidelity.sqnr(net(shift=math.inf)) == -math.inf
    assert fidelity.sqnr(net(start=2)) == -math.inf


def test_what_is_infinite_in_the_float_model_is_left_out(tmp_path: Path) -> None:
    data = samples()
    x = data.feeds["x"]
    x[3, 1], x[35, 0] = np.inf, -np.inf
    fidelity = Reference(net(), context(data, tmp_path))
    rest = x[np.isfinite(x)]
    found = fidelity.by_output(fidelity.run(net(1.25, 0.5)))
    assert found == pytest.approx({"y": 20 * math.log10(4), "z": decibel(rest, np.full(rest.shape, 0.5))}, abs=1e-5)


def test_no_signal_at_all_is_far_below_zero_but_finite(tmp_path: Path) -> None:
    data = Arrays({"x": np.zeros((4, 4), dtype=np.float32)})
    fidelity = Reference(net(), context(data, tmp_path))
    assert fidelity.sqnr(net(shift=1)) == pytest.approx(10 * math.log10(1e-300 / 16))


def test_the_first_64_samples_are_compared_in_batches_of_16(tmp_path: Path) -> None:
    fidelity = Reference(net(), context(samples(200), tmp_path))
    assert [batch.start for batch in fidelity.batches] == [0, 16, 32, 48]
    assert [len(batch["y"]) for batch in fidelity.reference] == [16] * 4
    counts = {size: len(Reference(net(), context(samples(200), tmp_path), batch=size).batches) for size in (7, 8, 9)}
    assert counts == {7: 10, 8: 8, 9: 8}


@pytest.mark.parametrize(("wanted", "batches"), [(7, 2), (8, 2), (9, 3), (1, 1), (99, 3)])
def test_batches_go_on_until_enough_samples_are_seen(wanted: int, batches: int, tmp_path: Path) -> None:
    fidelity = Reference(net(), context(samples(12), tmp_path), most=wanted, batch=4)
    assert len(fidelity.batches) == batches


@pytest.mark.parametrize(("asked", "kept"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 12), (40, 12)])
def test_the_first_samples_are_those_of_whole_batches(asked: int, kept: int, tmp_path: Path) -> None:
    data = samples(12)
    whole = Reference(net(), context(data, tmp_path), batch=4)
    few = whole.first(asked)
    assert (few.samples, whole.samples) == (kept, 12)
    x = data.feeds["x"][:kept]
    assert few.sqnr(net(shift=0.25)) == pytest.approx(decibel(x, (x + np.float32(0.25)) - x), abs=1e-6)


def test_samples_are_counted_by_the_longest_input(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.op("Add", graph.take("x", ["b", 4]), graph.take("one", [1])))
    data = WithConstants({"one": np.ones(1, dtype=np.float32)}, x=samples(12).feeds["x"])
    assert len(Reference(model, context(data, tmp_path), most=8, batch=4).batches) == 2


def test_a_batch_of_scalars_counts_as_one_sample(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.op("Relu", graph.take("x", [])))
    data = Scalars({"x": samples(9).feeds["x"][:, 0]})
    assert len(Reference(model, context(data, tmp_path), most=5).batches) == 5


def test_check_data_stand_in_where_there_is_no_calibration(tmp_path: Path) -> None:
    shown = Arrays({"x": np.ones((3, 4), dtype=np.float32)}, name="check")
    fidelity = Reference(net(), context(None, tmp_path, check=shown))
    assert [batch["y"].tolist() for batch in fidelity.reference] == [np.ones((3, 4)).tolist()]
    fidelity = Reference(net(), context(samples(5), tmp_path, check=shown))
    assert [len(batch["y"]) for batch in fidelity.reference] == [5]


def test_a_relative_error_is_a_share_of_the_variance_averaged_over_the_outputs() -> None:
    wanted = {"a": np.array([[0.0, 1.0], [2.0, 5.0]]), "b": np.array([[10.0], [10.0], [13.0]])}
    found = {"a": wanted["a"] + [[1.0, 0.0], [0.0, -2.0]], "b": wanted["b"] + 1.0}
    # Variances summed: 2 x 1 + 2 x 4 = 10 and 1 + 1 + 4 = 6; errors squared: 5 and 3.
    assert relative_error(found, wanted, {}) == pytest.approx((5 / 10 + 3 / 6) / 2)
    assert relative_error(wanted, wanted, {}) == 0


def test_one_sample_has_no_variance_and_no_output_no_error() -> None:
    assert relative_error({"a": np.array([[3.0, 6.0]])}, {"a": np.array([[3.0, 4.0]])}, {}) == pytest.approx(4 / 25)
    assert relative_error({}, {}, {}) == 0
    assert relative_error({"a": np.ones((2, 1))}, {"a": np.zeros((2, 1))}, {}) == pytest.approx(2e12), (
        "nothing to share"
    )


def _mixed(errors: tuple[float, float]) -> ir.Model:
    """Columns of 100 and of 0.1 joined by a Concat, each off by a share of itself."""
    graph = Graph()
    x = graph.take("x", ["b", 4])
    parts = [graph.op("Mul", x, graph.constant(np.float32(scale * (1 + error)))) for scale, error in
             zip((100.0, 0.1), errors, strict=True)]  # fmt: skip
    joined = graph.op("Concat", *parts, axis=1)
    model = graph.model(joined)
    model.graph.outputs[0].name = "y"
    return model


def test_the_worst_part_of_an_output_decides(tmp_path: Path) -> None:
    """Boxes within 1 %, scores off by half: 40 dB over all squares, 6 dB of the scores."""
    reference = Reference(_mixed((0, 0)), context(samples(), tmp_path))
    assert reference.sqnr(_mixed((0.01, 0.5))) == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert reference.sqnr(_mixed((0.5, 0.01))) == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert reference.sqnr(_mixed((0.1, 0.1))) == pytest.approx(20, abs=1e-3)


def test_every_part_of_an_output_has_its_share_of_the_error() -> None:
    random = np.random.default_rng(3)
    wanted = random.normal(0, 1, (6, 8)) * ([100.0] * 4 + [0.1] * 4)
    found = wanted + random.normal(0, 0.01, (6, 8))
    ways = {"y": (Segments(1, (0, 4, 8)),)}
    shares = [
        np.square(found[:, cut] - wanted[:, cut]).sum() / np.square(wanted[:, cut] - wanted[:, cut].mean(axis=0)).sum()
        for cut in (slice(0, 4), slice(4, 8))
    ]
    assert relative_error({"y": found}, {"y": wanted}, ways) == pytest.approx(np.mean(shares))


#: 95 % quantiles of Student's t, from the tables, by the number of samples.
STUDENT = {2: 6.3138, 3: 2.9200, 4: 2.3534, 8: 1.8946, 16: 1.7531, 40: 1.6849}


@pytest.mark.parametrize("count", STUDENT)
def test_what_other_samples_hold_follows_from_the_spread(count: int, tmp_path: Path) -> None:
    """`z` is off by the same in every sample: each left out in turn, written out."""
    data = samples(count)
    here = context(data, tmp_path)
    found = Reference(net(), here).closeness(net(shift=0.1))
    signal = np.square(data.feeds["x"].astype(np.float64)).sum(axis=1)
    noise = np.full(count, 4 * 0.01)
    ratio = noise.sum() / signal.sum()
    others = [np.delete(noise, i).sum() / np.delete(signal, i).sum() for i in range(count)]
    error = math.sqrt((count - 1) / count * sum((one - np.mean(others)) ** 2 for one in others))
    assert found.sqnr_db == pytest.approx(-10 * math.log10(ratio), abs=1e-4)
    assert found.assured_db == pytest.approx(-10 * math.log10(ratio + STUDENT[count] * error), abs=0.1)
    left = ratio - STUDENT[count] * error
    assert 10 ** (-found.hoped_db / 10) == pytest.approx(max(left, 0), abs=0.02 * STUDENT[count] * error)


def test_one_sample_says_nothing_of_others(tmp_path: Path) -> None:
    found = Reference(net(), context(samples(1), tmp_path)).closeness(net(shift=0.1))
    assert found.assured_db == found.sqnr_db < found.hoped_db == 140
    assert Reference(net(), context(samples(), tmp_path)).closeness(net()) == Closeness(140, 140)


@pytest.mark.parametrize(
    ("few", "margin", "runs"),
    [
        (8, -0.1, 5),  # the first 8 samples may hope for what is wanted
        (8, 0.1, 1),  # they may not
        (9, 0.3, 2),  # whole batches
        (40, 99, 5),  # there are no others
        (0, 99, 5),  # nobody asks the first ones
    ],
)
def test_the_rest_is_not_run_where_the_first_samples_settle_it(
    few: int, margin: float, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is hoped for is told by a reference with no other samples, which is held to the formula above."""
    fidelity, made = Reference(net(), context(samples(), tmp_path), batch=8), net(shift=0.1)
    first = Reference(net(), context(samples(8 * math.ceil(min(max(few, 1), 40) / 8)), tmp_path)).closeness(made)
    ran: list[int] = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda *given: ran.append(1) or run(*given))
    found = fidelity.closeness(made, few, first.hoped_db + margin)
    assert len(ran) == runs
    assert found == (first if runs < 5 else fidelity.closeness(made))


def test_outputs_that_are_lost_leave_no_hope(tmp_path: Path) -> None:
    found = Reference(net(), context(samples(), tmp_path)).closeness(net(shift=math.nan), 16, -200)
    assert found == Closeness(-math.inf, -math.inf, -math.inf)


def test_nineteen_of_twenty_bounds_hold(tmp_path: Path) -> None:
    """Of 200 draws of 16 samples: how often what all samples have is below the bound."""
    whole = np.random.default_rng(5).normal(0.5, 1, (3200, 4)).astype(np.float32)
    true = -10 * math.log10(0.04 * len(whole) / np.square(whole.astype(np.float64)).sum())
    missed = 0
    for rows in whole.reshape(200, 16, 4):
        signal, noise = np.square(rows.astype(np.float64)), np.full((16, 4), 0.01)
        division = Division()
        division.add(np.sqrt(signal), np.sqrt(noise), samples=16)
        (part,) = division.parts()
        missed += true < _assured(part)
    assert 2 <= missed <= 20


def test_a_sample_that_holds_most_of_the_signal_says_little_of_the_others() -> None:
    """The whole is at 23 dB, by one loud sample; the 15 others, which are most of what there is, at 13 dB."""
    signal, noise = np.full((16, 1), 0.01), np.full((16, 1), 0.0005)
    signal[3], noise[3] = 10, 0.05
    division = Division()
    division.add(np.sqrt(signal), np.sqrt(noise), samples=16)
    (part,) = division.parts()
    assert -10 * math.log10(part.noise / part.signal) == pytest.approx(22.5, abs=0.1)
    assert _assured(part) < 16


def test_a_sample_that_holds_all_of_the_signal_says_nothing_of_the_others() -> None:
    signal, noise = np.zeros((4, 1)), np.full((4, 1), 0.001)
    signal[0] = 10
    division = Division()
    division.add(np.sqrt(signal), np.sqrt(noise), samples=4)
    assert _assured(division.parts()[0]) == -math.inf
    noise[1:] = 0
    division = Division()
    division.add(np.sqrt(signal), np.sqrt(noise), samples=4)
    assert _assured(division.parts()[0]) > 20
