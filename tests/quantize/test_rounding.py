"""Optimal-gptq rounding against the paper's plain loop, the scale search against brute force, biases exact."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.data.memory import Arrays
from lepton_cli.model import io
from lepton_cli.probe.moments import Moments
from lepton_cli.quantize import choose, moments, rounding
from lepton_cli.quantize.prepare import matmul_to_gemm
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph, context

Floats = NDArray[np.float64]


def correlated(count: int, width: int, seed: int = 0, mean: float = 1.5) -> np.ndarray:
    """Inputs that are mixtures of a few, with uneven spreads and a mean."""
    random = np.random.default_rng(seed)
    few = max(width // 4, 2)
    mixed = random.normal(size=(count, few)) @ random.normal(size=(few, width)) / few**0.5
    made = (mixed + 0.3 * random.normal(size=(count, width))) * random.uniform(0.5, 2, width) + mean
    return made.astype(np.float32)


def moments_of(*groups: np.ndarray) -> Moments:
    """Moments of raw rows, one array [n, K] a group."""
    x = np.stack(groups).astype(np.float64)
    return Moments(np.matmul(x.transpose(0, 2, 1), x), x.sum(axis=1), x.shape[1])


def covariance_of(x: np.ndarray) -> Floats:
    return np.cov(x.astype(np.float64).T, bias=True)


def nearest(row: Floats, step: float, limit: int) -> Floats:
    return np.clip(np.rint(row / step), -limit, limit) * step


def searched(row: Floats, covariance: Floats, limit: int) -> float:
    """The scale of a channel with the least output error of nearest rounding, among 13 from 70 % to the full one."""
    full = max(float(np.abs(row).max()) / limit, 0.0) or 1.0
    best, least = full, np.inf
    for i in range(13):
        step = full * (1 - 0.3 * i / 12)
        error = row - nearest(row, step, limit)
        cost = float(error @ covariance @ error)
        if cost < least:
            best, least = step, cost
    return float(np.float32(best))


def optimal_brain(matrix: Floats, covariance: Floats, steps: Floats, limit: int, damping: float = 0.01) -> Floats:
    """Optimal gptq quantization (Frantar & Alistarh, 2022), one column after another, unblocked.

    The error of each weight, divided by its element of the inverse Hessian, is spread over those not yet rounded by
    the inverse's row; then the column is taken out of the inverse by one step of Gaussian elimination.
    """
    k = len(covariance)
    order = np.array(sorted(range(k), key=lambda i: -covariance[i, i]))
    hessian = covariance + damping * np.trace(covariance) / k * np.eye(k)
    inverse = np.linalg.inv(hessian)[order][:, order]
    left, made = matrix[:, order], np.zeros_like(matrix)
    for i, column in enumerate(order):
        made[:, column] = np.clip(np.rint(left[:, i] / steps), -limit, limit) * steps
        error = (left[:, i] - made[:, column]) / inverse[i, i]
        left[:, i + 1 :] -= np.outer(error, inverse[i, i + 1 :])
        inverse[i + 1 :, i + 1 :] -= np.outer(inverse[i + 1 :, i] / inverse[i, i], inverse[i, i + 1 :])
    return made


def by_factor(matrix: Floats, covariance: Floats, steps: Floats, limit: int) -> Floats:
    """The same by the rows of the inverse's upper Cholesky factor, as GPTQ's authors write it, without blocks."""
    k = len(covariance)
    order = np.array(sorted(range(k), key=lambda i: -covariance[i, i]))
    hessian = covariance + 0.01 * np.trace(covariance) / k * np.eye(k)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)[order][:, order]).T
    left, made = matrix[:, order], np.zeros_like(matrix)
    for i, column in enumerate(order):
        made[:, column] = np.clip(np.rint(left[:, i] / steps), -limit, limit) * steps
        left[:, i + 1 :] -= np.outer((left[:, i] - made[:, column]) / upper[i, i], upper[i, i + 1 :])
    return made


def gemm(matrix: np.ndarray, bias: np.ndarray | None = None) -> ir.Model:
    """x [b, K] with weight [N, K], as a Gemm with transB."""
    graph = Graph()
    names = [graph.constant(array.astype(np.float32)) for array in (matrix, bias) if array is not None]
    return graph.model(graph.op("Gemm", graph.take("x", ["b", matrix.shape[1]]), *names, transB=1))


def everything(model: ir.Model) -> choose.Choice:
    names = {node.name or "" for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")}
    return choose.Choice(frozenset(names), frozenset(), ())


def constant(model: ir.Model, name: str) -> np.ndarray:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def rounded(
    matrix: np.ndarray, known: Moments, limit: int, bias: np.ndarray | None = None, **options: bool
) -> tuple[Floats, Floats, rounding.Rounded]:
    """The rounded weight and its scales."""
    model = gemm(matrix, bias)
    made = rounding.apply(model, everything(model), {"Gemm_0": known}, limit=limit, **options)
    axis, scales = made.scales["w0"]
    assert axis == 0
    return constant(made.model, "w0").astype(np.float64), scales.astype(np.float64), made


@pytest.mark.parametrize(
    ("width", "count", "limit", "size"),
    [(65, 400, 7, 1), (192, 300, 63, 1), (512, 600, 127, 1), (64, 300, 127, 0.05), (64, 300, 127, 20)],
)
def test_weights_are_those_of_the_papers_plain_loop(width: int, count: int, limit: int, size: float) -> None:
    x = correlated(count, width) * np.float32(size)
    matrix = np.random.default_rng(1).normal(size=(6, width)).astype(np.float32).astype(np.float64)
    known = moments_of(x)
    made, steps, _ = rounded(matrix, known, limit)
    expected_steps = np.array([searched(row, known.covariance[0], limit) for row in matrix])
    assert np.array_equal(steps, expected_steps)
    loop = optimal_brain if width < 200 else by_factor  # elimination takes long for wide layers
    expected = loop(matrix, covariance_of(x), steps, limit)
    codes, wanted = (np.rint(weights / steps[:, None]) for weights in (made, expected))
    assert np.allclose(made, codes * steps[:, None], rtol=1e-6)
    assert np.abs(codes).max() <= limit
    # Ties within float64's rounding may fall to either side; a wrong term changes a large part of the codes.
    assert (codes != wanted).mean() < 0.001


def test_output_error_is_less_than_nearest_roundings() -> None:
    width = 70
    x = correlated(300, width)
    matrix = np.random.default_rng(2).normal(size=(12, width)).astype(np.float32).astype(np.float64)
    known = moments_of(x)
    centred = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    errors = []
    for gptq in (False, True):
        made, steps, _ = rounded(matrix, known, 7, gptq=gptq)
        delta = made - matrix
        through_moments = float(np.einsum("nk,kl,nl->", delta, covariance_of(x), delta))
        measured = float(np.square(centred @ delta.T).sum()) / len(x)
        assert measured == pytest.approx(through_moments, rel=1e-6)
        errors.append(measured)
        if not gptq:
            assert np.allclose(
                made, [nearest(row, step, 7) for row, step in zip(matrix, steps, strict=True)], atol=1e-6
            )
    assert errors[1] < 0.5 * errors[0]


def test_rounding_two_weights_by_hand() -> None:
    # Two inputs that are nearly the same: what the first weight is rounded by, the second makes up for.
    x = np.array([[1.0, 1.0], [-1, -1], [1.001, 0.999], [-1.001, -0.999]]) * 3
    made, steps, _ = rounded(np.array([[0.4, 1.0]]), moments_of(x), 1)
    assert steps.tolist() == [float(np.float32(steps[0]))]
    assert np.rint(made / steps[0]).tolist() in ([[0, 1]], [[1, 0]], [[1, 1]])
    assert abs(float(made.sum()) - 1.4) == pytest.approx(
        min(abs(step * total - 1.4) for step in steps for total in (1, 2)), abs=1e-6
    )


def test_scales_are_searched_per_channel_by_brute_force() -> None:
    x = correlated(500, 20)
    random = np.random.default_rng(3)
    matrix = (random.normal(size=(40, 20)) * np.exp(random.normal(size=(40, 1)))).astype(np.float32)
    matrix[5] = 0
    matrix[6, 1:] *= 0.01
    known = moments_of(x)
    for limit in (3, 15):
        _, steps, _ = rounded(matrix, known, limit, gptq=False)
        expected = [searched(row, covariance_of(x), limit) for row in matrix.astype(np.float64)]
        assert np.allclose(steps, expected, rtol=1e-6)
        assert (
            len(
                {round(step * limit / max(np.abs(row).max(), 1e-9), 3) for step, row in zip(steps, matrix, strict=True)}
            )
            > 5
        )
        assert steps[5] == 1


def test_weights_already_on_the_grid_stay() -> None:
    codes = np.random.default_rng(4).integers(-7, 8, (5, 33))
    codes[:, 0] = 7
    matrix = codes * np.float32([0.5, 0.25, 1, 2, 0.125])[:, None]
    for gptq in (False, True):
        made, steps, _ = rounded(matrix, moments_of(correlated(200, 33)), 7, gptq=gptq)
        assert steps.tolist() == [0.5, 0.25, 1, 2, 0.125]
        assert np.array_equal(made, matrix)


def test_damping_grows_until_the_covariance_can_be_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    x = correlated(300, 24)
    matrix = np.random.default_rng(5).normal(size=(40, 24)).astype(np.float32).astype(np.float64)
    known, true = moments_of(x), np.linalg.cholesky
    for failures, damping in ((0, 0.01), (1, 0.1), (2, 1.0), (3, None)):
        left = iter([True] * failures)

        def cholesky(array: Floats, left: object = left) -> Floats:
            if next(left, False):  # type: ignore[call-overload]
                raise np.linalg.LinAlgError
            return true(array)

        monkeypatch.setattr(np.linalg, "cholesky", cholesky)
        made, steps, _ = rounded(matrix, known, 127)
        monkeypatch.setattr(np.linalg, "cholesky", true)
        expected = (
            np.array([nearest(row, step, 127) for row, step in zip(matrix, steps, strict=True)])
            if damping is None
            else optimal_brain(matrix, covariance_of(x), steps, 127, damping)
        )
        assert np.allclose(made, expected, atol=1e-6)


def test_inputs_that_never_change_are_rounded_to_nearest() -> None:
    matrix = np.random.default_rng(6).normal(size=(4, 10)).astype(np.float32).astype(np.float64)
    x = np.ones((20, 10))
    made, steps, _ = rounded(matrix, moments_of(x), 7)
    assert np.isfinite(made).all()
    assert np.allclose(made, [nearest(row, step, 7) for row, step in zip(matrix, steps, strict=True)], atol=1e-6)


def test_groups_are_rounded_each_with_its_own_covariance() -> None:
    x = [correlated(400, 8, seed) for seed in (1, 2, 3)]
    graph = Graph()
    weight = graph.random.normal(size=(6, 2, 2, 2)).astype(np.float32)
    model = graph.model(graph.op("Conv", graph.take("x", ["b", 6, 4, 4]), graph.constant(weight), group=3))
    made = rounding.apply(model, everything(model), {"Conv_0": moments_of(*x)}, limit=7)
    axis, steps = made.scales["w0"]
    assert (axis, steps.dtype, steps.shape) == (0, np.float32, (6,))
    found = constant(made.model, "w0")
    for g in range(3):
        part, own = weight[2 * g : 2 * g + 2].reshape(2, 8).astype(np.float64), steps[2 * g : 2 * g + 2].astype(float)
        assert np.allclose(own, [searched(row, covariance_of(x[g]), 7) for row in part], rtol=1e-6)
        expected = optimal_brain(part, covariance_of(x[g]), own, 7)
        assert np.allclose(found[2 * g : 2 * g + 2].reshape(2, 8), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_weights_across_are_rounded_by_columns(kind: str) -> None:
    x = correlated(400, 20)
    matrix = np.random.default_rng(7).normal(size=(20, 6)).astype(np.float32)
    graph = Graph()
    model = graph.model(graph.op(kind, graph.take("x", ["b", 20]), graph.constant(matrix)))
    made = rounding.apply(model, everything(model), {f"{kind}_0": moments_of(x)}, limit=7)
    axis, steps = made.scales["w0"]
    assert axis == 1
    found = constant(made.model, "w0")
    assert found.flags.c_contiguous
    expected = optimal_brain(matrix.T.astype(np.float64), covariance_of(x), steps.astype(float), 7)
    assert np.allclose(found, expected.T, atol=1e-5)


def kinds() -> dict[str, tuple[ir.Model, Arrays]]:
    """A layer of each kind with a bias, and data with means far from zero."""
    made: dict[str, tuple[ir.Model, Arrays]] = {}
    random = np.random.default_rng(8)
    for name, group in (("Conv", 1), ("grouped Conv", 2), ("depthwise Conv", 4)):
        graph = Graph()
        y = graph.conv(graph.take("x", ["b", 4, 5, 5]), 4, 4, group=group, relu=False)
        x = random.normal(2, 1, (11, 4, 5, 5)) * np.array([1, 3, 0.2, 1]).reshape(4, 1, 1)
        made[name] = graph.model(y), Arrays({"x": x.astype(np.float32)})
    for name, across in (("Gemm", False), ("Gemm across", True)):
        graph = Graph()
        weight = graph.constant(graph.random.normal(size=(18, 18)).astype(np.float32))
        bias = graph.constant(graph.random.normal(size=18).astype(np.float32))
        y = graph.op("Gemm", graph.take("x", ["b", 18]), weight, bias, transB=int(not across))
        made[name] = graph.model(y), Arrays({"x": correlated(90, 18, mean=2)})
    graph = Graph()
    model = graph.model(graph.linear(graph.take("x", ["b", 18]), 18, 18, gemm=False))
    matmul_to_gemm(model)
    made["MatMul and Add"] = model, Arrays({"x": correlated(90, 18, mean=-2)})
    return made


def means(model: ir.Model, data: Arrays) -> Floats:
    """Mean of every output channel over the data."""
    result = next(iter(Session(io.to_bytes(model), threads=1, optimise=False).run(data.feeds).values()))
    moved = np.moveaxis(result.astype(np.float64), 1, -1)
    return moved.reshape(-1, moved.shape[-1]).mean(axis=0)


@pytest.mark.parametrize("gptq", [False, True])
@pytest.mark.parametrize("kind", ["Conv", "grouped Conv", "depthwise Conv", "Gemm", "Gemm across", "MatMul and Add"])
def test_the_corrected_bias_leaves_no_mean_error(kind: str, gptq: bool, tmp_path: Path) -> None:
    model, data = kinds()[kind]
    known = moments.collect(model, everything(model), data, context(data, tmp_path))
    before = means(model, data)
    errors = []
    for correct in (False, True):
        made = rounding.apply(model, everything(model), known, limit=7, gptq=gptq, correct_bias=correct)
        errors.append(np.abs(means(made.model, data) - before).max())
    assert errors[0] > 1e-2
    assert errors[1] < 5e-6  # float32 sums of results around 10
    assert np.array_equal(means(model, data), before), "the model given stays as it is"


def test_the_shift_is_the_lost_weight_times_the_mean_input() -> None:
    x = correlated(300, 16)
    random = np.random.default_rng(9)
    matrix, bias = random.normal(size=(5, 16)).astype(np.float32), random.normal(size=5).astype(np.float32)
    found, _, made = rounded(matrix, moments_of(x), 7, bias)
    expected = bias + (matrix - found) @ x.astype(np.float64).mean(axis=0)
    assert np.abs(constant(made.model, "w1") - expected).max() < 1e-6
    _, _, made = rounded(matrix, moments_of(x), 7, bias, correct_bias=False)
    assert np.array_equal(constant(made.model, "w1"), bias)


def test_biases_that_others_read_or_the_model_returns_stay() -> None:
    x, random = correlated(300, 16), np.random.default_rng(10)
    for extra in ("none", "read", "scalar"):
        graph = Graph()
        weight = graph.constant(random.normal(size=(16, 16)).astype(np.float32))
        bias = graph.constant(random.normal(size=1 if extra == "scalar" else 16).astype(np.float32))
        y = graph.op("Gemm", graph.take("x", ["b", 16]), weight, bias, transB=1)
        model = graph.model(graph.op("Add", y, bias) if extra == "read" else y)
        made = rounding.apply(model, everything(model), {"Gemm_0": moments_of(x)}, limit=7)
        assert not np.array_equal(constant(made.model, weight), constant(model, weight))
        assert np.array_equal(constant(made.model, bias), constant(model, bias)) == (extra != "none")


def test_layers_without_a_bias_are_rounded() -> None:
    x = correlated(300, 16)
    _, _, made = rounded(np.random.default_rng(11).normal(size=(5, 16)), moments_of(x), 7)
    assert set(made.model.graph.initializers) == {"w0"}


def test_a_product_with_an_addition_keeps_the_added_constant(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.linear(graph.take("x", ["b", 16]), 16, 16, gemm=False))
    made = rounding.apply(model, everything(model), {"MatMul_0": moments_of(correlated(300, 16))}, limit=7)
    names = {value.name for value in made.model.graph.initializers.values()}
    unchanged = [
        name for name in names if np.array_equal(constant(made.model, name or ""), constant(model, name or ""))
    ]
    assert len(unchanged) == 1


def test_only_chosen_layers_with_moments_and_weights_of_their_own_are_rounded() -> None:
    graph = Graph()
    x = graph.take("x", ["b", 16])
    matrices = [graph.constant(graph.random.normal(size=(16, 16)).astype(np.float32)) for _ in range(5)]
    for name in (*matrices, matrices[3]):
        x = graph.op("MatMul", x, name)
    model = graph.model(x, matrices[4])
    known = {f"MatMul_{i}": moments_of(correlated(100, 16)) for i in (0, 2, 3, 4, 5)}
    anchors = frozenset(f"MatMul_{i}" for i in (0, 1, 3, 4, 5))
    made = rounding.apply(model, choose.Choice(anchors, frozenset(), ()), known, limit=7)
    # 1 has no moments, 2 is not chosen, 3 is shared, 4 is returned.
    assert list(made.scales) == [matrices[0]]
    assert [np.array_equal(constant(made.model, name), constant(model, name)) for name in matrices] == [
        False,
        *[True] * 4,
    ]


def test_computed_weights_are_left(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 16, 16])
    model = graph.model(graph.op("MatMul", x, graph.op("Relu", x)))
    made = rounding.apply(
        model,
        choose.Choice(frozenset({"MatMul_1"}), frozenset(), ()),
        {"MatMul_1": moments_of(np.ones((2, 16)))},
        limit=7,
    )
    assert made.scales == {}
