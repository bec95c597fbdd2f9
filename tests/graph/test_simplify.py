"""`simplify` on the bundled models: smaller graphs, the same results, and a reason for everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.errors import RecipeError
from lepton_cli.graph.spec import Simplify
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.step import Outcome
from lepton_cli.steps import STEPS
from tests.quantize.builders import Samples, context


def _simplify(path: Path, tmp_path: Path, **options: object) -> Outcome:
    model = io.load(path).model
    return STEPS["simplify"].apply(
        model, Simplify(step="simplify", **options), context(Samples(x=np.zeros((1, 1))), tmp_path)
    )


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("digits_cnn", ("image", (3, 1, 32, 32))),
        ("digits_mlp", ("pixels", (3, 64))),
        ("digits_vit", ("image", (3, 1, 8, 8))),
    ],
)
def test_results_stay_the_same(name: str, inputs: tuple[str, tuple[int, ...]], samples: Path, tmp_path: Path) -> None:
    path = samples / f"{name}.onnx"
    outcome = _simplify(path, tmp_path)
    feeds = {inputs[0]: np.random.default_rng(0).random(inputs[1], np.float32)}
    before = Session(path, threads=1).run(feeds)["logits"]
    after = Session(io.to_bytes(outcome.model), threads=1).run(feeds)["logits"]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    assert len(io.to_bytes(outcome.model)) <= len(io.to_bytes(io.load(path).model))


def test_batch_norm_is_folded_unless_told_otherwise(samples: Path, tmp_path: Path) -> None:
    path = samples / "digits_cnn.onnx"
    folded = _simplify(path, tmp_path)
    assert [d.action for d in folded.decisions if d.op == "BatchNormalization"] == ["folded"] * 27
    kept = _simplify(path, tmp_path, fold_batch_norm=False)
    assert sum(node.op_type == "BatchNormalization" for node in kept.model.graph) == 27
    some = _simplify(path, tmp_path, exclude=("/stages/*",))
    left = [node for node in some.model.graph if node.op_type == "BatchNormalization"]
    assert 0 < len(left) < 27


def test_nothing_to_do_is_no_error(samples: Path, tmp_path: Path) -> None:
    once = _simplify(samples / "digits_cnn.onnx", tmp_path).model
    twice = STEPS["simplify"].apply(once, Simplify(step="simplify"), context(Samples(x=np.zeros((1, 1))), tmp_path))
    assert twice.changed == 0
    assert io.to_bytes(twice.model) == io.to_bytes(once)


def test_a_glob_without_match(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        _simplify(samples / "digits_cnn.onnx", tmp_path, exclude=("/stage/*",))
    assert caught.value.option == ("exclude", 0)
