"""What is asked for and cannot be measured is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import lepton_cli as lepton
from lepton_cli.commands.compress import compress
from lepton_cli.commands.plan import plan
from lepton_cli.measure import meters
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from lepton_cli.report.model import Report
from lepton_cli.runtime import Session
from tests.conftest import SAMPLES
from tests.corpus import MEMBERS
from tests.hostile.models import mlp


def measured(tmp_path: Path, **evaluate: Any) -> Report:
    (tmp_path / "in").mkdir()
    model = tmp_path / "in" / "model.onnx"
    model.write_bytes(mlp(64).SerializeToString())
    recipe = {"version": 1, "name": "small", "steps": [{"step": "simplify"}], "evaluate": {"memory": False, **evaluate}}
    return compress(model, from_dict(recipe), tmp_path / "out", Silent()).report


@pytest.mark.parametrize(("energy", "said"), [(True, ["energy"]), ("auto", [])])
def test_energy_without_latency(energy: object, said: list[str], tmp_path: Path) -> None:
    report = measured(tmp_path, latency=False, energy=energy)
    assert [skipped.what for skipped in report.skipped] == said


@pytest.mark.parametrize(("energy", "said"), [(True, ["latency cuda", "energy cpu"]), ("auto", ["latency cuda"])])
def test_a_machine_without_meters(
    energy: object, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a provider that was left out nothing more is said."""
    monkeypatch.setattr(meters, "of", lambda provider: None)
    latency = {"providers": ["cpu", {"name": "cuda", "optional": True}], "time": "0.5 s"}
    report = measured(tmp_path, latency=latency, energy=energy)
    found = (*(report.latency.skipped if report.latency else ()), *report.skipped)
    assert [skipped.what.partition(" batch")[0] for skipped in found] == said


def test_a_meter_that_cannot_be_read_costs_no_other_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(meters.Meter):
        def read(self) -> float:
            raise meters.Unreadable("the driver has left")

    monkeypatch.setattr(meters, "of", lambda provider: Gone([]))
    report = measured(tmp_path, latency={"time": "0.5 s"})
    assert report.latency is not None
    assert [(one.what, one.reason) for one in report.skipped] == [("energy", "the driver has left")]


def test_of_boxes_that_suppression_leaves_all_boxes_are_compared(tmp_path: Path) -> None:
    """The number of detections moves, and the figures are those of plain onnxruntime for what they are chosen from."""
    member = MEMBERS["detector with nms"]
    path = member.save(tmp_path / "model.onnx")
    data = lepton.Arrays(
        {"images": np.concatenate([member.feed(np.random.default_rng(i))["images"] for i in range(6)])}
    )
    recipe = {"version": 1, "name": "made", "steps": [{"step": "convert.fp16"}], "evaluate": {"latency": False}}
    made = lepton.compress(path, recipe, data, output=tmp_path / "out")
    assert made.report.accuracy is not None
    told = {one.output: one for one in made.report.accuracy.fidelity}
    assert all(one.agreement is None for one in told.values())
    assert any("the size of `boxes`, `scores`, `labels` follows from the data" in text for text in made.report.warnings)
    sums = {name: [0.0, 0.0] for name in told}
    for image in data.feeds["images"]:
        both = []
        for model in (path, tmp_path / "out" / "made.onnx"):
            proto = onnx.load(model)
            nodes = {node.name: node for node in proto.graph.node}
            del proto.graph.output[:]
            for name in told:
                node = nodes[name.rpartition(".")[0]]
                place = {"boxes": 0, "scores": 1, "data": 0}[name.rpartition(".")[2]]
                proto.graph.output.add(name=node.input[place])
            session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
            both.append(dict(zip(told, session.run(None, {"images": image[None]}), strict=True)))
        for name, (signal, noise) in sums.items():
            a, b = (found[name].astype(np.float64) for found in both)
            sums[name] = [signal + np.square(a).sum(), noise + np.square(a - b).sum()]
    assert len(told) == 3
    for name, (signal, noise) in sums.items():
        assert told[name].sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.05)
        assert told[name].n == 6


def test_new_outputs_are_measured_and_named_and_the_others_compared(tmp_path: Path) -> None:
    """Also between the steps: what pruning made has the old `logits`, of other classes than its labels."""
    stored = np.load(SAMPLES / "digits_test.npz")
    digits = stored["labels"]
    np.savez(tmp_path / "data.npz", images=stored["images"], many=digits * 10, few=digits % 3)
    data = {
        "path": str(tmp_path / "data.npz"),
        "inputs": {"pixels": "images"},
        "labels": {"logits": "many", "kind": "few"},
        "preprocess": {"scale": "1/16", "shape": [64]},
    }
    recipe = {
        "version": 1,
        "name": "heads",
        "data": {"evaluation": data},
        "steps": [
            {"step": "prune.weights", "sparsity": "30 %"},
            {"step": "head.replace", "classes": 91},
            {"step": "head.add", "at": "pixels", "name": "kind", "classes": 3},
            {"step": "quantize.weights", "bits": 8},
        ],
        "evaluate": {
            "accuracy": [{"metric": "top1", "output": name} for name in ("logits", "kind")],
            "latency": False,
            "memory": False,
        },
    }
    done = compress(SAMPLES / "digits_mlp.onnx", from_dict(recipe), tmp_path / "out", Silent())
    report = done.report
    assert done.error is None
    assert report.accuracy is not None
    assert report.accuracy.values["original"] == ()
    session = Session(tmp_path / "out" / "heads.onnx", threads=1)
    outputs = session.run({"pixels": (stored["images"].reshape(-1, 64) / 16).astype(np.float32)})
    wanted = {"logits": (outputs["logits"].argmax(1) == digits * 10).mean(), "kind": outputs["kind"].argmax(1)}
    wanted["kind"] = (wanted["kind"] == digits % 3).mean()
    assert {one.output: one.value for one in report.accuracy.values["compressed"]} == pytest.approx(wanted)
    assert (report.accuracy.changes, report.accuracy.fidelity) == ((), ())
    assert {w for w in report.warnings if w.startswith("new")} == {
        f"new output `{name}`: nothing to compare with" for name in wanted
    }
    planned = plan(SAMPLES / "digits_mlp.onnx", from_dict(recipe), Silent())
    assert [step.changed for step in planned.steps][1:3] == [1, 1]
    assert planned.steps[2].summary == "output kind float32 [batch, 3] added"
