"""Reports of format 1.0, in which details and sections of commands were free JSON, are read as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lepton_cli.errors import ReportError
from lepton_cli.prune.details import PruneChannelsDetails, PruneWeightsDetails
from lepton_cli.quantize.details import QuantizeDynamicDetails, QuantizeStaticDetails
from lepton_cli.report import render, store
from lepton_cli.report.model import RECORDS, Report
from lepton_cli.schema import json_schema
from lepton_cli.step import Details
from lepton_cli.steps import STEPS
from tests.report import builders

#: As lepton wrote them with format 1.0, shortened.
DETAILS: dict[str, dict[str, Any]] = {
    "simplify": {},
    "fuse": {"model_type": "vit", "heads": 4, "hidden_size": 64, "operators": {"Attention": 2}},
    "batch.free": {},
    "head.add": {"output": "kind", "at": "pool", "channels": 64, "width": 2},
    "head.replace": {"output": "logits", "at": "pool", "channels": 64, "width": 7, "left": "fc"},
    "prune.channels": {
        "widths": [{"node": "conv", "before": 32, "after": 16}],
        "groups": [
            {"name": "g0", "channels": 32, "kept": 16, "frozen": False, "reason": "", "node": ""},
            {"name": "g1", "channels": 10, "kept": 10, "frozen": True, "reason": "output", "node": "fc"},
        ],
        "branches": [{"add": "add", "nodes": ["conv2"]}],
        "recovery": [
            {
                "node": "conv",
                "kind": "least_squares",
                "kept": True,
                "error_before": 0.5,
                "error_after": 0.1,
                "scarce": False,
            }
        ],
        "targets": [
            {"metric": "latency", "target": 0.5, "reached": 0.49, "predicted": 0.5},
            {"metric": "macs", "target": 0.5, "reached": 0.48},
        ],
    },
    "prune.weights": {
        "tensors": [{"node": "fc", "weights": 10, "zeros": 5}],
        "note": "zeros shrink",
        "importance": "hessian",
    },
    "distill": {
        "teacher": "the original",
        "parameters": 100,
        "steps": 10,
        "batch": 128,
        "piece": 0,
        "learning_rate": 0.003,
        "rates_too_high": [0.01],
        "precision": "bfloat16",
        "losses": {"logits": "distil"},
        "marks": [{"step": 0, "loss": 1.5}, {"step": 10, "loss": 1.0}],
        "kept_step": 10,
        "agreement_before": 0.9,
        "agreement_after": 0.95,
    },
    "finetune": {
        "losses": {"logits": "cross_entropy"},
        "marks": [{"step": 0, "loss": 1.5}, {"step": 10, "loss": 1.0}],
        "accuracy_before": 0.8,
        "accuracy_after": 0.9,
        "parts": [{"output": "logits", "kind": "cross_entropy", "weight": 1.0, "before": 1.5, "after": 1.0}],
        "held": ["features"],
    },
    "quantize.static": {
        "target": "x86-vnni",
        "why": "this machine",
        "speed": {
            "speedup": 0.8,
            "returned": [{"nodes": ["conv"], "gain": 1.2}],
            "alternatives": {"float": 1.0},
            "verdict": "int8 does not pay here",
        },
        "sensitivity": [{"node": "fc", "op": "Gemm", "sqnr_db": None}, {"node": "conv", "op": "Conv", "sqnr_db": 30.5}],
        "accuracy_guard": {
            "max_drop": 0.01,
            "reference": 0.9,
            "holds": True,
            "trials": [{"float": 0, "drop": 0.1}, {"int16": 1, "drop": 0.0}],
        },
        "repairs": {"none": 20.5, "gptq": 25.0},
        "equalise_skipped": {"reason": "ReLU6", "nodes": ["conv"]},
        "calibration": "minmax",
        "rounding": "gptq",
        "sqnr_db": 25.0,
        "placement": {"int8": 3, "float": 1, "qdq_left": 0, "operators": {"QLinearConv": 3}},
        "portability": {
            "x86 without VNNI": "sums of 1 layers saturate",
            "layers": [{"node": "conv", "share": 0.01, "sqnr_db": 30.0}],
        },
    },
    "quantize.aware": {
        "teacher": "the original",
        "parameters": 100,
        "steps": 10,
        "batch": 128,
        "learning_rate": 0.003,
        "precision": "float32",
        "losses": {"logits": "distil"},
        "marks": [{"step": 0, "loss": 1.5}, {"step": 10, "loss": 1.0}],
        "kept_step": 10,
        "agreement_before": 0.9,
        "agreement_after": 0.95,
    },
    "quantize.dynamic": {"target": "x86", "why": "asked", "repairs": {"none": 30.0}, "smoothed": 2, "sqnr_db": 31.0},
    "quantize.weights": {
        "bits": 4,
        "block_size": 32,
        "method": "rtn",
        "symmetric": True,
        "sensitivity": [{"node": "fc", "op": "MatMul", "sqnr_db": 21.0}],
    },
    "convert.fp16": {"sqnr_db": None, "kept": 2},
}
DIFF = {
    "nodes": [2, 3],
    "operators": {"MatMul": [2, 3]},
    "inputs": [["x float32 [N, 8]"], ["y float32 [N, 8]"]],
    "outputs": [],
    "layers": [
        {
            "node": "bn",
            "change": "removed",
            "op": ["BatchNormalization", None],
            "dtype": ["float32", None],
            "shape": [[16], None],
            "parameters": [16, None],
        }
    ],
    "layers_same": 2,
}
ROW = {
    "key": "k",
    "name": "int8",
    "origin": "grid",
    "point": {"keep": 0.5, "fuse": False, "precision": "int8"},
    "steps": [{"step": "simplify"}],
    "reached": "latency",
    "reason": "",
    "feasible": True,
    "cost": 0.5,
    "quality": -0.9,
    "file": 1000,
    "seconds": 1.5,
    "front": True,
}
TUNE = {
    "format": 1,
    "search": "abc",
    "strategy": "structured",
    "seed": 0,
    "space": {"keep": [1, 0.5], "precision": ["float", "int8"]},
    "dropped": [],
    "seconds": 10.0,
    "overhead": 0.01,
    "goal": {"metric": "latency.median", "provider": "cpu"},
    "limits": ["accuracy.top1 max_drop 1 pp"],
    "axes": {
        "cost": {"metric": "latency.median", "higher_is_better": False, "kind": "ratio"},
        "quality": {"metric": "accuracy.top1", "higher_is_better": True, "kind": "share"},
    },
    "best": "k",
    "met": True,
    "ended": "all tried",
    "trials": [ROW],
    "importance": {"keep": 0.7},
    "records": [{"key": "k", "name": "int8", "reached": "latency", "steps": [{"step": "simplify"}], "cost": {}}],
}


def earlier(tmp_path: Path, **changes: object) -> Path:
    """A report of format 1.0 with every step and section."""
    document = json.loads(store.to_json(builders.report(steps=())))
    del document["diff"], document["tune"]
    document |= {"format_version": "1.0", "cost": {}, "extra": {"diff": DIFF, "tune": TUNE}}
    document["error"] = {"code": "interrupted", "message": "interrupted"}
    document["steps"] = [
        {"index": index, "step": name, "changed": 1, "seconds": 0.1, "summary": "done", "details": details}
        for index, (name, details) in enumerate(DETAILS.items())
    ]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document | changes))
    return path


def holds(new: Any, old: Any) -> bool:
    """Whether everything in `old` is in `new` at the same place; what is new says nothing."""
    if isinstance(old, dict):
        added = [new[key] for key in new.keys() - old.keys()]
        return not any(added) and all(key in new and holds(new[key], old[key]) for key in old)
    if isinstance(old, list):
        return len(new) == len(old) and all(map(holds, new, old))
    return bool(new == old)


def test_every_step_is_read_with_its_own_details(tmp_path: Path) -> None:
    assert set(DETAILS) == set(STEPS)
    report = store.read(earlier(tmp_path))
    for record in report.steps:
        assert type(record) is RECORDS[record.step]
        assert type(record.details) is STEPS[record.step].details
        written = json.loads(record.details.model_dump_json())
        assert holds(written, DETAILS[record.step]), "the JSON stays as it was"


def test_details_are_attributes(tmp_path: Path) -> None:
    found = {type(record.details): record.details for record in store.read(earlier(tmp_path)).steps}
    pruned, zeroed = found[PruneChannelsDetails], found[PruneWeightsDetails]
    assert isinstance(pruned, PruneChannelsDetails)
    assert [one.predicted for one in pruned.targets] == [0.5, None]
    assert isinstance(zeroed, PruneWeightsDetails)
    assert zeroed.tensors[0].zeros == 5
    static, dynamic = found[QuantizeStaticDetails], found[QuantizeDynamicDetails]
    assert isinstance(static, QuantizeStaticDetails)
    assert static.placement is not None
    assert static.placement.in_float == 1
    assert static.accuracy_guard is not None
    assert [(trial.in_float, trial.int16) for trial in static.accuracy_guard.trials] == [(0, None), (None, 1)]
    assert isinstance(dynamic, QuantizeDynamicDetails)
    assert (dynamic.smoothed, dynamic.repairs) == (2, {"none": 30.0})


def test_sections_of_commands_have_moved_up(tmp_path: Path) -> None:
    report = store.read(earlier(tmp_path))
    assert report.diff is not None
    assert report.diff.operators == {"MatMul": (2, 3)}
    assert report.tune is not None
    assert report.tune.trials[0].point == ROW["point"]
    assert report.tune.records[0].cost is None
    assert report.cost is None
    assert report.error is not None
    assert report.error.code == "interrupted"


def test_it_is_rendered_and_written_again(tmp_path: Path) -> None:
    report = store.read(earlier(tmp_path))
    for kind in render.FILES:
        assert render.render(report, kind)
    assert Report.model_validate_json(store.to_json(report)) == report


def test_a_step_left_out_says_nothing(tmp_path: Path) -> None:
    steps = [{"index": 0, "step": name, "changed": 0, "seconds": 0.1, "summary": "left out"} for name in STEPS]
    for record in store.read(earlier(tmp_path, steps=steps)).steps:
        assert record.details == STEPS[record.step].details()


def test_steps_of_a_later_version_are_kept_without_their_details(tmp_path: Path) -> None:
    step = {"index": 0, "step": "distil", "changed": 1, "seconds": 1.0, "summary": "done", "details": {"rounds": 3}}
    known = {**step, "step": "quantize.dynamic", "details": {"target": "x86", "later": 1}}
    plain, dynamic = store.read(earlier(tmp_path, steps=[step, known], format_version="1.9")).steps
    assert (plain.step, plain.details) == ("distil", Details())
    assert dynamic.details == QuantizeDynamicDetails(target="x86")


@pytest.mark.parametrize(
    ("details", "field"),
    [
        ({"smoothed": "many"}, "smoothed"),
        ({"edited": 1}, "edited"),
    ],
)
def test_edited_details_are_refused_by_name(details: dict[str, Any], field: str, tmp_path: Path) -> None:
    step = {
        "index": 0,
        "step": "quantize.dynamic",
        "changed": 1,
        "seconds": 1.0,
        "summary": "done",
        "details": details,
    }
    with pytest.raises(ReportError) as caught:
        store.read(earlier(tmp_path, steps=[step]))
    assert caught.value.code == "report.invalid"
    assert field in caught.value.message


def test_the_schema_describes_every_part() -> None:
    definitions = json_schema("report")["$defs"]
    for name, step in STEPS.items():
        record = definitions[RECORDS[name].__name__]["properties"]
        assert record["step"]["const"] == name
        assert record["details"]["$ref"] == f"#/$defs/{step.details.__name__}"
    fields = {
        f"{name}.{key}": field
        for name, definition in definitions.items()
        for key, field in definition.get("properties", {}).items()
    }
    known = ("type", "$ref", "anyOf", "const", "enum")
    assert [name for name, field in fields.items() if not any(word in field for word in known)] == []
    assert "float" in definitions["Placement"]["properties"], "names as in the file"
