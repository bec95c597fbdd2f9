"""Every step on every member of the corpus: a right result, by onnxruntime itself, or one true sentence."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import numpy_helper

from lepton_cli.commands.compress import compress
from lepton_cli.commands.init import write_recipe
from lepton_cli.commands.inspect import inspect
from lepton_cli.commands.plan import plan
from lepton_cli.progress import Silent
from lepton_cli.quantize import blocks
from lepton_cli.recipe.load import LoadedRecipe, load_recipe
from tests.corpus import MEMBERS
from tests.corpus.language import LANGUAGE
from tests.corpus.net import Feed

#: By step: its options, and the least SQNR in dB of any part of any output on feeds that it did not see.
STEPS: dict[str, tuple[dict[str, Any], float]] = {
    "simplify": ({}, 100),
    "fuse": ({"if_possible": True}, 100),
    "prune.channels": ({"target": {"params": "85 %"}}, 5),
    "prune.weights": ({"sparsity": "30 %"}, 9),
    "quantize.static": ({"speed_guard": False, "least_gain": False}, 22),
    "quantize.dynamic": ({}, 30),
    "quantize.weights": ({"bits": 8}, 30),
    "convert.fp16": ({}, 50),
}
#: What has a sentence instead of a result: a part of the sentence or of its cause.
SENTENCES: dict[tuple[str, str], str] = {
    **{
        (name, "quantize.dynamic"): "Conv is not among op_types: dynamic Conv is slower than float"
        for name in ("unet", "detector", "detector with nms", "super resolution", "tcn")
    },
    ("merged decoder", "prune.channels"): "`logits` is an output of the model",
    ("lstm, time first", "prune.channels"): "`y` is an output of the model",
    ("lstm, time first", "quantize.static"): "LSTM stays float",
    ("gru", "prune.channels"): "`logits` is an output of the model",
    ("gru", "quantize.static"): "GRU stays float",
    ("gru", "quantize.dynamic"): "GRU stays float",
    ("denoiser", "prune.channels"): "GRU is not analysed",
    ("table", "quantize.static"): "too small for int8",
    ("table", "quantize.dynamic"): "too small for int8",
    ("diffusion", "prune.channels"): "params can go down to 90.8% of the original, not to 85.0%",
    **{
        ("forest", step): "nothing in this model can be compressed"
        for step in STEPS
        if step not in ("simplify", "fuse")
    },
}
LOADER = """
import numpy as np

def feeds(path):
    with np.load(path, allow_pickle=True) as held:
        count = 1 + max(int(name.split("|")[0]) for name in held)
        for i in range(count):
            yield {name.split("|")[1]: held[name] for name in held if name.startswith(f"{i}|")}
