"""How a folder of pictures is read where no recipe says so: onnxruntime takes what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto
from PIL import Image

from lepton_cli.commands import adhoc, source
from lepton_cli.data.open import open_dataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.model import io
from tests.quantize.builders import Graph

#: Height and width of the pictures.
SIZES = ((40, 120), (30, 45), (70, 50))


@pytest.fixture(name="pictures")
def _pictures(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        (tmp_path / "pictures" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / str(number % 2) / f"{number}.png")
    return tmp_path / "pictures"


def pooled(graph: Graph, x: str, kernel: int) -> str:
    return graph.op("MaxPool", x, kernel_shape=[kernel, kernel], strides=[kernel, kernel])


def recogniser(height: int | str, width: int | str) -> ir.Model:
    """Reads a line of text: the height has to become 1, the width is the text's."""
    graph = Graph(opset=17)
    x = graph.take("x", ["b", 3, height, width])
    flat = graph.op("AveragePool", graph.conv(pooled(graph, x, 4), 3, 8), kernel_shape=[12, 1], strides=[12, 1])
    return graph.model(graph.op("Squeeze", flat, graph.constant(np.array([2]))))


def classifier(height: int | str, width: int | str, channels: int | str = 1) -> ir.Model:
    """Flattens what convolutions leave of 48 x 64 pixels."""
    graph = Graph(opset=17)
    x = graph.take("x", ["b", channels, height, width])
    inner = pooled(graph, graph.conv(x, 1, 4), 8)
    flat = graph.op("Reshape", inner, graph.constant(np.array([-1, 4 * 6 * 8])))
    return graph.model(graph.op("MatMul", flat, graph.constant(np.ones((4 * 6 * 8, 3), np.float32))))


def unet(height: int | str, width: int | str) -> ir.Model:
    """Joins a picture with itself after halving and doubling: sides are even."""
    graph = Graph(opset=17)
    x = graph.take("x", ["b", 3, height, width])
    scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
    return graph.model(graph.op("Concat", x, graph.op("Resize", pooled(graph, x, 2), "", scales), axis=1))


def last(height: int | str, width: int | str) -> ir.Model:
    """Channels last, pixels as they are."""
    graph = Graph(opset=17)
    x = graph.op("Cast", graph.take("x", ["b", height, width, 3], TensorProto.UINT8), to=TensorProto.FLOAT)
    return graph.model(graph.conv(graph.op("Transpose", x, perm=[0, 3, 1, 2]), 3, 4))


NCHW, SCALE = {"layout": "nchw"}, {"scale": "1/255"}


@pytest.mark.parametrize(
    ("model", "preprocess"),
    [
        (recogniser(48, "w"), {**NCHW, "resize": [48, "auto"], **SCALE}),
        (recogniser("h", 64), {**NCHW, "resize": [None, 64], **SCALE}),
        (recogniser("h", "w"), {**NCHW, "resize": [None, "auto"], **SCALE}),
        (classifier(48, 64), {**NCHW, "resize": [48, 64], "channels": "gray", **SCALE}),
        (classifier("h", 64, "c"), {**NCHW, "resize": [48, 64], "channels": "gray", **SCALE}),
        (unet("h", "w"), {**NCHW, "resize": [None, None], **SCALE}),
        (last("h", "w"), {"layout": "nhwc"}),
        (last(32, "w"), {"layout": "nhwc", "resize": [32, "auto"]}),
    ],
)
def test_pictures_come_as_the_graph_wants_them(model: ir.Model, preprocess: dict[str, Any], pictures: Path) -> None:
    """`None`: any number of pixels that the model runs on."""
    found = source.describe(model, pictures)
    told = found["preprocess"]
    for axis, side in enumerate(preprocess.get("resize", ())):
        if side is None:
            preprocess["resize"][axis] = told["resize"][axis]
    assert told == preprocess
    assert found.get("batch") == (None if "auto" not in told.get("resize", ("auto",)) else 1)
    data = open_dataset(DataSpec(**found), io.inputs(model), name="evaluation", base=Path())
    session = ort.InferenceSession(io.to_bytes(model), providers=["CPUExecutionProvider"])
    counts = [len(session.run(None, dict(batch.feeds))[0]) for batch in data.batches()]
    assert sum(counts) == len(SIZES)


def test_a_line_keeps_its_aspect(pictures: Path) -> None:
    model = recogniser(48, "w")
    data = open_dataset(DataSpec(**source.describe(model, pictures)), io.inputs(model), name="evaluation", base=Path())
    fed = [batch.feeds["x"] for batch in data.batches()]
    paths = sorted(pictures.rglob("*.png"))
    for array, path in zip(fed, paths, strict=True):
        with Image.open(path) as image:
            wanted = np.asarray(image.resize((48 * image.width // image.height, 48), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(array[0], wanted.transpose(2, 0, 1) / np.float32(255), rtol=1e-6)


@pytest.mark.parametrize("scores", [True, False])
def test_measuring_reads_them_so_too_and_folders_are_classes_of_a_classifier_alone(
    scores: bool, pictures: Path
) -> None:
    model = classifier(48, 64) if scores else recogniser(48, 64)
    made = adhoc.recipe(model, None, data=pictures)
    sections = made.recipe.data
    assert (sections.evaluation is not None, sections.calibration is not None) == (scores, not scores)
    used = sections.evaluation or sections.calibration
    assert used == DataSpec(**source.describe(model, pictures))
    assert [f"read as {'gray' if scores else 'RGB'} from 0 to 1" in said for said in made.warnings] == [True]


def test_what_takes_no_pictures_is_left_to_the_user(pictures: Path) -> None:
    graph = Graph()
    model = graph.model(graph.conv(graph.take("x", ["b", 4, "h", "w"]), 4, 2))
    assert set(source.describe(model, pictures)) == {"path"}
    assert set(source.describe(recogniser(48, "w"), pictures / "0" / "0.png")) == {"path"}
