"""What pruning rewrites is held to the function that it was, on the model at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.errors import StepError
from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.prune import analysis, channels, proof
from lepton_cli.prune.spec import PruneChannels
from tests.quantize.builders import context, images, inverted_residual_net, residual_net


def _pruned(model: ir.Model, tmp_path: Path) -> ir.Model:
    options = PruneChannels(step="prune.channels", target={"params": "70 %"})
    return channels.prune(model, options, context(images(32), tmp_path, original=model)).model


def test_a_right_cut_passes(tmp_path: Path) -> None:
    assert io.weight_bytes(_pruned(residual_net(), tmp_path)) < 0.72 * io.weight_bytes(residual_net())


def _shifted(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps one channel too far to the side."""

    def keep(self: Any, *arguments: Any) -> Any:
        mask = original(self, *arguments)
        return None if mask is None or mask.all() else np.roll(mask, 1)

    return keep


def test_channels_cut_from_another_place_never_leave_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(analysis.analysed(residual_net(), PruneChannels(step="prune.channels"), {"x": (2, 3, 16, 16)}).coupling)
    monkeypatch.setattr(kind, "keep", _shifted(kind.keep))
    with pytest.raises(StepError) as caught:
        _pruned(residual_net(), tmp_path)
    assert caught.value.code == "step.rewrite"
    assert caught.value.message.startswith("removing channels does not compute the same")


def test_a_wrong_preparation_never_leaves_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold = analysis.batch_norm.fold_batch_norm

    def folded(model: ir.Model) -> Any:
        made = fold(model)
        bias = next(node.inputs[2] for node in model.graph if node.op_type == "Conv" and len(node.inputs) > 2)
        assert bias is not None
        assert bias.const_value is not None
        set_weight(bias, bias.const_value.numpy() * np.float32(1.01))
        return made

    monkeypatch.setattr(analysis.batch_norm, "fold_batch_norm", folded)
    with pytest.raises(StepError, match="preparing the graph for pruning does not compute the same"):
        _pruned(inverted_residual_net(), tmp_path)


def test_zeros_in_place_of_channels() -> None:
    """By hand: every slice of the channels, and nothing else; variances become one."""
    plan = analysis.analysed(
        inverted_residual_net(), PruneChannels(step="prune.channels"), {"x": (2, 3, 16, 16)}, folding=False
    )
    group = next(group for group in plan.groups if group.channels == 48)
    made = proof.zeroed(plan.model, [(group, np.array([0, 47]))])
    own = {name for name, _ in group.slices}
    for name, value in plan.model.graph.initializers.items():
        before, after = (one.const_value.numpy() for one in (value, made.graph.initializers[name]))  # type: ignore[union-attr]
        if name not in own:
            np.testing.assert_array_equal(after, before)
            continue
        (axis,) = [axis for other, axis in group.slices if other == name]
        variance = any(node.op_type == "BatchNormalization" and index == 4 for node, index in value.uses())
        first, second = np.moveaxis(before, axis, 0), np.moveaxis(after, axis, 0)
        np.testing.assert_array_equal(second[1:47], first[1:47])
        assert (second[[0, 47]] == (1 if variance else 0)).all()
    assert len(own) >= 8, "weights on both sides, biases, and four vectors of a norm"
