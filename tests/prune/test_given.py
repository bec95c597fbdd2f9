"""Widths that are given: the model that a target made is made again, on any machine, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lepton_cli.errors import StepError
from lepton_cli.model import io
from lepton_cli.prune import analysis, channels
from lepton_cli.prune.details import PruneChannelsDetails
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.step import Outcome
from tests.coupling.test_shortcuts import network
from tests.prune.context import context, images, redundant, relative_error

SHAPE = {"x": (2, 3, 8, 8)}


def given(widths: dict[str, int], **options: object) -> PruneChannels:
    return PruneChannels.model_validate({"step": "prune.channels", "widths": widths, **options})


def kept(outcome: Outcome) -> dict[str, int]:
    assert isinstance(outcome.details, PruneChannelsDetails)
    return {group.name: group.kept for group in outcome.details.groups if group.kept < group.channels}


def test_the_widths_of_a_target_make_its_model_again(tmp_path: Path) -> None:
    model, here = redundant(), context(redundant(), tmp_path, images(64))
    aimed = PruneChannels.model_validate({"step": "prune.channels", "target": {"params": "70 %"}})
    first = channels.prune(model, aimed, here)
    assert len(kept(first)) > 1
    second = channels.prune(model, given(kept(first)), here)
    assert io.to_bytes(second.model) == io.to_bytes(first.model)
    assert kept(second) == kept(first)
    assert [one.model_dump() for one in second.decisions] == [one.model_dump() for one in first.decisions]


def test_exactly_what_is_named_becomes_narrower(tmp_path: Path) -> None:
    model, here = redundant(), context(redundant(), tmp_path, images(64))
    names = [group.name for group in analysis.analysed(model, given({}), SHAPE).groups if group.channels == 12]
    outcome = channels.prune(model, given({names[1]: 6}), here)
    assert kept(outcome) == {names[1]: 6}
    assert outcome.changed == 1
    # Half of its channels are mixtures of the others: nothing is lost.
    assert relative_error(outcome.model, model, images(8)) < 1e-4


def test_branches_go_that_are_named(tmp_path: Path) -> None:
    model, here = redundant(), context(redundant(), tmp_path, images(64))
    adds = [node.name or "" for node in model.graph if node.op_type == "Add"]
    outcome = channels.prune(model, given({}, drop_branches=[adds[1]]), here)
    assert isinstance(outcome.details, PruneChannelsDetails)
    assert [branch.add for branch in outcome.details.branches] == [adds[1]]
    assert sum(node.op_type == "Conv" for node in outcome.model.graph) == 3
    assert sum(node.op_type == "Add" for node in outcome.model.graph) == 1


def test_groups_that_only_rewritten_shortcuts_free_are_found(tmp_path: Path) -> None:
    """And a graph whose shortcuts are not touched keeps them."""
    model = network()
    here = context(model, tmp_path, images(16))
    plain = {group.name for group in analysis.analysed(model, given({}), SHAPE).groups}
    freed = [g for g in analysis.analysed(model, given({}), SHAPE, rewriting=True).groups if g.name not in plain]
    assert freed
    outcome = channels.prune(model, given({freed[0].name: freed[0].channels - 1}), here)
    assert kept(outcome) == {freed[0].name: freed[0].channels - 1}
    assert "Pad" not in [node.op_type for node in outcome.model.graph]


@pytest.mark.parametrize("dry", [True, False])
def test_names_and_widths_of_another_model_are_refused(tmp_path: Path, dry: bool) -> None:
    model, here = redundant(), context(redundant(), tmp_path, images(16), dry=dry)
    names = [group.name for group in analysis.analysed(model, given({}), SHAPE).groups]
    with pytest.raises(StepError, match="no group of channels `no_such`"):
        channels.prune(model, given({"no_such": 3}), here)
    with pytest.raises(StepError, match="residual branch into `no_such`"):
        channels.prune(model, given({}, drop_branches=["no_such"]), here)
    with pytest.raises(StepError, match="has 12 channels, and 13 cannot remain"):
        channels.prune(model, given({next(n for n in names if n != names[0]): 13}), here)
    with pytest.raises(StepError, match=r"no channel of group .* left out by include/exclude") as caught:
        channels.prune(model, given({names[1]: 4}, exclude=[names[1]]), here)
    assert caught.value.option == ("widths", names[1])


def test_nothing_to_do_changes_nothing(tmp_path: Path) -> None:
    model, here = redundant(), context(redundant(), tmp_path, images(16))
    assert channels.prune(model, given({}), here).changed == 0


@pytest.mark.parametrize(
    "options",
    [
        {"widths": {"a": 3}, "target": {"macs": "50 %"}},
        {"widths": {"a": 0}},
        {"drop_branches": ["a"]},
    ],
)
def test_targets_and_widths_exclude_each_other(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PruneChannels.model_validate({"step": "prune.channels", **options})


def test_given_widths_are_timed_for_nothing() -> None:
    from lepton_cli.quantize.spec import QuantizeStatic

    known = given({"a": 3}).knowing([QuantizeStatic()])
    assert not known.timed
    assert known.kept_share is None