"""
SEEN, UNSEEN = 16, 6


@dataclasses.dataclass(frozen=True)
class Written:
    """A member on disk with data, and what onnxruntime makes of feeds that no step sees."""

    model: Path
    feeds: list[Feed]
    outputs: list[dict[str, Any]]

    def recipe(self, step: str, options: dict[str, Any], folder: Path) -> LoadedRecipe:
        data = {
            "calibration": {"path": str(self.model.parent / "seen.npz"), "loader": f"{self.model.parent}/load.py:feeds"}
        }
        evaluate = {"latency": False, "memory": False}
        path = folder / "recipe.yaml"
        steps = [{"step": step, **options}]
        path.write_text(
            yaml.safe_dump({"version": 1, "name": "made", "data": data, "steps": steps, "evaluate": evaluate})
        )
        return load_recipe(path)


def _run(model: Path, feeds: list[Feed]) -> list[dict[str, Any]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(None, feed), strict=True)) for feed in feeds]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """Members by name, written once."""
    made: dict[str, Written] = {}

    def of(name: str) -> Written:
        if name not in made:
            folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(5)
            path = MEMBERS[name].save(folder / "model.onnx")
            seen = {f"{i}|{key}": array for i in range(SEEN) for key, array in MEMBERS[name].feed(random).items()}
            np.savez(folder / "seen.npz", allow_pickle=True, **seen)
            (folder / "load.py").write_text(LOADER)
            feeds = [MEMBERS[name].feed(random) for _ in range(UNSEEN)]
            made[name] = Written(path, feeds, _run(path, feeds))
        return made[name]

    return of


def _sqnr(name: str, wanted: list[dict[str, Any]], found: list[dict[str, Any]]) -> float:
    """Of the worst part of all float outputs."""
    worst = math.inf
    for output, first in wanted[0].items():
        if not isinstance(first, np.ndarray) or first.dtype.kind != "f":
            continue
        edges = (0, *MEMBERS[name].parts.get(output, ()), first.shape[-1])
        for start, stop in itertools.pairwise(edges):
            pairs = [
                (a[output][..., start:stop], b[output][..., start:stop]) for a, b in zip(wanted, found, strict=True)
            ]
            noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
            signal = sum(float(np.square(a.astype(np.float64)).sum()) for a, _ in pairs)
            worst = min(worst, 10 * math.log10(signal / noise) if noise else math.inf)
    return worst


def _arrays(model: Path) -> dict[str, np.ndarray]:
    """Stored tensors by name, those of branches too."""

    def held(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                yield from held(attribute.g)

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in held(onnx.load(model).graph)}


def _interface(model: Path) -> list[tuple[str, str, int]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return [(value.name, value.type, len(value.shape)) for value in (*session.get_inputs(), *session.get_outputs())]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", MEMBERS)
def test_a_right_result_or_one_true_sentence(
    name: str, step: str, written: Callable[[str], Written], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LEAST_SIZE", 512)  # for large models, and these are small
    member, (options, least) = written(name), STEPS[step]
    recipe = member.recipe(step, options, tmp_path)
    result = compress(member.model, recipe, tmp_path / "out", Silent(), allow_code=True)
    sentence = SENTENCES.get((name, step))
    if result.error is not None:
        assert sentence is not None, f"{result.error}: {result.error.cause}"
        assert sentence in f"{result.error}: {result.error.cause}"
        assert result.error.exit_code == 3
        assert "defect" not in (result.error.hint or "")
        return
    assert sentence is None
    record = result.report.steps[0]
    made = tmp_path / "out" / "made.onnx"
    outputs = _run(made, member.feeds)
    assert _interface(made) == _interface(member.model)
    if not MEMBERS[name].decides:
        assert _sqnr(name, member.outputs, outputs) >= least
    assert record.changed or step in ("simplify", "fuse")
    before, after = _arrays(member.model), _arrays(made)
    sizes = [sum(array.nbytes for array in held.values() if array.dtype != object) for held in (before, after)]
    if step == "prune.channels":
        assert sizes[1] <= 0.86 * sizes[0]
    elif step == "prune.weights":
        thinned = [array for key, array in after.items() if key in before and not np.array_equal(array, before[key])]
        assert sum((array == 0).sum() for array in thinned) >= 0.29 * sum(array.size for array in thinned) > 0
    elif step.startswith(("quantize", "convert")):
        assert sizes[1] < 0.97 * sizes[0]


@pytest.mark.parametrize("name", MEMBERS)
def test_it_can_be_looked_at_and_planned_without_data(
    name: str, written: Callable[[str], Written], tmp_path: Path
) -> None:
    member = written(name)
    seen = inspect(member.model)
    held = [array for array in _arrays(member.model).values() if array.dtype == np.float32]
    assert seen["size"]["parameters"] >= sum(array.size for array in held if array.ndim > 1)
    write_recipe(member.model, tmp_path / "recipe.yaml", None, None)
    planned = plan(member.model, load_recipe(tmp_path / "recipe.yaml"), Silent())
    assert planned.steps
    assert not any("failed on this model" in warning for warning in planned.warnings)


def test_both_ways_to_write_a_decoder_are_one() -> None:
    """Attention, its norm and its groups as operators of set 23, and in the parts that earlier sets have."""
    random = np.random.default_rng(0)
    one, two = LANGUAGE["llama"], LANGUAGE["llama, operator set 23"]
    feed = one.feed(random)
    found = []
    for member in (one, two):
        session = onnxruntime.InferenceSession(member.make().SerializeToString(), providers=["CPUExecutionProvider"])
        found.append(session.run(None, feed))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
