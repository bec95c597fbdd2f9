"""`prune.channels` with `recover: [distill]`: what `distill` makes of what it makes alone; what is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.data.spec import TrainingSpec
from lepton_cli.data.training import open_training
from lepton_cli.errors import LeptonError
from lepton_cli.model import io
from lepton_cli.prune.channels import prune
from lepton_cli.prune.details import PruneChannelsDetails
from lepton_cli.prune.spec import PruneChannels
from lepton_cli.step import Context, Outcome
from lepton_cli.train.details import TrainingDetails
from lepton_cli.train.spec import Distill
from lepton_cli.train.steps import distill
from tests.prune.context import context as pruning
from tests.prune.context import images, redundant


@pytest.fixture(autouse=True)
def _same_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two precisions the faster is measured: two runs may choose differently. A repaired model is hard to better."""
    monkeypatch.setattr("lepton_cli.prune.spec.Distill", lambda: Distill(precision="float32", keep="last"))


def around(model: ir.Model, folder: Path, *, calibrated: bool = True, dry: bool = False) -> Context:
    data = images(256)
    np.savez(folder / "train.npz", x=data.feeds["x"])
    training = open_training(TrainingSpec(path="train.npz"), io.inputs(model), seed=0, base=folder)
    made = pruning(model, folder, images() if calibrated else None, check=images(), dry=dry)
    return dataclasses.replace(made, training=training)


def pruned(model: ir.Model, context: Context, *recover: str, **options: Any) -> Outcome:
    asked = {"step": "prune.channels", "target": {"macs": "40 %"}, "recover": recover, **options}
    return prune(model, PruneChannels.model_validate(asked), context)


@pytest.mark.parametrize("repairs", [(), ("least_squares", "batch_norm")])
def test_it_is_what_distill_makes_behind_the_repairs(repairs: tuple[str, ...], tmp_path: Path) -> None:
    model = redundant(3)
    context = around(model, tmp_path)
    apart = pruned(model, context, *repairs)
    expected = distill(apart.model, Distill(precision="float32", keep="last"), context)
    both = pruned(model, context, "distill", *repairs)
    assert io.to_bytes(both.model) == io.to_bytes(expected.model) != io.to_bytes(apart.model)
    details, alone = both.details, apart.details
    assert isinstance(details, PruneChannelsDetails)
    assert isinstance(alone, PruneChannelsDetails)
    assert details.training is not None
    assert isinstance(expected.details, TrainingDetails)
    timed = {"samples_per_second": 0.0}
    assert details.training.model_copy(update=timed) == expected.details.model_copy(update=timed)
    assert alone.training is None
    assert details.recovery == alone.recovery
    assert details.targets == alone.targets
    assert both.decisions == apart.decisions
    assert both.summary == f"{apart.summary}; distill: {expected.summary}"


def test_samples_to_train_with_are_enough(tmp_path: Path) -> None:
    model = redundant(3)
    both = pruned(model, around(model, tmp_path, calibrated=False), "distill", importance="l2")
    assert isinstance(both.details, PruneChannelsDetails)
    assert both.details.recovery == ()
    assert both.details.training is not None
    assert both.details.training.marks


def test_what_is_missing_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = redundant()
    context = around(model, tmp_path)
    monkeypatch.setattr("lepton_cli.prune.channels.analysed", None)

    def refused(code: str, given: Context) -> None:
        with pytest.raises(LeptonError) as caught:
            pruned(model, given, "distill")
        assert caught.value.code == code

    refused("data.training-missing", dataclasses.replace(context, training=None))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("environment.missing-extra", context)


def test_a_plan_says_how_long_it_will_train(tmp_path: Path) -> None:
    model = redundant()
    context = around(model, tmp_path, dry=True)
    outcome = pruned(model, context, "distill")
    assert outcome.summary.startswith(pruned(model, context).summary + "; distill: ")
    assert "steps of 16 out of" in outcome.summary
    assert outcome.model is model
