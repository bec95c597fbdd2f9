"""`fuse` on the bundled transformer: what is gained, what is left, and that results stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.errors import MissingExtraError, RecipeError
from lepton_cli.graph import fusion
from lepton_cli.graph.spec import Fuse
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.steps import STEPS
from tests.quantize.builders import Samples, context


@pytest.fixture
def vit(samples: Path) -> ir.Model:
    return io.load(samples / "digits_vit.onnx").model


def _logits(model: ir.Model) -> np.ndarray:
    images = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    return Session(io.to_bytes(model), threads=1).run({"image": images})["logits"]


def _context(tmp_path: Path):
    return context(Samples(image=np.zeros((4, 1, 8, 8), np.float32)), tmp_path)


def test_heads_are_read_from_the_graph(vit: ir.Model, samples: Path) -> None:
    assert fusion.detect_heads(vit) == (4, 64)
    assert fusion.detect_heads(io.load(samples / "digits_cnn.onnx").model) is None


def test_without_attention_nothing_is_fused_ahead(vit: ir.Model, tmp_path: Path) -> None:
    outcome = STEPS["fuse"].apply(vit, Fuse(step="fuse"), _context(tmp_path))
    assert outcome.changed == 0
    assert outcome.model is vit
    assert {decision.op for decision in outcome.decisions} == {"Softmax"}
    assert "no attention" in outcome.decisions[0].reason


def test_a_named_type_fuses_what_it_finds(vit: ir.Model, tmp_path: Path) -> None:
    outcome = STEPS["fuse"].apply(vit, Fuse(step="fuse", model_type="bert"), _context(tmp_path))
    assert outcome.details["operators"]["SkipLayerNormalization"] == 8
    assert outcome.changed == sum(outcome.details["operators"].values())
    np.testing.assert_allclose(_logits(outcome.model), _logits(vit), atol=1e-4)
    assert io.inputs(outcome.model) == io.inputs(vit)


def test_globs_make_no_sense_here(vit: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        STEPS["fuse"].apply(vit, Fuse(step="fuse", exclude=("/head/*",)), _context(tmp_path))
    assert caught.value.option == ("exclude",)


def test_the_old_engine_is_an_extra(vit: ir.Model, tmp_path: Path) -> None:
    try:
        import onnxruntime_tools  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="onnxruntime-tools"):
            STEPS["fuse"].apply(vit, Fuse(step="fuse", engine="onnxruntime-tools"), _context(tmp_path))
    else:
        pytest.skip("onnxruntime-tools is installed")
