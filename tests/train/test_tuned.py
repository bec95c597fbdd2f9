"""`lepton tune` with training: once for every beginning of steps, within its time, and only with the same data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lepton_cli.commands import measuring
from lepton_cli.commands.job import prepare
from lepton_cli.commands.resume import Kept
from lepton_cli.commands.tune import Tuned, tune
from lepton_cli.errors import LeptonError
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import load_recipe
from lepton_cli.report.model import Tune
from lepton_cli.train.course import Course
from tests.commands.test_tune import Lines
from tests.tune import builders

#: What has to be pruned, and may become better by training.
GOAL = {"limits": [{"metric": "parameters", "max_ratio": 0.6}], "maximize": "accuracy.top1"}
#: Pruned to a half and trained for two epochs, or not; in two precisions behind it.
SPACE = {
    "keep": ["100 %", "50 %"],
    "precision": ["float", "weights8"],
    "prune_by": ["params"],
    "importance": ["l2"],
    "round_to": [1],
    "distill": ["none", 2],
}


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("lepton_cli.commands.trials.KEEP_SECONDS", 0.0)
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    builders.data(tmp_path / "data.npz", builders.network(tmp_path / "net.onnx"))
    rows = np.random.default_rng(7).normal(size=(300, builders.FEATURES)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=rows)
    return tmp_path


@pytest.fixture(name="trained")
def _trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that were trained, one name for each."""
    names, learn = list[str](), Course.learn

    def noted(self: Course, task: Any, name: str) -> Any:
        found = learn(self, task, name)
        names.append(name)
        return found

    monkeypatch.setattr(Course, "learn", noted)
    return names


def run(
    folder: Path,
    *,
    trials: int = 20,
    training: str = "{path: train.npz, holdout: 20 %}",
    steps: str = "",
    watch: Lines | None = None,
    **space: Sequence[Any] | None,
) -> Tuned:
    searched = {name: values for name, values in {**SPACE, **space}.items() if values is not None}
    section = {**GOAL, "budget": {"trials": trials}, "space": searched}
    path = builders.recipe(folder / "tune.yaml", json.dumps(section), steps=steps)
    if training:
        path.write_text(path.read_text().replace("  evaluation:", f"  training: {training}\n  evaluation:", 1))
    return tune(folder / "net.onnx", load_recipe(path), folder / "out", watch or Lines())


def search(result: Tuned) -> Tune:
    assert result.report.tune is not None
    return result.report.tune


def test_candidates_that_begin_alike_train_once(folder: Path, trained: list[str]) -> None:
    result = run(folder)
    found = search(result)
    distilled = [row for row in found.trials if any(step["step"] == "distill" for step in row.steps)]
    assert {row.point["precision"] for row in distilled} == {"float", "weights8"}
    assert len(found.trials) == 4
    assert trained == ["distill"], "one training for both, for the race and for the result"
    assert not {"no step of the recipe trains: `data.training` is not used"} & set(result.report.warnings)


def test_what_was_trained_counts_as_time_of_its_trial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = Course.learn

    def slow(self: Course, task: Any, name: str) -> Any:
        time.sleep(0.5)
        return learn(self, task, name)

    monkeypatch.setattr(Course, "learn", slow)
    result = run(folder)
    long = [row for row in search(result).trials if row.seconds > 0.5]
    assert [row.point["distill"] for row in long] == [2.0]


def test_the_recipes_own_training_is_tried_first(folder: Path, trained: list[str]) -> None:
    steps = "steps: [{step: simplify}, {step: prune.channels, target: {params: 40 %}, recover: [distill]}]\n"
    watch = Lines()
    run(folder, distill=["none"], trials=1, steps=steps, watch=watch)
    assert watch.trials[0].name == "recipe"
    assert watch.trials[0].complete
    assert trained == ["distill"]


def test_other_samples_are_another_search(folder: Path) -> None:
    """So are other samples kept apart, other changes to them, and another teacher."""
    found = {search(run(folder, trials=1, distill=["none"])).search}
    for training in ("{path: train.npz, holdout: 30 %}", "{path: train.npz, augment: [{noise: 0.1}]}", ""):
        found.add(search(run(folder, trials=1, distill=["none"], training=training)).search)
    np.savez(folder / "train.npz", x=np.ones((300, builders.FEATURES), np.float32) * np.arange(300)[:, None])
    found.add(search(run(folder, trials=1, distill=["none"])).search)
    assert len(found) == 5


def test_another_teacher_is_another_search_and_another_run(folder: Path) -> None:
    """What a search found, and what `--resume` goes on from, follows from the teacher's weights too."""
    learnt = "{step: distill, teacher: teacher.onnx, budget: {samples: 100}, if_possible: true}"
    path = builders.recipe(folder / "r.yaml", "{minimize: size.file}", steps=f"steps: [{learnt}]")
    assert prepare(folder / "net.onnx", load_recipe(path)).teachers() == {}
    searches, runs = set(), set()
    for scale in (1.0, 2.0):
        model = onnx.load(folder / "net.onnx")
        weight = model.graph.initializer[0]
        array = onnx.numpy_helper.to_array(weight) * np.float32(scale)
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
        onnx.save(model, folder / "teacher.onnx")
        searches.add(search(run(folder, trials=1, distill=None, steps=f"steps: [{learnt}]\n")).search)
        job = prepare(folder / "net.onnx", load_recipe(path))
        context = measuring.context(job, folder, Silent())
        runs.add(Kept(None, job, context)._key(1))
    assert (len(searches), len(runs)) == (2, 2)


