"""Walking through a model gives the same values as running it whole, also while its weights change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.graph import edit
from lepton_cli.probe import activations, sequential
from lepton_cli.probe.sequential import Walk
from tests.prune.context import images, redundant


def test_values_are_those_of_the_whole_model(tmp_path: Path) -> None:
    model, data = redundant(), images(20)
    batches = [batch.feeds for batch in data.batches(8)]
    steps = Walk(lambda: batches, len(batches), tmp_path, threads=1)
    for node in [node for node in model.graph if node.op_type in ("Conv", "Gemm")]:
        assert node.inputs[0] is not None
        name = node.inputs[0].name or ""
        whole = activations.Tap(model, [name], tmp_path, threads=1)
        for feeds, values in zip(batches, steps.visit(model, node.name or "", [name]), strict=True):
            np.testing.assert_allclose(values[name], whole.run(feeds)[name], rtol=1e-5, atol=1e-5)
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        edit.set_weight(weight, weight.const_value.numpy() * 1.1)
    assert len(list(tmp_path.rglob("*.npz"))) == len(batches)


def test_too_much_for_the_disk_goes_on_from_an_earlier_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequential, "DISK", 100)
    model, data = redundant(), images(20)
    batches = [batch.feeds for batch in data.batches(8)]
    steps = Walk(lambda: batches, len(batches), tmp_path, threads=1)
    last = next(node for node in model.graph if node.op_type == "Gemm")
    assert last.inputs[0] is not None
    name = last.inputs[0].name or ""
    for _ in range(2):
        values = list(steps.visit(model, last.name or "", [name]))
        assert sum(len(value[name]) for value in values) == 20
    assert not list(tmp_path.rglob("*.npz"))
