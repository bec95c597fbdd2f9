"""`lepton init` and recipes chosen without one: what they make of pictures, labels and mixed networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from onnx import TensorProto
from PIL import Image

from lepton_cli.commands.choose import choose
from lepton_cli.commands.init import write_recipe
from lepton_cli.commands.job import prepare
from lepton_cli.commands.source import scores_classes
from lepton_cli.data.open import open_dataset
from lepton_cli.errors import RecipeError
from lepton_cli.graph.facts import facts
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe import defaults
from lepton_cli.recipe.load import load_recipe
from tests.quantize.builders import Graph


def stored(model: ir.Model, path: Path) -> Path:
    path.write_bytes(io.to_bytes(model))
    return path


def detector(channels: int = 3, size: int | str = 24, kind: int = TensorProto.FLOAT) -> ir.Model:
    graph = Graph()
    x = graph.take("x", ["b", channels, size, size], kind)
    if kind != TensorProto.FLOAT:
        x = graph.op("Cast", x, to=TensorProto.FLOAT)
    return graph.model(graph.conv(x, channels, 8))


@pytest.fixture(name="pictures")
def _pictures(tmp_path: Path) -> Path:
    """Three red ones of a class each."""
    for number in range(3):
        (tmp_path / "pictures" / str(number)).mkdir(parents=True)
        Image.new("RGB", (40, 30), (255, 0, 51)).save(tmp_path / "pictures" / str(number) / "a.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("channels", "size", "kind", "preprocess"),
    [
        (3, 24, TensorProto.FLOAT, {"layout": "nchw", "resize": [24, 24], "scale": "1/255"}),
        (1, 24, TensorProto.FLOAT, {"layout": "nchw", "resize": [24, 24], "channels": "gray", "scale": "1/255"}),
        (3, "s", TensorProto.FLOAT, {"layout": "nchw", "scale": "1/255"}),
        (3, 24, TensorProto.UINT8, {"layout": "nchw", "resize": [24, 24]}),
    ],
)
def test_pictures_are_brought_to_the_models_shape_and_the_scale_is_left_to_decide(
    channels: int, size: int | str, kind: int, preprocess: dict[str, object], pictures: Path, tmp_path: Path
) -> None:
    model, path = stored(detector(channels, size, kind), tmp_path / "m.onnx"), tmp_path / "r.yaml"
    write_recipe(model, path, pictures, None)
    text = path.read_text()
    alone = {} if "resize" in preprocess else {"batch": 1}
    section = {"path": "pictures", "preprocess": preprocess, **alone}
    assert yaml.safe_load(text)["data"] == {"calibration": section}, "no labels, and any size one by one"
    assert ("DECIDE `scale`" in text) == ("scale" in preprocess)
    assert "top1" not in text
    loaded = load_recipe(path)
    assert loaded.recipe.data.calibration is not None
    data = open_dataset(
        loaded.recipe.data.calibration, io.inputs(io.load(model).model), name="calibration", base=tmp_path
    )
    batch, *_ = data.batches()
    assert batch.feeds["x"].shape == ((3, channels, 24, 24) if size == 24 else (1, channels, 30, 40))
    if channels == 3:
        red, _, blue = batch.feeds["x"][0, :, 0, 0]
        assert (red, blue) == pytest.approx((1.0, 0.2) if "scale" in preprocess else (255, 51))


@pytest.mark.parametrize(("channels", "kind", "told"), [(3, 1, "RGB"), (1, 1, "gray"), (3, TensorProto.UINT8, "")])
def test_without_a_recipe_pictures_are_read_in_the_same_way_and_what_is_assumed_is_said(
    channels: int, kind: int, told: str, pictures: Path, tmp_path: Path
) -> None:
    model = stored(detector(channels, 24, kind), tmp_path / "m.onnx")
    write_recipe(model, tmp_path / "r.yaml", pictures, None)
    chosen, written = choose(model, pictures, None, Silent()), load_recipe(tmp_path / "r.yaml")
    assert chosen.recipe.data.calibration is not None
    assert written.recipe.data.calibration is not None
    assert chosen.recipe.data.calibration.preprocess == written.recipe.data.calibration.preprocess
    assert [f"read as {told} from 0 to 1 (`scale: 1/255`)" in text for text in chosen.warnings] == [True] * bool(told)
    assert prepare(model, chosen).warnings == chosen.warnings
    decided = choose(model, pictures, None, Silent(), overrides=["data.calibration.preprocess.scale=1"])
    assert decided.warnings == ()


def embedding(end: str, name: str = "y") -> ir.Model:
    graph = Graph(opset=17)
    tokens = graph.op("MatMul", graph.take("x", ["b", 5, 16]), graph.constant(np.ones((16, 16), np.float32)))
    row = graph.op("ReduceMax", tokens, axes=[1], keepdims=0)
    one = graph.constant(np.float32(2))
    made = {
        "tokens": lambda: tokens,
        "mean": lambda: graph.op("ReduceMean", tokens, axes=[1], keepdims=0),
        "length": lambda: graph.op("Div", row, graph.op("ReduceL2", row, axes=[1], keepdims=1)),
        "normalised": lambda: graph.op("LpNormalization", row, axis=1),
        "pooler": lambda: graph.op("Tanh", row),
        "scores": lambda: row,
        "temperature": lambda: graph.op("Div", row, one),
        "softmax": lambda: graph.op("Softmax", row),
        "classes": lambda: graph.op("ArgMax", row, axis=1, keepdims=0),
    }[end]()
    model = graph.model(graph.op("Identity", made))
    model.graph.outputs[0].name = name
    return model


@pytest.mark.parametrize("end", ["tokens", "mean", "length", "normalised", "pooler"])
def test_embeddings_are_no_scores_of_classes(end: str) -> None:
    assert not scores_classes(embedding(end))


@pytest.mark.parametrize("end", ["scores", "temperature", "softmax", "classes"])
def test_rows_of_scores_and_classes_are(end: str) -> None:
    assert scores_classes(embedding(end))
    assert not scores_classes(embedding(end, "sentence_embedding"))


def test_rows_that_are_no_samples_are_no_scores() -> None:
    """A detector's 25 places, without an axis for its one picture."""
    graph = Graph()
    rows = graph.op("Reshape", graph.take("x", [1, 2, 5, 5]), graph.constant(np.array([25, 2])))
    model = graph.model(rows)
    model.graph.outputs[0].shape = ir.Shape([25, 2])
    assert not scores_classes(model)


