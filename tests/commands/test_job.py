"""What a run opens before any work: the training data beside the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lepton_cli.commands import compress as compressing
from lepton_cli.commands import measuring
from lepton_cli.commands.job import Job, prepare
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError, LeptonError, MeasurementError, RecipeError
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict, load_recipe
from lepton_cli.step import Options
from lepton_cli.steps import STEPS
from lepton_cli.train.spec import Distill
from tests.conftest import SAMPLES

MLP = SAMPLES / "digits_mlp.onnx"
SHAPED: dict[str, Any] = {"inputs": {"pixels": "images"}, "preprocess": {"scale": "1/16", "shape": [64]}}
TRAIN: dict[str, Any] = {"path": str(SAMPLES / "digits_train.npz"), **SHAPED}
TEST: dict[str, Any] = {"path": str(SAMPLES / "digits_test.npz"), "labels": "labels", **SHAPED}
UNUSED = "no step of the recipe trains: `data.training` is not used"


def job(data: dict[str, Any], model: Path = MLP, **recipe: Any) -> Job:
    return prepare(model, from_dict({"version": 1, "data": data, "steps": [{"step": "simplify"}], **recipe}))


def test_training_data_reach_the_steps(tmp_path: Path) -> None:
    found = job({"training": {**TRAIN, "labels": "labels", "augment": [{"crop": {"pad": 1}}]}}, seed=7)
    context = measuring.context(found, tmp_path, Silent())
    assert context.training is found.training is not None
    assert context.calibration is context.evaluation is None
    assert context.check is context.training.holdout, "models are checked on real samples"
    batch = context.training.batch(0, 20)
    assert batch.feeds["pixels"].shape == (20, 64)
    assert batch.labels["labels"].shape == (20,)
    other = job({"training": {**TRAIN, "augment": [{"crop": {"pad": 1}}]}}, seed=8).training
    assert other is not None
    assert not np.array_equal(other.batch(0, 20).feeds["pixels"], batch.feeds["pixels"]), "the recipe's seed"
    assert found.runs


def test_groups_are_read_and_what_is_wrong_with_them_is_said_at_their_line(tmp_path: Path) -> None:
    x = np.zeros((4, 64), np.float32)
    stored = {"x": x, "labels": np.arange(4), "age": np.array([20.0, 30, np.nan, 20]), "site": np.array(list("abab"))}
    np.savez(tmp_path / "data.npz", **stored)
    text = """version: 1
data:
  evaluation:
    path: data.npz
    inputs: {pixels: x}
    labels: labels
    groups:
      - site
      - %s
steps: [{step: simplify}]
"""
    path = tmp_path / "recipe.yaml"
    for wrong, said in (("age", "no value of `age`"), ("sit", "no array `sit`")):
        path.write_text(text % wrong)
        with pytest.raises(DataError, match=said) as caught:
            prepare(MLP, load_recipe(path))
        assert str(caught.value.where).endswith("recipe.yaml:9:9")
    path.write_text(text.replace("- %s", ""))
    found = prepare(MLP, load_recipe(path)).evaluation
    assert found is not None
    assert found.groups["site"].codes.tolist() == [0, 1, 0, 1]
    path.write_text(text.replace("evaluation", "calibration") % "site")
    with pytest.raises(RecipeError, match="belong to the evaluation data"):
        load_recipe(path)


def test_without_a_hold_out_models_are_checked_on_made_up_samples() -> None:
    found = job({"training": {**TRAIN, "holdout": "0 %"}})
    assert found.training is not None
    assert found.check.path != found.training.whole.path
    assert [(fact.role, fact.samples, fact.labelled) for fact in found.data_facts()] == [("training", 1198, False)]


def test_it_is_said_that_no_step_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    assert job({"training": TRAIN}).warnings == (UNUSED,)
    assert job({"calibration": TRAIN}).warnings == ()
    monkeypatch.setattr(STEPS["simplify"].options, "training", Distill())
    assert job({"training": TRAIN}).warnings == ()
    assert Options(step="any").training is None


def test_samples_that_are_evaluated_too_are_warned_about() -> None:
    """As of calibration; they stay where their content puts them."""
    plain, both = (
        job({"training": TRAIN}),
        job({"training": TRAIN, "calibration": TRAIN, "evaluation": {**TEST, **TRAIN}}),
    )
    assert list(both.warnings) == [
        UNUSED,
        "1198 calibration samples are in the evaluation data too: the measured accuracy is too good",
        "1198 training samples are in the evaluation data too: the measured accuracy is too good",
    ]
    assert both.training is not None
    assert plain.training is not None
    assert both.training.holdout is not None
    assert plain.training.holdout is not None
    assert both.training.holdout.sample_hashes() == plain.training.holdout.sample_hashes()
    assert job({"training": TRAIN, "evaluation": TEST}).warnings == (UNUSED,)


def test_nothing_is_read_where_no_steps_will_run() -> None:
    recipe = from_dict({"version": 1, "data": {"training": {"path": "gone.npz"}}, "steps": [{"step": "simplify"}]})
    found = prepare(MLP, recipe, steps=False)
    assert (found.training, found.warnings) == (None, ())
    with pytest.raises(DataError, match="does not exist"):
        prepare(MLP, recipe)


def test_statistics_come_from_the_calibration_data() -> None:
    standard = {**TRAIN, "preprocess": {"shape": [64], "standardise": True}}
    found = job({"calibration": standard, "evaluation": {**TEST, **standard}, "training": standard}).training
    assert found is not None
    batch = found.batch(0, found.count).feeds["pixels"]
    assert abs(float(batch.mean())) < 0.05
    with pytest.raises(DataError, match="`standardise` takes its mean and deviation from the calibration data"):
        job({"evaluation": TEST, "training": standard})


def test_what_is_wrong_has_its_place_in_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"version: 1\ndata:\n  training:\n    path: {SAMPLES / 'digits_train.npz'}\n    inputs: {{pixels: images}}\n"
        "    preprocess: {shape: [64]}\n    augment:\n      - flip: horizontal\n      - drop_tokens: 10 %\n"
        "steps:\n  - step: simplify\n"
    )
    with pytest.raises(DataError, match="`drop_tokens` fits none of the inputs") as raised:
        prepare(MLP, load_recipe(path))
    assert str(raised.value.where).startswith(f"{path}:9:")


def test_the_report_names_it(tmp_path: Path) -> None:
    recipe = {
        "version": 1,
        "data": {"training": {**TRAIN, "augment": [{"flip": "horizontal"}, {"crop": {"random": [0.5, 1]}}]}},
        "steps": [{"step": "simplify", "if_possible": True}],
        "evaluate": {"latency": False, "memory": False},
    }
    made = compressing.compress(MLP, from_dict(recipe), tmp_path, Silent())
    assert [(data.role, data.samples) for data in made.report.data] == [("training", 1198)]
    assert made.report.recipe.resolved["data"]["training"]["augment"] == [
        {"flip": "horizontal"},
        {"crop": {"random": [0.5, 1.0], "aspect": [3 / 4, 4 / 3]}},
    ]
    assert UNUSED in made.report.warnings
    assert load_recipe(tmp_path / "recipe.resolved.yaml").recipe.data.training is not None


HEADS = [
    {"step": "head.replace", "classes": 5},
    {"step": "head.add", "at": "pixels", "name": "kind", "classes": 30},
]


def test_metrics_of_outputs_to_come_are_looked_at_by_name() -> None:
    """Their labels may be none of the original's classes."""
    labels = {"logits": "labels", "kind": "labels"}
    data = {"evaluation": {**TEST, "labels": labels, "label_offset": 20}}
    asked = [{"metric": "top1", "output": name} for name in labels]
    made = job(data, steps=HEADS, evaluate={"accuracy": asked})
    assert made.new_outputs() == {"logits", "kind"}
    assert made.new_outputs([1]) == {"kind"}
    assert job(data, steps=HEADS).new_outputs([]) == set(), "nor is the first output looked at unasked"
    for spec, said in (({"output": "knid"}, "no output `knid`"), ({"output": "kind", "labels": "knid"}, "no labels")):
        with pytest.raises(RecipeError, match=said):
            job(data, steps=HEADS, evaluate={"accuracy": [*asked, {"metric": "top1", **spec}]})
    with pytest.raises(DataError, match="run from 20 to 29"):
        job(data, steps=HEADS[1:], evaluate={"accuracy": asked})
    with pytest.raises(RecipeError, match="no output `kind`"):
        job(data, evaluate={"accuracy": asked[1:]})


