"""Which measure ranks which group, what a level costs, and what is kept between runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lepton_cli.cache import Cache
from lepton_cli.data.memory import Arrays
from lepton_cli.graph import cost as node_cost
from lepton_cli.graph import shapes
from lepton_cli.probe import linear
from lepton_cli.prune import analysis, hessian, importance, ranking, sensitivity
from lepton_cli.prune.allocate import Table
from lepton_cli.prune.hessian import Ranking
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.step import Context
from tests.coupling.networks import Network
from tests.prune.context import context


def params(**options: object) -> PruneChannels:
    return PruneChannels.model_validate({"step": "prune.channels", **options})


def mlp() -> ir.Model:
    """Groups of eight and six channels."""
    n = Network(1)
    x = n.node("Relu", n.node("Gemm", n.input("x", "batch", 5), n.weight(5, 8), n.weight(8)))
    x = n.node("Relu", n.node("Gemm", x, n.weight(8, 6), n.weight(6)))
    return n.model(n.node("Gemm", x, n.weight(6, 3), n.weight(3)))


def data(count: int = 64) -> Arrays:
    return Arrays({"x": np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)})


LEVELS = [np.array([8, 6, 3, 2]), np.array([6, 4, 1])]


def ranked(
    context: Context,
    warnings: list[str] | None = None,
    levels: list[NDArray[np.int64]] | None = None,
    **options: object,
) -> tuple[list[Ranking], list[Table], analysis.Analysis]:
    found = analysis.analysed(mlp(), params(**options), {"x": (2, 5)})
    given = [] if warnings is None else warnings
    return *ranking.ranked_groups(found, params(**options), context, levels or LEVELS, given), found


def test_without_data_weights_rank_and_shares_are_squared(tmp_path: Path) -> None:
    warnings: list[str] = []
    rankings, tables, found = ranked(context(mlp(), tmp_path, check=data(4)), warnings)
    assert "ranked by their weights and nothing is repaired" in warnings[0]
    for group, order, table, levels in zip(found.groups, rankings, tables, LEVELS, strict=True):
        scores = importance.data_free("l2", found.model, group, {})
        assert order.order.tolist() == np.argsort(scores).tolist()
        assert table.levels is levels
        gone = np.append(0, np.cumsum(np.sort(scores)))
        np.testing.assert_allclose(table.loss, gone[group.channels - levels] ** 2)
        assert len(order.loss) == group.channels - 1


@pytest.mark.parametrize("kind", ["l1", "zscore"])
def test_the_measure_asked_for_ranks(kind: str, tmp_path: Path) -> None:
    rankings, _, found = ranked(context(mlp(), tmp_path, check=data(4)), importance=kind)
    for group, order in zip(found.groups, rankings, strict=True):
        assert order.order.tolist() == np.argsort(importance.data_free(kind, found.model, group, {})).tolist()


@pytest.mark.parametrize("kind", [None, "hessian", "activation", "l1"])
@pytest.mark.parametrize("recover", [None, ()])
def test_with_data_losses_are_measured_curves_at_the_levels(
    kind: str | None, recover: tuple[str, ...] | None, tmp_path: Path
) -> None:
    """Consumers are refitted on trial, but for data-free measures without recovery, which see no Gram matrix."""
    warnings: list[str] = []
    given = context(mlp(), tmp_path, data())
    rankings, tables, found = ranked(given, warnings, importance=kind, recover=recover)
    assert warnings == []
    source, layers = ranking.source_of(given), linear.find(found.model)
    assert source is not None
    macs = 5 * 8 + 8 * 6 + 6 * 3
    trial = sensitivity.prepare(found.model, found.coupling, source, 2 * 3, macs)
    grams = importance.grams(found.model, found.groups, layers, source)
    for group, order, table, levels in zip(found.groups, rankings, tables, LEVELS, strict=True):
        if kind == "l1":
            wanted = importance.by_scores(importance.data_free("l1", found.model, group, {}))
        else:
            wanted = importance.with_data(kind or "hessian", found.model, group, layers, grams)
        assert order.order.tolist() == wanted.order.tolist()
        seen = {} if kind == "l1" and recover == () else grams
        curve = sensitivity.curve(trial, group, wanted, layers, seen)
        np.testing.assert_allclose(table.loss, curve[group.channels - levels])


def test_trials_are_planned_for_one_samples_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three trials for each of two groups; a batch of two was analysed, whose work is halved."""
    asked: list[tuple[object, ...]] = []
    prepare = sensitivity.prepare

    def record(*given: object) -> sensitivity.Unpruned:
        asked.append(given[3:])
        return prepare(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(sensitivity, "prepare", record)
    ranked(context(mlp(), tmp_path, data()))
    macs = sum(node_cost.macs(mlp(), shapes.concrete(mlp(), {"x": (1, 5)})).values())
    assert asked == [(2 * len(sensitivity.LEVELS), macs)]


def test_groups_that_no_linear_layer_reads_are_ranked_by_l2(tmp_path: Path) -> None:
    n = Network(2)
    x = n.node("Relu", n.conv(n.input("x", "batch", 3, 4, 4), 3, 4))
    x = n.node("ConvTranspose", x, n.weight(4, 2, 2, 2))
    model = n.model(x)
    found = analysis.analysed(model, params(), {"x": (2, 3, 4, 4)})
    images = Arrays({"x": np.random.default_rng(0).normal(size=(16, 3, 4, 4)).astype(np.float32)})
    levels = [np.array([4, 2, 1])]
    (group,) = found.groups
    wanted = np.argsort(importance.data_free("l2", found.model, group, {})).tolist()
    for kind in ("hessian", "activation"):
        chosen = params(importance=kind)
        rankings, _ = ranking.ranked_groups(found, chosen, context(model, tmp_path, images), levels, [])
        assert rankings[0].order.tolist() == wanted


def test_matrices_that_do_not_fit_together_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ranked(context(mlp(), tmp_path, data()))
    monkeypatch.setattr(importance, "MEMORY", 1)
    parts = ranked(context(mlp(), tmp_path, data()))
    for one, two in zip(whole[1], parts[1], strict=True):
        np.testing.assert_array_equal(one.loss, two.loss)


def test_rankings_are_kept_for_the_same_question_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = context(mlp(), tmp_path, data(), cache=tmp_path)
    first = ranked(given)
    monkeypatch.setattr(hessian, "rank", lambda *_: pytest.fail("ranked again"))
    again = ranked(given)
    for one, two in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(one.order, two.order)
    for one, two in zip(first[1], again[1], strict=True):
        np.testing.assert_array_equal(one.loss, two.loss)
    lower = ranked(given, levels=[np.array([8, 7, 2, 1]), np.array([6, 3])])
    assert lower[1][0].loss[2] == first[1][0].loss[-1], "levels do not matter"
    assert lower[1][1].loss[1] < first[1][1].loss[-1]
    other = Arrays(data().feeds)
    other.fingerprint = "1"
    fewer = Arrays({"x": data().feeds["x"][:60]})
    asked: list[tuple[Context, dict[str, object]]] = [
        (given, {"recover": ()}),
        (given, {"exclude": ["Gemm_2"], "levels": [np.array([8, 2])]}),
        (dataclasses.replace(given, seed=1), {}),
        (dataclasses.replace(given, calibration=other), {}),
        (dataclasses.replace(given, calibration=fewer), {}),
        (dataclasses.replace(given, cache=Cache(None)), {}),
    ]
    for changed, options in asked:
        with pytest.raises(pytest.fail.Exception, match="ranked again"):
            ranked(changed, **options)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("ranking-*.npz"))) == 1
    other_kind = ranked(given, importance="l1")
    assert other_kind[0][0].order.tolist() != first[0][0].order.tolist()
    assert len(list(tmp_path.glob("ranking-*.npz"))) == 2
