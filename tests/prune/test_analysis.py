"""Which groups may lose channels, and what a survey says about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.coupling import cut
from lepton_cli.data.memory import Arrays
from lepton_cli.graph import cost as node_cost
from lepton_cli.graph import shapes
from lepton_cli.prune import analysis
from lepton_cli.prune.spec import PruneChannels
from tests.coupling.networks import Network
from tests.coupling.test_shortcuts import network
from tests.prune.context import context, images, redundant

SHAPE = {"x": (2, 3, 8, 8)}


def params(**options: object) -> PruneChannels:
    return PruneChannels.model_validate({"step": "prune.channels", **options})


def test_groups_and_what_is_frozen() -> None:
    found = analysis.analysed(redundant(), params(), SHAPE)
    assert [group.channels for group in found.groups] == [8, 12, 12]
    assert [group.channels for group in found.frozen] == [10]
    assert all(group.frozen is None for group in found.groups)
    assert found.rewritten == ()


def test_a_group_with_a_producer_left_out_is_frozen_there() -> None:
    whole = analysis.analysed(redundant(), params(), SHAPE)
    last = whole.groups[0].producers[-1].node
    found = analysis.analysed(redundant(), params(exclude=[last]), SHAPE)
    assert [group.channels for group in found.groups] == [12, 12]
    frozen = {group.name: (group.frozen, group.node) for group in found.frozen}
    assert frozen[whole.groups[0].name] == ("left out by include/exclude", last)
    assert frozen[whole.frozen[0].name] == (whole.frozen[0].frozen, whole.frozen[0].node)
    only = analysis.analysed(redundant(), params(include=[whole.groups[1].name]), SHAPE)
    assert [group.name for group in only.groups] == [whole.groups[1].name]


@pytest.mark.parametrize(("width", "prunable"), [(1, False), (2, True)])
def test_a_single_channel_stays(width: int, prunable: bool) -> None:
    n = Network()
    x = n.conv(n.input("x", "batch", 3, 8, 8), 3, width)
    model = n.model(n.conv(n.node("Relu", x), width, 4))
    found = analysis.analysed(model, params(), SHAPE)
    assert len(found.groups) == prunable
    reasons = [(group.frozen, group.node) for group in found.frozen if group.channels == 1]
    assert reasons == ([] if prunable else [("a single channel", "Conv_0")])


def test_normalisations_are_folded_unless_they_are_to_be_estimated_again() -> None:
    def norms(found: analysis.Analysis) -> int:
        return sum(node.op_type == "BatchNormalization" for node in found.model.graph)

    model = redundant()
    scale = next(node for node in model.graph if node.op_type == "BatchNormalization").inputs[1].const_value.numpy()
    folded = analysis.analysed(model, params(), SHAPE)
    assert norms(folded) == 0
    (found,) = folded.scales.values()
    np.testing.assert_allclose(found, np.abs(scale), rtol=1e-6)
    assert list(folded.scales) == ["Conv_0"]
    kept = analysis.analysed(model, params(), SHAPE, folding=False)
    assert norms(kept) == 1
    assert kept.scales == {}
    assert norms(analysis.Analysis(model, kept.coupling, (), (), {})) == 1


def test_shortcuts_are_rewritten_for_latency_only() -> None:
    target = {"target": {"latency": "100 %"}}
    assert analysis.analysed(network(), params(**target), SHAPE).rewritten == ("Pad_4",)
    assert not analysis.analysed(network(), params(**target, exclude=["Pad*"]), SHAPE).rewritten
    assert not analysis.analysed(network(), params(), SHAPE).rewritten


def counted(model: ir.Model) -> tuple[float, float]:
    arrays = [value.const_value.numpy() for value in model.graph.initializers.values()]
    return float(sum(node_cost.macs(model, shapes.concrete(model, SHAPE)).values())), float(sum(a.size for a in arrays))


def test_a_survey_says_what_a_group_costs() -> None:
    """What a group is part of, against the model with one of its channels less: costs are linear in one group."""
    found = analysis.analysed(redundant(), params(), SHAPE)
    told = analysis.survey(redundant(), SHAPE)
    macs, elements = counted(found.model)
    groups = (*found.groups, *found.frozen)
    assert len(told) == len(groups)
    for group, one in zip(groups, told, strict=True):
        same = ("name", "channels", "producers", "consumers", "frozen", "node")
        assert [getattr(one.group, key) for key in same] == [getattr(group, key) for key in same]
        if group.channels == 12:
            fewer, smaller = counted(cut.cut(found.model, found.coupling, group.atoms[:1]))
            assert one.macs_share == pytest.approx(12 * (macs - fewer) / macs)
            assert one.parameters == 12 * (elements - smaller)
    stem = told[0]
    layers = sum(2 * 8 * 12 * 9 + 8 for _ in range(2)) + 3 * 8 * 9 + 8 + 8 * 10
    assert stem.parameters == layers
    assert stem.macs_share == pytest.approx(1.0)


def test_models_without_products_have_nothing_to_survey() -> None:
    n = Network()
    assert analysis.survey(n.model(n.node("Relu", n.input("x", "batch", 3))), {"x": (2, 3)}) == []


def test_inputs_are_of_the_datas_shape_with_two_samples_where_the_batch_is_open(tmp_path: Path) -> None:
    model = redundant()
    assert analysis.feeds(model, context(model, tmp_path, images(5, size=12))) == {"x": (2, 3, 12, 12)}
    fixed = redundant()
    fixed.graph.inputs[0].shape = ir.Shape([5, 3, "height", "width"])
    assert analysis.feeds(fixed, context(fixed, tmp_path, images(5, size=12))) == {"x": (5, 3, 12, 12)}


def test_inputs_without_data_are_of_the_models_shape(tmp_path: Path) -> None:
    n = Network()
    x = n.input("x", "batch", 3, "length")
    n.input("scale")
    model = n.model(n.node("Mul", x, "scale"))
    other = Arrays({"y": np.zeros((4, 2), np.float32)})
    assert analysis.feeds(model, context(model, tmp_path, other)) == {"x": (2, 3, 16), "scale": ()}
    given = Arrays({"x": np.zeros((4, 3, 7), np.float32)})
    assert analysis.feeds(model, context(model, tmp_path, given)) == {"x": (2, 3, 7), "scale": ()}
