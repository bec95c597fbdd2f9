"""`prune.channels` end to end on small networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.coupling import branches, cut
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError, RecipeError, StepError
from lepton_cli.graph import cost, edit, shapes
from lepton_cli.graph.edit import set_weight
from lepton_cli.machine import Machine
from lepton_cli.model import io
from lepton_cli.prune import allocate, analysis, channels, latency, ranking, targets, times
from lepton_cli.prune.spec import PruneChannels
from tests.coupling.networks import Network, zeroed
from tests.prune.context import context, images, outputs, redundant, relative_error


def params(**options: object) -> PruneChannels:
    return PruneChannels.model_validate({"step": "prune.channels", **options})


def macs(model: ir.Model) -> int:
    return sum(cost.macs(model, shapes.concrete(model, {"x": (2, 3, 8, 8)})).values())


def test_redundant_channels_go_without_loss(tmp_path: Path) -> None:
    model, data = redundant(), images()
    outcome = channels.prune(model, params(target={"macs": "75 %"}), context(model, tmp_path, data))
    onnx.checker.check_model(ir.to_proto(outcome.model))
    assert macs(outcome.model) <= 0.75 * macs(model)
    assert relative_error(outcome.model, model, data) < 1e-4
    inner = {row.node: row.after for row in outcome.details.widths if row.before == 12}
    assert all(6 <= after < 12 for after in inner.values())
    assert {decision.action for decision in outcome.decisions} >= {"pruned", "frozen"}


def test_recovery_helps_and_says_by_how_much(tmp_path: Path) -> None:
    model, data = redundant(3), images()
    options = {"target": {"macs": "45 %"}, "importance": "l1"}
    plain = channels.prune(model, params(**options, recover=[]), context(model, tmp_path, data))
    fitted = channels.prune(model, params(**options), context(model, tmp_path, data))
    assert relative_error(fitted.model, model, data) < 0.5 * relative_error(plain.model, model, data)
    assert fitted.details.recovery
    assert all(row.error_after < row.error_before for row in fitted.details.recovery if row.kept)


def test_hessian_beats_weights_alone(tmp_path: Path) -> None:
    model, data = redundant(1), images()
    errors = {}
    for kind in ("hessian", "l1"):
        outcome = channels.prune(
            model, params(target={"macs": "50 %"}, importance=kind), context(model, tmp_path, data)
        )
        errors[kind] = relative_error(outcome.model, model, data)
    assert errors["hessian"] <= errors["l1"]


@pytest.mark.parametrize("kind", ["l1", "l2", "zscore", "bn_scale", "activation", "hessian"])
def test_every_importance_reaches_the_target(kind: str, tmp_path: Path) -> None:
    model, data = redundant(), images(32)
    outcome = channels.prune(model, params(target={"params": "60 %"}, importance=kind), context(model, tmp_path, data))
    assert outcome.details.targets[0].reached <= 0.6
    assert np.isfinite(outputs(outcome.model, data)).all()


@pytest.mark.parametrize("target", [{"params": "50 %"}, {"size": "60 %"}, {"macs": "50 %"}])
def test_targets(target: dict[str, str], tmp_path: Path) -> None:
    model, data = redundant(), images(32)
    outcome = channels.prune(model, params(target=target), context(model, tmp_path, data))
    share = float(next(iter(target.values())).split()[0]) / 100
    assert share - 0.1 < outcome.details.targets[0].reached <= share
    if "size" in target:
        assert len(io.to_bytes(outcome.model)) <= share * len(io.to_bytes(model)) * 1.02


@pytest.mark.parametrize("metric", ["params", "macs", "size"])
def test_weights_in_constant_nodes_count(metric: str, tmp_path: Path) -> None:
    model, data = redundant(), images(32)
    for name, value in list(model.graph.initializers.items()):
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)], name=f"constant_{name}")
        model.graph.insert_before(model.graph[0], node)
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        del model.graph.initializers[name]
    outcome = channels.prune(model, params(target={metric: "70 %"}), context(model, tmp_path, data))
    assert 0.5 < outcome.details.targets[0].reached <= 0.7


def test_several_targets_hold_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocate, "BLENDS", 2)
    monkeypatch.setattr(latency, "TRIES", 2)
    model, data = redundant(), images(32)
    given = {"params": "60 %", "macs": "70 %", "latency": "100 %"}
    outcome = channels.prune(model, params(target=given, round_to=1), context(model, tmp_path, data))
    reached = {one.metric: one.reached for one in outcome.details.targets}
    assert set(reached) == set(given)
    assert reached["params"] <= 0.6
    assert reached["macs"] <= 0.7
    assert "params" in outcome.summary


def test_targets_that_cannot_hold_together_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time alone could be reached: naming a smaller time than the one asked for would be no explanation."""
    model, data = redundant(), images(32)
    out = latency.Met(None, (), 0.6, 0.6)
    monkeypatch.setattr(latency, "choose", lambda *_: out)
    with pytest.raises(StepError, match=r"latency can go down to 60.+, but not while the other targets hold"):
        channels.prune(model, params(target={"latency": "80 %", "params": "90 %"}), context(model, tmp_path, data))
    with pytest.raises(StepError, match="not to 50"):
        channels.prune(model, params(target={"latency": "50 %"}), context(model, tmp_path, data))