@pytest.mark.parametrize(
    ("training", "step", "said"),
    [
        (None, {"step": "distill"}, "`distill` needs training data"),
        ({**TRAIN, "holdout": "0 %"}, {"step": "quantize.aware"}, "`holdout: 0 %` keeps none"),
        (TRAIN, {"step": "finetune"}, "`finetune` needs labels"),
        (TRAIN, {"step": "distill", "labels": "30 %"}, "`distill` needs labels"),
        (TRAIN, {"step": "distill", "teacher": "gone.onnx"}, "gone.onnx does not exist"),
    ],
)
def test_what_training_needs_is_missed_before_the_first_step(
    training: dict[str, Any] | None, step: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """The steps in front of it may take an hour."""
    pytest.importorskip("torch", reason="needs the extra `train`")
    recipe = tmp_path / "recipe.yaml"
    data = {} if training is None else {"data": {"training": training}}
    recipe.write_text(yaml.safe_dump({"version": 1, **data, "steps": [{"step": "simplify"}, step]}, sort_keys=False))
    with pytest.raises(LeptonError, match=said) as raised:
        prepare(MLP, load_recipe(recipe))
    assert str(raised.value.where).startswith(f"{recipe}:")
    with_it = from_dict({"version": 1, "steps": [{"step": "simplify"}, {**step, "if_possible": True}]})
    assert prepare(MLP, with_it).training is None
    assert prepare(MLP, with_it, steps=False).training is None


def test_sorted_labels_are_not_taken_for_equal_ones() -> None:
    """R2 is not defined on the samples that are looked at first; on all of them it may be."""
    rows = np.random.default_rng(0).random((40, 64), np.float32)
    labels = np.random.default_rng(1).random((40, 10), np.float32)
    labels[:16] = 1
    recipe = from_dict({"version": 1, "steps": [{"step": "simplify"}], "evaluate": {"accuracy": {"metric": "r2"}}})
    assert prepare(MLP, recipe, arrays={"evaluation": Arrays({"pixels": rows}, labels)}).runs
    with pytest.raises(MeasurementError) as found:
        prepare(MLP, recipe, arrays={"evaluation": Arrays({"pixels": rows[:16]}, labels[:16])})
    assert found.value.code == "measure.undefined"
    assert found.value.option == ("evaluate", "accuracy")


def test_numbers_that_are_no_classes_are_found_at_the_labels() -> None:
    rows = np.random.default_rng(0).random((20, 64), np.float32)
    recipe = from_dict({"version": 1, "steps": [{"step": "simplify"}], "evaluate": {"accuracy": {"metric": "top1"}}})
    with pytest.raises(DataError, match="no classes") as found:
        prepare(MLP, recipe, arrays={"evaluation": Arrays({"pixels": rows}, rows[:, 0])})
    assert found.value.option == ("data", "evaluation", "labels")
