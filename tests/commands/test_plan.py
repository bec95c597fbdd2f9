"""`lepton plan` decides and predicts without writing or measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

import lepton_cli as lepton
from lepton_cli.commands.plan import plan
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from lepton_cli.steps import STEPS
from tests.conftest import ROOT, Invoke
from tests.quantize.builders import Graph


def test_predicted_sizes_are_near_the_real_ones(samples: Path) -> None:
    recipe = from_dict({"version": 1, "steps": [{"step": "simplify"}, {"step": "quantize.dynamic"}]})
    found = plan(samples / "digits_mlp.onnx", recipe, Silent())
    before, simplified, quantized = found.sizes
    assert simplified <= before
    assert 0.24 * before < quantized < 0.27 * before
    assert [record.step for record in found.steps] == ["simplify", "quantize.dynamic"]


def test_pruning_predicts_its_target(samples: Path) -> None:
    recipe = from_dict(
        {
            "version": 1,
            "steps": [{"step": "prune.channels", "target": {"params": "10 %"}}, {"step": "quantize.dynamic"}],
        }
    )
    before, pruned, quantized = plan(samples / "digits_mlp.onnx", recipe, Silent()).sizes
    assert 0.09 * before < pruned < 0.11 * before
    assert quantized < 0.3 * pruned


def test_nothing_is_written(invoke: Invoke, tmp_path: Path, samples: Path) -> None:
    result = invoke("plan", samples / "digits_cnn.onnx", "-r", ROOT / "configs/cnn-int8.yaml")
    assert result.exit_code == 0, result.stderr
    assert "quantize.static" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_node_of_a_step(invoke: Invoke, samples: Path) -> None:
    result = invoke("plan", samples / "digits_cnn.onnx", "-r", ROOT / "configs/cnn-int8.yaml", "--step", "1")
    assert result.stdout.count(" BatchNormalization ") == 27
    assert (
        invoke("plan", samples / "digits_cnn.onnx", "-r", ROOT / "configs/cnn-int8.yaml", "--step", "9").exit_code == 2
    )


def test_a_large_table_is_part_of_the_prediction(tmp_path: Path) -> None:
    graph = Graph()
    table = graph.constant(graph.random.normal(size=(1000, 128)).astype(np.float32))
    ids = graph.take("x", ["b"], TensorProto.INT64)
    weight = graph.constant(graph.random.normal(size=(128, 128)).astype(np.float32))
    path = tmp_path / "table.onnx"
    path.write_bytes(io.to_bytes(graph.model(graph.op("MatMul", graph.op("Gather", table, ids), weight))))
    for step in ("quantize.dynamic", "quantize.weights", "convert.fp16"):
        found = plan(path, from_dict({"version": 1, "steps": [{"step": step}]}), Silent())
        written = lepton.apply(path, STEPS[step].options.model_validate({"step": step})).model
        assert found.sizes[1] == pytest.approx(len(io.to_bytes(written)), rel=0.002)


def _mixed() -> onnx.ModelProto:
    """A convolution, an LSTM and a product."""
    graph = Graph()
    x = graph.conv(graph.take("x", ["n", 3, 8, 8]), 3, 16)
    x = graph.op("Reshape", x, graph.constant(np.array([64, -1, 16])))
    held = [graph.constant(graph.random.normal(size=(1, 128, size)).astype(np.float32)) for size in (16, 32)]
    x = graph.op("Squeeze", graph.op("LSTM", x, *held, hidden_size=32), graph.constant(np.array([1])))
    return ir.to_proto(graph.model(graph.linear(x, 32, 512, gemm=False)))


STATIC, DYNAMIC = {"step": "quantize.static", "speed_guard": False, "least_gain": False}, {"step": "quantize.dynamic"}
WEIGHTS = {"step": "quantize.weights", "bits": 8}


@pytest.mark.parametrize(
    "steps",
    [
        ({**STATIC, "include": ("Conv*",)}, DYNAMIC),
        ({**DYNAMIC, "op_types": ("LSTM",)}, STATIC, {**WEIGHTS, "if_possible": True}),
        ({**WEIGHTS, "bits": 4}, WEIGHTS, {"step": "simplify"}),
        ({**WEIGHTS, "include": ("LSTM*",)}, STATIC, {"step": "simplify"}),
        ({**WEIGHTS, "exclude": ("MatMul*",)}, {"step": "convert.fp16"}),
    ],
)
def test_steps_together_come_to_the_size_that_is_promised(steps: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    """And to a model that plain onnxruntime runs, near the original."""
    path = tmp_path / "model.onnx"
    onnx.save(_mixed(), path)
    data = lepton.Arrays({"x": np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)})
    written = lepton.apply(path, *(STEPS[step["step"]].options.model_validate(step) for step in steps), data=data)
    found = plan(path, from_dict({"version": 1, "steps": steps}), Silent())
    assert found.sizes[-1] == pytest.approx(len(io.to_bytes(written.model)), rel=0.01)
    promised, done = ([one.changed for one in part.steps if one.step != "simplify"] for part in (found, written))
    assert promised == done
    one, two = (
        onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, dict(data.feeds))[0]
        for source in (path, io.to_bytes(written.model))
    )
    assert np.square(one - two).sum() < 10**-1.5 * np.square(one).sum(), "15 dB"


def test_a_step_that_finds_everything_quantized_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_mixed(), path)
    with pytest.raises(lepton.LeptonError) as caught:
        plan(path, from_dict({"version": 1, "steps": [WEIGHTS, WEIGHTS]}), Silent())
    assert (caught.value.code, caught.value.option) == ("model.already-quantized", ("steps", 1))


def test_a_step_that_would_change_nothing_is_shown_and_then_ends_as_compress_does(
    invoke: Invoke, samples: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "idle.yaml"
    recipe.write_text(
        "version: 1\nsteps:\n  - step: simplify\n  - {step: quantize.dynamic, op_types: [LSTM]}\n"
        "  - step: quantize.weights\nevaluate: {latency: false}\n"
    )
    model = samples / "digits_mlp.onnx"
    planned, done = invoke("plan", model, "-r", recipe), invoke("compress", model, "-r", recipe, "-o", "out")
    assert planned.exit_code == done.exit_code == 3
    assert "`quantize.dynamic` changed nothing" in planned.stderr
    assert "`quantize.dynamic` changed nothing" in done.stderr
    assert "lepton plan" in done.stderr
    assert "lepton plan" not in planned.stderr, "that was done already"
    assert "2  quantize.dynamic" in planned.stdout
    assert "quantize.weights" not in planned.stdout
    found = json.loads(invoke("plan", model, "-r", recipe, "--json").stdout)
    assert found["error"]["code"] == "step.no-effect"
    recipe.write_text(recipe.read_text().replace("[LSTM]}", "[LSTM], if_possible: true}"))
    assert invoke("plan", model, "-r", recipe).exit_code == 0


def test_a_target_that_holds_already_is_no_error(invoke: Invoke, samples: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "there.yaml"
    recipe.write_text(
        "version: 1\nname: there\nevaluate: {latency: false}\nsteps: [{step: prune.channels, target: {macs: 100 %}}]\n"
    )
    model = samples / "digits_mlp.onnx"
    planned = invoke("plan", model, "-r", recipe)
    assert planned.exit_code == 0
    assert "already there" in planned.stdout
    done = invoke("compress", model, "-r", recipe, "-o", "out")
    assert done.exit_code == 0, done.stderr
    assert "prune.channels LEFT THE MODEL AS IT WAS (already there: macs within 100.0 % of the original)" in " ".join(
        done.stdout.split()
    ).replace("100.0%", "100.0 %")
    kept, was = (io.load(path).model for path in (tmp_path / "out/there.onnx", model))
    for name, value in was.graph.initializers.items():
        assert np.array_equal(kept.graph.initializers[name].const_value.numpy(), value.const_value.numpy())