def test_dropped_branches_take_their_weights_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two: 8 to 12 channels and back, 3x3, with biases. Left in the file they would break a target of bytes."""
    model, data = redundant(), images(32)
    found = analysis.analysed(model, params(), {"x": (2, 3, 8, 8)})
    full = np.array([group.channels for group in found.groups])
    dropped = branches.find(found.model, found.coupling.facts)[:1]
    monkeypatch.setattr(latency, "choose", lambda *_: latency.Met(full, tuple(dropped), 0.7, 0.7))
    given = params(target={"latency": "90 %", "params": "90 %"}, recover=["bias"])
    outcome = channels.prune(model, given, context(model, tmp_path, data))
    kept = outcome.model.graph.initializers.values()
    assert all(value.uses() for value in kept)
    before = sum(v.const_value.size for v in found.model.graph.initializers.values() if v.const_value is not None)
    after = sum(value.const_value.size for value in kept if value.const_value is not None)
    assert before - after == 2 * 8 * 12 * 9 + 12 + 8
    reached = {one.metric: one.reached for one in outcome.details.targets}
    assert reached["params"] == pytest.approx(after / before, rel=0.03)  # before folding the BatchNormalization


def test_latency_is_searched_with_measured_times(tmp_path: Path) -> None:
    model, data = redundant(), images(32)
    outcome = channels.prune(model, params(target={"latency": "100 %"}, round_to=1), context(model, tmp_path, data))
    assert outcome.details.targets[0].metric == "latency"
    with pytest.raises(StepError) as caught:
        channels.prune(model, params(target={"latency": "0.1 %"}), context(model, tmp_path, data))
    assert caught.value.code == "prune.target-unreachable"


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    model, data = redundant(), images()
    runs = [channels.prune(model, params(target={"macs": "60 %"}), context(model, tmp_path, data)) for _ in range(2)]
    assert io.to_bytes(runs[0].model) == io.to_bytes(runs[1].model)


def test_the_input_is_not_changed(tmp_path: Path) -> None:
    model = redundant()
    before = io.to_bytes(model)
    channels.prune(model, params(), context(model, tmp_path, images(32)))
    assert io.to_bytes(model) == before


def test_round_to_and_scope_and_min_width(tmp_path: Path) -> None:
    model, data = redundant(), images(32)
    options = {"target": {"macs": "60 %"}, "round_to": 4, "scope": "layer", "min_width": "30 %"}
    outcome = channels.prune(model, params(**options), context(model, tmp_path, data))
    assert all(row.after % 4 == 0 for row in outcome.details.widths if row.after != row.before)
    assert all(row.after >= 0.3 * row.before for row in outcome.details.widths)


def test_exclude_keeps_outputs_of_a_node(tmp_path: Path) -> None:
    model, data = redundant(), images(32)
    first = next(
        node.name for node in model.graph if node.op_type == "Conv" and "w6" in [v.name for v in node.inputs if v]
    )
    outcome = channels.prune(model, params(target={"macs": "80 %"}, exclude=[first]), context(model, tmp_path, data))
    reasons = {decision.node: decision for decision in outcome.decisions}
    assert reasons[first].action == "frozen"
    assert "include/exclude" in reasons[first].reason
    with pytest.raises(RecipeError):
        channels.prune(model, params(exclude=["nothing*"]), context(model, tmp_path, data))


def test_without_data_weights_decide_and_a_warning_says_so(tmp_path: Path) -> None:
    model = redundant()
    given = context(model, tmp_path, None, check=images(4))
    outcome = channels.prune(model, params(target={"macs": "70 %"}), given)
    assert outcome.changed
    assert "no calibration data" in outcome.warnings[0]
    for options in ({"recover": ["least_squares"]}, {"importance": "hessian"}):
        with pytest.raises(DataError):
            channels.prune(model, params(**options), given)


def test_an_unreachable_target_says_how_far_it_goes(tmp_path: Path) -> None:
    model = redundant()
    with pytest.raises(StepError, match=r"can go down to [0-9.]+%") as caught:
        channels.prune(model, params(target={"macs": "1 %"}), context(model, tmp_path, images(8)))
    assert caught.value.option == ("target", "macs")


def test_few_samples_are_reported(tmp_path: Path) -> None:
    n = Network()
    hidden = n.node("Relu", n.node("Gemm", n.input("x", "batch", 8), n.weight(8, 64), n.weight(64)))
    model = n.model(n.node("Gemm", hidden, n.weight(64, 4), n.weight(4)))
    data = Arrays({"x": np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)})
    outcome = channels.prune(model, params(target={"params": "50 %"}), context(model, tmp_path, data))
    assert "calibration samples are few" in outcome.warnings[0]
    assert np.isfinite(outputs(outcome.model, data)).all()


def test_damaged_weights_and_activations(tmp_path: Path) -> None:
    model, data = redundant(), images(16)
    name = next(name for name in model.graph.initializers if name == "w6")
    array = model.graph.initializers[name].const_value.numpy().copy()
    array.flat[0] = np.nan
    edit.set_weight(model.graph.initializers[name], array)
    with pytest.raises(StepError, match="not finite"):
        channels.prune(model, params(), context(model, tmp_path, data))
    model, data = redundant(), images(16)
    data.feeds["x"][0, 0, 0, 0] = np.inf
    with pytest.raises(StepError, match="not finite"):
        channels.prune(model, params(), context(model, tmp_path, data))


def test_nothing_prunable_is_no_change(tmp_path: Path) -> None:
    n = Network()
    model = n.model(n.conv(n.input("x", "batch", 3, 8, 8), 3, 4))
    outcome = channels.prune(model, params(), context(model, tmp_path, images(4)))
    assert outcome.changed == 0
    assert outcome.decisions[0].action == "frozen"


def test_dry_runs_measure_nothing(tmp_path: Path) -> None:
    model = redundant()
    outcome = channels.prune(model, params(), context(model, tmp_path, images(4), dry=True))
    assert outcome.model is model
    assert "can go down to" in outcome.summary
    assert {decision.action for decision in outcome.decisions} == {"prunable", "frozen"}


def test_batch_norm_is_reestimated_where_nodes_are_kept(tmp_path: Path) -> None:
    model, data = redundant(2), images()
    options = {"target": {"macs": "50 %"}, "importance": "l1", "recover": ["batch_norm"]}
    outcome = channels.prune(model, params(**options), context(model, tmp_path, data))
    assert any(node.op_type == "BatchNormalization" for node in outcome.model.graph)
    assert {row.kind for row in outcome.details.recovery} == {"batch_norm"}


def test_survey_needs_no_data() -> None:
    facts = channels.survey(redundant(), {"x": (2, 3, 8, 8)})
    assert [fact.group.channels for fact in facts] == [8, 12, 12, 10]
    assert facts[-1].group.frozen
    assert all(0 < fact.macs_share <= 1 for fact in facts)


@pytest.mark.parametrize("importance", ["l2", "hessian"])
def test_without_repair_the_result_is_the_model_with_zeros_in_place(importance: str, tmp_path: Path) -> None:
    """Channels that were cut, zeroed instead: the same outputs."""
    model, data = redundant(), images(32)
    options = {"target": {"macs": "60 %"}, "importance": importance, "recover": []}
    outcome = channels.prune(model, params(**options), context(model, tmp_path, data))
    found = analysis.analysed(model, params(**options), {"x": (2, 3, 8, 8)})
    kept = {group.name: group.kept for group in outcome.details.groups}
    given = context(model, tmp_path, data)
    levels = [np.arange(group.channels, 0, -1) for group in found.groups]
    rankings, _ = ranking.ranked_groups(found, params(**options), given, levels, [])
    gone = [
        (group, order.order[: group.channels - kept[group.name]])
        for group, order in zip(found.groups, rankings, strict=True)
    ]
    assert sum(len(order) for _, order in gone) > 5
    wanted = outputs(zeroed(found.model, gone), data)
    np.testing.assert_allclose(outputs(outcome.model, data), wanted, rtol=1e-3, atol=1e-4)


def percent(share: float) -> str:
    return f"{100 * share:.6f} %"


def parameters(model: ir.Model) -> int:
    return sum(value.const_value.size for value in model.graph.initializers.values())


@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
@pytest.mark.parametrize("metric", ["macs", "params", "size"])
def test_targets_hold_on_the_finished_model_and_what_is_reached_is_counted_there(
    metric: str, share: float, tmp_path: Path
) -> None:
    model, data = redundant(), images(32)
    given = context(model, tmp_path, None, check=data)
    outcome = channels.prune(model, params(target={metric: percent(share)}), given)
    count = {"macs": macs, "params": parameters, "size": lambda one: len(io.to_bytes(one))}[metric]
    (told,) = outcome.details.targets
    assert told.reached == pytest.approx(count(outcome.model) / count(model))
    assert (told.metric, told.target) == (metric, pytest.approx(share))
    assert share - 0.1 < told.reached <= share * (1.02 if metric == "size" else 1)
    rows = outcome.details.groups
    went = sum(row.channels - row.kept for row in rows)
    narrower = sum(row.kept < row.channels for row in rows)
    assert outcome.summary == (
        f"{went} of 32 channels removed in {narrower} groups; {metric} {told.reached:.1%} of the original"
    )
    assert outcome.changed == narrower


def test_what_folding_alone_reaches_is_done(tmp_path: Path) -> None:
    """A table of which few rows are read, as exporters leave it: most of the parameters, and nothing goes with it."""
    n = Network()
    rows = n.node("Gather", n.weight(400, 16), n.literal(0, 1, 2, 3))
    x = n.node("Add", n.input("x", "batch", 4, 16), rows)
    model = n.model(n.linear(n.node("Relu", n.linear(x, 16, 32)), 32, 16))
    data = Arrays({"x": np.random.default_rng(0).normal(size=(8, 4, 16)).astype(np.float32)})
    outcome = channels.prune(model, params(target={"params": "80 %"}), context(model, tmp_path, None, check=data))
    assert outcome.summary == "already there: params within 80.0% of the original"
    assert outcome.changed == 1
    assert io.weight_bytes(outcome.model) < 0.5 * io.weight_bytes(model)
    assert relative_error(model, outcome.model, data) < 1e-6


def test_shares_are_of_the_model_that_the_run_began_with(tmp_path: Path) -> None:
    """Pruned before to 60 %, it is there already; 50 % of the original is less than that of what is left."""
    model, data = redundant(), images(32)
    given = context(model, tmp_path, None, check=data)
    first = channels.prune(model, params(target={"macs": "60 %"}), given).model
    there = channels.prune(first, params(target={"macs": "60 %"}), given)
    assert (there.changed, there.model) == (0, first)
    assert there.summary == "already there: macs within 60.0% of the original"
    second = channels.prune(first, params(target={"macs": "50 %"}), given)
    assert 0.4 < macs(second.model) / macs(model) <= 0.5
    both = channels.prune(first, params(target={"macs": "60 %", "params": "100 %"}), given)
    assert both.summary == "already there: params within 100.0% and macs within 60.0% of the original" or (
        both.summary == "already there: macs within 60.0% and params within 100.0% of the original"
    )


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_how_far_a_target_can_go_is_that_of_the_least_widths(metric: str, tmp_path: Path) -> None:
    model = redundant()
    found = analysis.analysed(model, params(), {"x": (2, 3, 8, 8)})
    gone = np.concatenate([group.atoms[: group.channels - int(np.ceil(group.channels / 2))] for group in found.groups])
    least = cut.cut(found.model, found.coupling, gone)
    count = macs if metric == "macs" else parameters
    lowest = count(least) / count(model)
    options = {"target": {metric: percent(lowest - 0.001)}, "min_width": "50 %"}
    given = context(model, tmp_path, None, check=images(4))
    with pytest.raises(StepError) as caught:
        channels.prune(model, params(**options), given)
    assert f"{metric} can go down to {lowest:.1%} of the original, not to {lowest - 0.001:.1%}" in str(caught.value)
    assert caught.value.option == ("target", metric)
    dry = channels.prune(model, params(**options | {"target": {metric: "90 %"}}), dataclasses.replace(given, dry=True))
    assert f"3 groups can lose channels; {metric} can go down to {lowest:.1%}" in dry.summary
    assert dry.changed == 3
    reached = channels.prune(model, params(**options | {"target": {metric: percent(lowest + 1e-6)}}), given)
    assert [row.kept for row in reached.details.groups] == [4, 6, 6, 10]


@pytest.mark.parametrize(
    ("width", "block", "wanted"),
    [
        (64, 16, [64, 48, 32, 16]),
        (32, 16, [32, 16]),
        (31, 16, [31, 24, 16, 8]),
        (16, 8, [16, 8]),
        (15, 8, [15, 12, 8, 4]),
    ],
)
def test_widths_fill_vector_blocks_for_latency_and_half_blocks_in_narrow_layers(
    width: int, block: int, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Machine("a processor", "x86", ("avx512f",) if block == 16 else (), 2)
    monkeypatch.setattr(times, "machine", lambda: here)
    n = Network()
    x = n.conv(n.input("x", "batch", 3, 8, 8), 3, width)
    model = n.model(n.conv(n.node("Relu", x), width, 4))
    (group,) = analysis.analysed(model, params(), {"x": (2, 3, 8, 8)}).groups
    assert targets.levels(group, params(target={"latency": "80 %"})).tolist() == wanted
    assert targets.levels(group, params(timed_as="int8")).tolist() == wanted
    assert targets.levels(group, params(target={"latency": "80 %"}, round_to=width // 2)).tolist() == (
        [width, *range((width - 1) // (width // 2) * (width // 2), 0, -(width // 2))]
    )
    least = int(np.ceil(0.3 * width))
    assert targets.levels(group, params(min_width="30 %")).tolist() == list(range(width, least - 1, -1))
    assert targets.levels(group, params(min_width="0 %")).tolist() == list(range(width, 0, -1))


@pytest.mark.parametrize(
    ("recover", "folds"),
    [
        (None, True),
        (["least_squares"], True),
        (["batch_norm"], False),
        (["batch_norm", "least_squares"], True),
        ([], True),
    ],
)
def test_normalisations_stay_where_they_alone_are_repaired(
    recover: list[str] | None, folds: bool, tmp_path: Path
) -> None:
    model, data = redundant(), images(32)
    outcome = channels.prune(model, params(recover=recover), context(model, tmp_path, data))
    assert any(node.op_type == "BatchNormalization" for node in outcome.model.graph) != folds
    kinds = {row.kind for row in outcome.details.recovery}
    assert bool(kinds) == (recover != [])
    if recover == ["batch_norm"]:
        assert kinds == {"batch_norm"}


def test_infinite_weights_of_a_product_are_named(tmp_path: Path) -> None:
    model = redundant()
    last = next(node for node in model.graph if node.op_type == "Gemm")
    array = last.inputs[1].const_value.numpy().copy()
    array[0, 0] = np.inf
    set_weight(model.graph.initializers[last.inputs[1].name], array)
    with pytest.raises(StepError, match=rf"weights `{last.inputs[1].name}` of node `{last.name}` are not finite"):
        channels.prune(model, params(), context(model, tmp_path, None, check=images(4)))


def test_why_nothing_can_go_is_said(tmp_path: Path) -> None:
    n = Network()
    model = n.model(n.node("Relu", n.input("x", "batch", 3)))
    given = context(model, tmp_path, Arrays({"x": np.zeros((4, 3), np.float32)}))
    outcome = channels.prune(model, params(), given)
    assert outcome.summary.endswith("the main graph has no convolution or product with stored weights")
    n = Network()
    model = n.model(n.conv(n.input("x", "batch", 3, 8, 8), 3, 4))
    outcome = channels.prune(model, params(), context(model, tmp_path, images(4)))
    assert outcome.model is model
    assert "all 1 groups are frozen (`Conv_0`: `Conv_0_out` is an output of the model)" in outcome.summary


@pytest.mark.parametrize("dry", [False, True])
def test_widths_for_later_kernels_hold_the_target_and_say_their_time(dry: bool, tmp_path: Path) -> None:
    model = redundant()
    given = context(model, tmp_path, images(16), dry=dry)
    outcome = channels.prune(model, params(target={"macs": "70 %"}, timed_as="int8", recover=[]), given)
    assert outcome.details.timed_as == (None if dry else "int8")
    if not dry:
        (reached,) = outcome.details.targets
        assert (reached.metric, reached.predicted) == ("macs", None)
        assert reached.reached <= 0.7
        assert outcome.details.time > 0
        assert f", {outcome.details.time:.0%} of its time in int8" in outcome.summary
        assert "QuantizeLinear" not in {node.op_type for node in outcome.model.graph}


def test_a_target_that_whole_blocks_do_not_reach_is_reached_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 8 and 12 channels keep 4 each in halves of a block of 8, and 1 in channels."""
    monkeypatch.setattr(times, "machine", lambda: Machine("a processor", "x86", (), 2))
    model = redundant()
    given = context(model, tmp_path, images(16))
    options = {"timed_as": "int8", "recover": [], "target": {"params": "15 %"}}
    outcome = channels.prune(model, params(**options), given)
    assert outcome.details.targets[0].reached <= 0.15
    assert outcome.details.timed_as is None
    assert any(group.kept % 4 for group in outcome.details.groups if not group.frozen)
    with pytest.raises(StepError, match=r"not to 1.0%"):
        channels.prune(model, params(**options | {"target": {"params": "1 %"}}), given)