def test_a_training_that_does_not_fit_is_left_out_and_the_others_go_on(
    folder: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Course, "_measured", lambda self, task: (False, 1e4))
        found = search(run(folder))
    late = [row for row in found.trials if row.point["distill"]]
    assert [row.reached for row in late] == ["failed"] * 2
    assert all(row.reason.startswith("training takes about ") and " are left" in row.reason for row in late)
    assert all(row.reached == "accuracy" for row in found.trials if row not in late)
    assert not trained
    assert {trial.key for trial in found.records} == {row.key for row in found.trials if row not in late}
    assert not any(row.reached == "failed" for row in search(run(folder)).trials), "with time enough they are tried"
    assert trained == ["distill"]


def refused(code: str, call: Callable[[], object]) -> LeptonError:
    with pytest.raises(LeptonError) as caught:
        call()
    assert caught.value.code == code
    return caught.value


@pytest.mark.parametrize(
    ("space", "steps"),
    [
        ({"distill": ["none", 1]}, ""),
        ({"precision": ["w4a8"], "distill": None}, ""),
        ({"distill": None}, "steps: [{step: prune.channels, recover: [distill]}]\n"),
        ({"distill": None}, "steps: [{step: quantize.static}, {step: quantize.aware}]\n"),
    ],
)
def test_what_is_missing_is_said_before_the_first_trial(
    space: dict[str, Any], steps: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lepton_cli.commands.trials.Laboratory.original", None)
    error = refused("data.training-missing", lambda: run(folder, training="", steps=steps, **space))
    assert error.where is not None


def test_without_torch_nothing_is_trained_unless_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_cli.train.steps.importlib.util.find_spec", lambda name: None)
    assert search(run(folder, distill=None)).space["distill"] == (None,)
    error = refused("environment.missing-extra", lambda: run(folder, distill=[2]))
    assert error.where is not None


HEADED = """version: 1
name: net
data:
  training: {path: train.npz, labels: {sign: sign}, holdout: 20 %}
  evaluation: {path: test.npz, labels: {y: labels, sign: sign}}
steps: [{step: simplify}, {step: head.add, at: h1, name: sign, classes: 2}STEPS]
evaluate:
  accuracy: [{metric: top1, output: y}, {metric: top1, output: sign}]
  latency: false
  memory: false
tune:
  limits: [{metric: accuracy.top1, output: sign, min: 80 %}, {metric: accuracy.top1, output: y, max_drop: 20 pp}]
  minimize: size.file
  space: {keep: [100 %, 90 %], precision: [float, weights8], prune_by: [params], importance: [l2], round_to: [1]SPACE}
"""


FINETUNE = ", {step: finetune, budget: {epochs: 10}}"


@pytest.fixture(name="headed")
def _headed(folder: Path) -> Callable[..., Tuned]:
    """The network gets a second output, whether its samples have a positive sum, and is searched with it."""
    with np.load(folder / "data.npz") as file:
        x, labels = file["x"], file["labels"]
    rows = np.random.default_rng(7).normal(size=(600, builders.FEATURES)).astype(np.float32)
    np.savez(folder / "train.npz", x=rows, sign=(rows.sum(axis=1) > 0).astype(np.int64))
    np.savez(folder / "test.npz", x=x, labels=labels, sign=(x.sum(axis=1) > 0).astype(np.int64))

    def call(steps: str = FINETUNE, space: str = "") -> Tuned:
        path = folder / "tune.yaml"
        path.write_text(HEADED.replace("STEPS", steps).replace("SPACE", space))
        return tune(folder / "net.onnx", load_recipe(path), folder / "out", Lines())

    return call


def test_every_candidate_has_the_heads_of_the_recipe(headed: Callable[..., Tuned], trained: list[str]) -> None:
    result = headed(space=", distill: [none]")
    rows = search(result).trials
    assert [row.name for row in rows if not row.point] == ["recipe"]
    assert len(rows) > 1
    begun = [[step["step"] for step in row.steps][:3] for row in rows]
    assert begun == [["simplify", "head.add", "finetune"]] * len(rows)
    assert trained == ["finetune"], "once for all"
    assert [gate.verdict for gate in result.report.gates] == ["pass", "pass"]
    assert result.report.accuracy is not None
    assert {value.output for value in result.report.accuracy.values["compressed"]} >= {"y", "sign"}
    assert "sign" not in {value.output for value in result.report.accuracy.values["original"]}
    model = onnx.load(result.files[0])
    assert [output.name for output in model.graph.output] == ["y", "sign"]
    again = search(headed(space=", distill: [none]"))
    assert (again.best, trained) == (search(result).best, ["finetune"]), "nor when it is run again"


def test_candidates_keep_what_was_taught(headed: Callable[..., Tuned], trained: list[str]) -> None:
    result = headed(space=", distill: [2]")
    assert trained == ["finetune", "distill"]
    kept = [row for row in search(result).trials if any(step["step"] == "distill" for step in row.steps)]
    assert kept
    assert all(row.reached != "failed" for row in kept), [row.reason for row in kept]


@pytest.mark.parametrize(
    ("steps", "space", "code"),
    [
        (
            f"{FINETUNE}, {{step: quantize.weights}}, {{step: head.add, at: h0, name: late, classes: 2}}",
            "",
            "tune.late-head",
        ),
        ("", ", distill: [none, 2]", "tune.impossible"),
    ],
)
def test_what_would_be_without_its_head_is_refused(
    steps: str, space: str, code: str, headed: Callable[..., Tuned]
) -> None:
    assert refused(code, lambda: headed(steps, space)).where is not None