@pytest.mark.parametrize("end", ["scores", "length"])
def test_top_1_is_for_scores_of_classes(end: str, tmp_path: Path) -> None:
    model = stored(embedding(end), tmp_path / "m.onnx")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=random.normal(size=(9, 5, 16)).astype(np.float32), labels=np.arange(9) % 2)
    write_recipe(model, tmp_path / "r.yaml", tmp_path / "d.npz", None)
    text = (tmp_path / "r.yaml").read_text()
    assert ("top1" in text) == ("labels: labels" in text) == (end == "scores")
    assert ("holds no scores of classes" in text) == (end != "scores")


@pytest.mark.parametrize(("side", "step"), [(64, "quantize.static"), (4, "quantize.dynamic")])
def test_what_multiplies_most_decides_between_static_and_dynamic(side: int, step: str) -> None:
    """A convolution over `side` squared positions before attention over 16 of them."""
    graph = Graph(opset=17)
    x = graph.conv(graph.take("x", [1, 3, side, side]), 3, 16)
    x = graph.op("Resize", x, "", "", graph.constant(np.array([1, 16, 4, 4], np.int64)))
    x = graph.op("Reshape", x, graph.constant(np.array([1, 16, 16], np.int64)))
    for _ in range(4):
        x = graph.op("LayerNormalization", x, graph.constant(np.ones(16, np.float32)))
        x = graph.op("MatMul", x, graph.constant(np.ones((16, 16), np.float32)))
    found = facts(graph.model(graph.op("Softmax", x)))
    assert found.transformer
    chosen = defaults.choose(found, name="x", data={}, labelled=False, calibrated=True)
    assert chosen.recipe["steps"][-1]["step"] == step


def test_set_changes_the_chosen_recipe(tmp_path: Path) -> None:
    model = stored(embedding("scores"), tmp_path / "m.onnx")
    assert choose(model, None, None, Silent()).recipe.seed == 0
    found = choose(model, None, None, Silent(), overrides=["seed=3", "evaluate.latency=false"])
    assert (found.recipe.seed, found.recipe.evaluate.latency) == (3, False)
    assert found.overrides == ("seed=3", "evaluate.latency=false")
    with pytest.raises(RecipeError, match="seedy"):
        choose(model, None, None, Silent(), overrides=["seedy=3"])
