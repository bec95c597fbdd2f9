"""What 16-bit sums cost on x86 without VNNI, against VPMADDUBSW written as a plain loop."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.dataset import Batch
from lepton_cli.data.memory import Arrays
from lepton_cli.probe import calibration
from lepton_cli.probe.clipping import Range
from lepton_cli.quantize import choose, qdq, saturation
from lepton_cli.quantize.targets import TARGETS
from tests.quantize.builders import Graph, context, images, residual_net


def everything(model: ir.Model) -> choose.Choice:
    names = {node.name or "" for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")}
    return choose.Choice(frozenset(names), frozenset(), ())


def simulate(
    model: ir.Model, data: Arrays, tmp_path: Path, ends: dict[str, Range] | None = None, **plan: object
) -> list[saturation.Saturation]:
    choice = everything(model)
    if ends is None:
        ends = calibration.collect(model, choose.activations(model, choice), data, context(data, tmp_path)).limits(
            "minmax"
        )
    made = dataclasses.replace(qdq.Scheme(TARGETS["x86-vnni"], choice, ends), **plan)  # type: ignore[arg-type]
    return saturation.simulate(model, made, data, context(data, tmp_path))


def pair_sums(codes: list[int], weights: list[int]) -> list[tuple[int, int]]:
    """Sums of neighbouring products, exact and as VPMADDUBSW gives them; an odd last one is paired with nothing."""
    found = []
    for i in range(0, len(codes), 2):
        exact = sum(codes[j] * weights[j] for j in range(i, min(i + 2, len(codes))))
        found.append((exact, min(max(exact, -32768), 32767)))
    return found


def expected(rows: np.ndarray, weights: np.ndarray, ends: Range, scales: np.ndarray) -> tuple[float, float]:
    """Share of the pairs cut and SQNR, for rows [n, K] and weights [N, K], in plain loops."""
    step = (ends[1] - ends[0]) / 255
    zero = round(-ends[0] / step)
    cut = pairs = 0
    signal = noise = 0.0
    for row in rows.tolist():
        codes = [min(max(round(value / step) + zero, 0), 255) for value in row]
        for channel, scale in zip(weights.tolist(), scales.tolist(), strict=True):
            quantized = [min(max(round(value / scale), -127), 127) for value in channel]
            sums = pair_sums(codes, quantized)
            cut += sum(exact != clipped for exact, clipped in sums)
            pairs += len(sums)
            result = sum((code - zero) * weight for code, weight in zip(codes, quantized, strict=True))
            signal += result**2
            noise += (sum(exact for exact, _ in sums) - sum(clipped for _, clipped in sums)) ** 2
    return cut / pairs, 10 * math.log10(signal / noise) if noise else math.inf


def product(matrix: np.ndarray) -> ir.Model:
    """x [b, K] times a matrix [K, N]."""
    graph = Graph()
    return graph.model(graph.op("MatMul", graph.take("x", ["b", len(matrix)]), graph.constant(matrix)))


def integers(*columns: list[int]) -> np.ndarray:
    """Weights whose codes are these integers: the scale of every channel becomes 1."""
    return np.float32(columns).T.copy()


def test_one_saturated_pair_of_two_by_hand(tmp_path: Path) -> None:
    # Codes 255, 255 | 255, 10; weights 127, 127 | 127, 1: sums 64770, cut to 32767, and 32395.
    found = simulate(
        product(integers([127, 127, 127, 1])),
        Arrays({"x": np.float32([[255, 255, 255, 10]])}),
        tmp_path,
        {"x": (0, 255)},
    )
    ratio = 20 * math.log10((64770 + 32395) / (64770 - 32767))
    assert found == [saturation.Saturation("MatMul_0", "MatMul", 0.5, pytest.approx(ratio))]


def test_sums_of_just_the_limit_are_not_cut(tmp_path: Path) -> None:
    # 255 * 127 + 191 * 2 = 32767 and 255 * 127 + 255 + 128 = 32768; -255 * 127 - 255 - 128 = -32768, and -32769.
    for codes, weights, share in (
        ([255, 191, 0, 0], [127, 2, 127, 0], 0),
        ([255, 192, 0, 0], [127, 2, 127, 0], 0.5),
        ([255, 191, 0, 0], [-127, -2, 127, 0], 0),
        ([255, 192, 0, 0], [-127, -2, 127, 0], 0.5),
        ([255, 128, 1, 0], [-127, -3, 127, 0], 0.5),
    ):
        data = Arrays({"x": np.float32([codes])})
        found = simulate(product(integers(weights)), data, tmp_path, {"x": (0, 255)})
        assert [one.share for one in found] == ([share] if share else [])


def test_minus_32768_still_fits(tmp_path: Path) -> None:
    # 254 * 127 + 255 * 2 = 32768: too much by one, but its negative is the least number of 16 bits.
    found = simulate(
        product(integers([-127, -2, 127, 0])), Arrays({"x": np.float32([[254, 255, 0, 0]])}), tmp_path, {"x": (0, 255)}
    )
    assert found == []
    found = simulate(
        product(integers([127, 2, 127, 0])), Arrays({"x": np.float32([[254, 255, 0, 0]])}), tmp_path, {"x": (0, 255)}
    )
    assert [(one.share, one.sqnr_db) for one in found] == [(0.5, pytest.approx(20 * math.log10(32768)))]


def test_the_zero_point_counts_before_the_sum_and_not_in_the_result(tmp_path: Path) -> None:
    # Range -128 to 127: zero is 128. Values 10, 10 are codes 138, 138 and saturate with weights 127, 127: 35052.
    # Were the zero point forgotten, 10 * 254 would not. The result itself is 2540.
    data = Arrays({"x": np.float32([[10, 10]])})
    (found,) = simulate(product(integers([127, 127])), data, tmp_path, {"x": (-128, 127)})
    assert found.share == 1
    assert found.sqnr_db == pytest.approx(20 * math.log10(2540 / (35052 - 32767)))


def test_inputs_that_are_never_positive_saturate_at_zero(tmp_path: Path) -> None:
    # Range -255 to 0: zero is 255, the greatest code. The second row's codes 0, 0 do nothing.
    data = Arrays({"x": np.float32([[0, 0], [-255, -255]])})
    (found,) = simulate(product(integers([127, 127])), data, tmp_path, {"x": (-255, 0)})
    assert found.share == 0.5
    assert found.sqnr_db == pytest.approx(20 * math.log10(2 * 255 * 127 / (2 * 255 * 127 - 32767)))


def test_the_zero_point_shifts_codes_upwards_and_no_further(tmp_path: Path) -> None:
    # Range -64 to 191: 64 and 65 are codes 128 and 129, and 257 * 127 = 32639 fits; 66 and 65 are one step too many.
    for values, layers in (([64, 65], 0), ([66, 65], 1), ([-64, -64], 0)):
        found = simulate(
            product(integers([127, 127])), Arrays({"x": np.float32([values])}), tmp_path, {"x": (-64, 191)}
        )
        assert len(found) == layers


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 2.0), (-2.0, 0.5), (-0.3, 0.2)])
@pytest.mark.parametrize("width", [17, 32])
def test_products_in_plain_loops(ends: Range, width: int, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    matrix = random.choice([-1, 1, 0.9, -0.7], (width, 20)).astype(np.float32)
    matrix[:, 3] = 0
    data = Arrays({"x": random.uniform(-1, 1.5, (2, 11, width)).astype(np.float32)})
    (found,) = simulate(_wide(matrix), data, tmp_path, {"x": ends})
    scales = np.abs(matrix).max(axis=0) / 127
    share, ratio = expected(data.feeds["x"].reshape(-1, width), matrix.T, ends, np.where(scales == 0, 1, scales))
    assert found.share == pytest.approx(share)
    assert found.sqnr_db == pytest.approx(ratio)


def _wide(matrix: np.ndarray) -> ir.Model:
    graph = Graph()
    return graph.model(graph.op("MatMul", graph.take("x", ["b", 11, len(matrix)]), graph.constant(matrix)))


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_scales_of_the_plan(transposed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    matrix = random.choice([-1, 1, 0.9], (24, 24)).astype(np.float32)
    graph = Graph()
    weight = graph.constant(matrix)
    model = graph.model(graph.op("Gemm", graph.take("x", ["b", 24]), weight, transB=transposed))
    data = Arrays({"x": random.uniform(0, 1, (2, 24)).astype(np.float32)})
    scales = np.linspace(0.6, 2, 24).astype(np.float32) / 127
    plan = {weight: (0 if transposed else 1, scales)}
    (found,) = simulate(model, data, tmp_path, {"x": (0.0, 1.0)}, scales=plan)
    share, ratio = expected(data.feeds["x"], matrix if transposed else matrix.T, (0.0, 1.0), scales.astype(float))
    assert (found.op, found.share, found.sqnr_db) == ("Gemm", pytest.approx(share), pytest.approx(ratio, abs=1e-3))


@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_in_plain_loops(group: int, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    weight = random.choice([-1, 1, 0.9], (6, 4 // group, 3, 3)).astype(np.float32)
    graph = Graph()
    model = graph.model(graph.op("Conv", graph.take("x", ["b", 4, 5, 6]), graph.constant(weight), group=group))
    data = Arrays({"x": random.uniform(-0.2, 1, (2, 4, 5, 6)).astype(np.float32)})
    (found,) = simulate(model, data, tmp_path, {"x": (-0.2, 1.0)})
    x = data.feeds["x"]
    cut = signal = noise = 0.0
    for g in range(group):
        channels = slice(g * 4 // group, (g + 1) * 4 // group)
        rows = np.array(
            [x[n, channels, i : i + 3, j : j + 3].ravel() for n in range(2) for i in range(3) for j in range(4)]
        )
        kernels = weight.reshape(group, 6 // group, -1)[g]
        share, ratio = expected(rows, kernels, (-0.2, 1.0), np.abs(kernels).max(axis=1) / 127)
        cut += share / group
        power = _power(rows, kernels)
        signal, noise = signal + power, noise + power / 10 ** (ratio / 10)
    assert found.share == pytest.approx(cut)
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise))


def _power(rows: np.ndarray, kernels: np.ndarray) -> float:
    codes = np.clip(np.rint(rows / (1.2 / 255)) + 42, 0, 255) - 42
    weights = np.rint(kernels / (np.abs(kernels).max(axis=1, keepdims=True) / 127))
    return float(np.square(codes @ weights.T.astype(np.float64)).sum())


def test_at_most_48_rows_and_128_channels_of_two_samples_are_looked_at(tmp_path: Path) -> None:
    matrix = np.zeros((2, 130), dtype=np.float32)
    matrix[:] = [[1], [-1]]
    matrix[:, 127:] = 1  # of these three channels only the first is among the 128
    found = simulate(product(matrix), Arrays({"x": np.ones((2, 2), dtype=np.float32)}), tmp_path, {"x": (0.0, 1.0)})
    assert [one.share for one in found] == [1 / 128]
    graph = Graph()
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 40, 2]), graph.constant(integers([127, 127]))))
    x = np.zeros((3, 40, 2), dtype=np.float32)
    x[:, 8:] = 255  # 40 rows of each sample: 48 are looked at, which are all of the first and 8 zeros
    found = simulate(model, Arrays({"x": x}), tmp_path, {"x": (0.0, 255.0)})
    assert [one.share for one in found] == [pytest.approx(32 / 48)]
    graph = Graph()
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 15, 2]), graph.constant(integers([127, 127]))))
    x = np.full((3, 15, 2), 255, dtype=np.float32)
    x[1:] = 0
    found = simulate(model, Arrays({"x": x}), tmp_path, {"x": (0.0, 255.0)})
    assert [one.share for one in found] == [0.5]


def test_layers_are_named_worst_first_and_only_where_sums_are_cut(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 4])
    columns = [[127, 127, 127, 1], [127, 127, 127, 127], [1, 1, 1, 127]]
    results = [graph.op("MatMul", x, graph.constant(integers(column, column))) for column in columns]
    y = graph.op("MatMul", graph.op("Concat", *results, axis=1), graph.constant(np.ones((6, 1), dtype=np.float32)))
    model = graph.model(y)
    data = Arrays({"x": np.float32([[255, 255, 255, 10]])})
    found = simulate(model, data, tmp_path, {"x": (0, 255)})
    assert [one.node for one in found] == ["MatMul_1", "MatMul_0"]
    assert found[0].sqnr_db < found[1].sqnr_db


def test_inner_tensors_are_read_from_the_float_model(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.op("Mul", graph.take("x", ["b", 2]), graph.constant(np.float32(2)))
    model = graph.model(graph.op("MatMul", x, graph.constant(integers([127, 127]))))
    data = Arrays({"x": np.float32([[64, 65]])})  # codes 128 and 130: 258 * 127 = 32766 fits
    assert simulate(model, data, tmp_path, {"t0": (0, 255)}) == []
    data = Arrays({"x": np.float32([[64.5, 65]])})
    assert len(simulate(model, data, tmp_path, {"t0": (0, 255)})) == 1


def test_nothing_to_look_at(tmp_path: Path) -> None:
    model = product(integers([127, 127]))
    data = Arrays({"x": np.float32([[255, 255]])})
    assert len(simulate(model, data, tmp_path, {"x": (0, 255)})) == 1
    assert simulate(model, data, tmp_path, {}) == [], "no range, no layer"

    class Nothing(Arrays):
        def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
            return iter(())

    assert simulate(model, Nothing(data.feeds), tmp_path, {"x": (0, 255)}) == []


def test_layers_with_very_long_rows_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph()
    weight = graph.constant(np.ones((2, 3, 2, 2), dtype=np.float32))
    model = graph.model(graph.op("Conv", graph.take("x", ["b", 3, 4, 4]), weight))
    data = Arrays({"x": np.ones((2, 3, 4, 4), dtype=np.float32)})
    for longest, layers in ((12, 1), (11, 0)):
        monkeypatch.setattr(saturation, "LONGEST_ROW", longest)
        assert len(simulate(model, data, tmp_path, {"x": (0, 1)})) == layers


def test_the_length_of_a_row_is_its_inputs_not_its_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saturation, "LONGEST_ROW", 4)
    for inner, outer, layers in ((4, 9, 1), (5, 2, 0)):
        data = Arrays({"x": np.ones((1, inner), dtype=np.float32)})
        assert (
            len(simulate(product(np.ones((inner, outer), dtype=np.float32)), data, tmp_path, {"x": (0, 1)})) == layers
        )


def test_results_that_cancel_out_have_no_signal(tmp_path: Path) -> None:
    # 64770 and -64770 are cut to 32767 and -32768: the result is wrong by 1, and should be 0.
    data = Arrays({"x": np.float32([[255] * 4])})
    (found,) = simulate(product(integers([127, 127, -127, -127])), data, tmp_path, {"x": (0, 255)})
    assert found.share == 1
    assert found.sqnr_db == pytest.approx(-300)


def test_a_range_without_extent_is_all_zero(tmp_path: Path) -> None:
    assert (
        simulate(product(integers([127, 127])), Arrays({"x": np.zeros((1, 2), np.float32)}), tmp_path, {"x": (0, 0)})
        == []
    )


def test_seven_bit_weights_never_saturate(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    matrix = np.where(random.random((16, 16)) < 0.5, -1, 1).astype(np.float32)
    data = Arrays({"x": np.where(random.random((8, 16)) < 0.5, 0, 1).astype(np.float32)})
    model = product(matrix)
    eight = {"w0": (1, np.full(16, 1 / 127, np.float32))}
    seven = {"w0": (1, np.full(16, 1 / 64, np.float32))}
    assert simulate(model, data, tmp_path, {"x": (0, 1)}, scales=eight)
    assert simulate(model, data, tmp_path, {"x": (0, 1)}, scales=seven) == []


@pytest.mark.parametrize("target", ["x86", "x86-vnni"])
def test_weights_written_for_x86_without_vnni_have_seven_bits(target: str, tmp_path: Path) -> None:
    model, data = residual_net(), images(8)
    choice = choose.candidates(model, {node.name or "" for node in model.graph})
    ends = calibration.collect(model, choose.activations(model, choice), data, context(data, tmp_path)).limits("minmax")
    made = qdq.write(model, qdq.Scheme(TARGETS[target], choice, ends))
    tensors = [value.const_value for value in made.graph.initializers.values() if value.const_value is not None]
    codes = np.concatenate(
        [t.numpy().astype(int).ravel() for t in tensors if t.dtype == ir.DataType.INT8 and t.size > 64]
    )
    # The sum of two products of 255 and such a code fits 16 bits only up to 64.
    assert (abs(2 * 255 * codes).max() <= 32767) == (target == "x86")
    assert np.abs(codes).max() == (64 if target == "x86" else 127)
