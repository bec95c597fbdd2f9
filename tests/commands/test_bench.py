"""What `bench` calls the models and says about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.commands import adhoc, bench
from lepton_cli.errors import ModelError, UsageError
from lepton_cli.model import io
from lepton_cli.tensors import TensorInfo
from tests.cli.small import data, model
from tests.report import builders

ONE = TensorInfo("x", "float32", ("N", 8))


@pytest.fixture
def loaded(tmp_path: Path) -> ir.Model:
    return io.load(model(tmp_path / "m.onnx")).model


def test_names_are_as_short_as_they_can_be() -> None:
    assert bench._names([Path("a.onnx"), Path("out/b.onnx")]) == ["a", "b"]
    assert bench._names([Path("old/a.onnx"), Path("new/a.onnx")]) == ["old/a", "new/a"]
    assert bench._names([Path("a.onnx"), Path("a.onnx"), Path("b.onnx")]) == ["a#1", "a#2", "b"]


def test_the_headline_begins_with_what_is_slower() -> None:
    table = builders.latency_table().model_copy(
        update={
            "changes": (
                builders.change(1e-3, 0.5).model_copy(update={"variant": "quick"}),
                builders.change(1e-3, 2.0).model_copy(update={"variant": "slow"}),
                builders.change(1e-3, 1.0).model_copy(update={"variant": "same"}),
            )
        }
    )
    said = bench.headline(builders.report(latency=table))
    assert said == ("slow is 2.00x SLOWER, same is as fast, quick is 2.00x faster (cpu, batch 1)")


def test_inputs_are_matched_by_name_then_by_position() -> None:
    same = TensorInfo("x", "float16", ("B", 8))
    renamed = TensorInfo("features", "float32", (1, 8))
    assert adhoc.match_inputs([ONE], [same], "b") == {}
    assert adhoc.match_inputs([ONE], [renamed], "b") == {"features": "x"}
    for other in (
        TensorInfo("f", "int64", ("N", 8)),
        TensorInfo("f", "float32", ("N", 9)),
        TensorInfo("f", "float32", ("N",)),
    ):
        with pytest.raises(ModelError, match="takes other inputs"):
            adhoc.match_inputs([ONE], [other], "b.onnx")
    with pytest.raises(ModelError):
        adhoc.match_inputs([ONE], [renamed, renamed], "b.onnx")


def test_data_is_repeated_up_to_the_batch(tmp_path: Path, loaded: ir.Model) -> None:
    recipe = adhoc.recipe(loaded, {}, data=data(tmp_path / "data.npz"))
    feeds = bench._Feeds([ONE], recipe, 1, None, None)
    stored = np.load(tmp_path / "data.npz")["x"]
    assert np.array_equal(feeds(3)["x"], stored[:3])
    assert np.array_equal(feeds(70)["x"], np.concatenate([stored, stored[:10]]))


def test_random_inputs_have_as_many_samples_as_asked_for(loaded: ir.Model) -> None:
    inputs = [ONE, TensorInfo("state", "float32", (2, "N", 4))]
    feeds = bench._Feeds(inputs, adhoc.recipe(loaded, {}), 64, None, None)(64)
    assert {name: array.shape for name, array in feeds.items()} == {"x": (64, 8), "state": (2, 64, 4)}


def test_labels_are_found_under_their_usual_names(tmp_path: Path, loaded: ir.Model) -> None:
    found = adhoc.recipe(loaded, {}, data=data(tmp_path / "data.npz")).recipe.data.evaluation
    assert found is not None
    assert found.labels == "labels"
    np.savez(tmp_path / "bare.npz", x=np.zeros((4, 8), np.float32))
    bare = adhoc.recipe(loaded, {}, data=tmp_path / "bare.npz").recipe.data.evaluation
    assert bare is not None
    assert bare.labels is None


def test_options_are_read_like_a_recipe(loaded: ir.Model) -> None:
    spec = adhoc.recipe(loaded, {"time": "2 s", "batch": [1, 8]}).recipe.evaluate.latency
    assert spec
    assert (spec.time, spec.batch) == (2.0, (1, 8))
    assert adhoc.recipe(loaded, None).recipe.evaluate.latency is False
    with pytest.raises(UsageError):
        adhoc.recipe(loaded, {"time": "2"})
    with pytest.raises(UsageError):
        adhoc.recipe(loaded, {}, labels="y")
