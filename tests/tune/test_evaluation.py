"""What evaluation data cannot tell: samples that are all alike, and too few of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from lepton_cli.data.dataset import Batch
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import RecipeError
from lepton_cli.measure.accuracy import evaluate
from lepton_cli.measure.results import Accuracy
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.recipe.schema import Gate
from lepton_cli.recipe.tuning import Objective
from lepton_cli.runtime import Session
from lepton_cli.tune.evaluation import Evaluation
from tests.measure import builders
from tests.tune.builders import gate, judge, latency, trial

TOP1, F1, RMSE = (AccuracySpec(metric=name) for name in ("top1", "f1", "rmse"))


class Counted(Arrays):
    """Counts the batches that are looked at."""

    read = 0

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        for batch in super().batches(size, limit):
            self.read += 1
            yield batch


def given_back(widths: Mapping[str, int | tuple[int, ...]]) -> Session:
    """A model that answers with its inputs: `x` as `y_x`."""
    shapes = {name: (width,) if isinstance(width, int) else width for name, width in widths.items()}
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"y_{name}"]) for name in shapes],
        "same",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name, shape in shapes.items()],
        [
            helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, ["N", *shape])
            for name, shape in shapes.items()
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Session(made.SerializeToString(), threads=1)


def check(
    answers: Any,
    labels: Any,
    *limits: Gate,
    specs: Sequence[AccuracySpec] = (),
    goal: Objective | str = "size.file",
    batch: int = 32,
    class_names: Sequence[str] = (),
) -> list[str]:
    """The warnings about an original that gives these answers, shape (samples, classes)."""
    given = answers if isinstance(answers, dict) else {"x": answers}
    feeds = {name: np.asarray(rows, np.float32) for name, rows in given.items()}
    data = Counted(feeds, labels, batch=batch, class_names=class_names)
    session = given_back({name: rows.shape[1:] for name, rows in feeds.items()})
    found = evaluate({"original": session, "compressed": session}, data, specs)
    return looked_at(data, session, specs, found, *limits, goal=goal)


def looked_at(
    data: Counted,
    session: Session,
    specs: Sequence[AccuracySpec],
    found: Accuracy,
    *limits: Gate,
    goal: Objective | str = "size.file",
) -> list[str]:
    data.read = 0
    told = Evaluation(data, session, specs, 1)
    return told.check(
        judge(*limits, goal=goal), trial(accuracy=found, latency=latency(1.0)), at=("gates",), goal_at=("tune", "x")
    )


def refused(*arguments: Any, **options: Any) -> RecipeError:
    with pytest.raises(RecipeError) as found:
        check(*arguments, **options)
    return found.value


def scores(classes: Sequence[int], width: int = 4) -> np.ndarray:
    """Logits with these classes in front, no two rows alike."""
    rows = np.random.default_rng(0).random((len(classes), width))
    rows[np.arange(len(classes)), classes] += 2
    return rows


MIXED, EQUAL = [0, 1, 2, 3] * 50, [3] * 200
MIN = gate("accuracy.top1", min="10 %")


def test_labels_that_are_all_the_same() -> None:
    error = refused(scores(MIXED), EQUAL, gate("size.file", max="1 MB"), MIN)
    assert error.code == "tune.metric-constant"
    assert error.option == ("gates", 1)
    assert error.message == (
        "`accuracy.top1` tells nothing on the evaluation data: all 200 labels are 3, and any model that always answers "
        "so is perfect"
    )
    named = refused(scores(MIXED), EQUAL, MIN, class_names=("ape", "bee", "cat", "dog"))
    assert "labels are 3 (dog), and" in named.message
    hot = refused(scores(MIXED), np.eye(4)[EQUAL], MIN, specs=[TOP1])
    assert "labels are 3, and" in hot.message
    assert "labels are 3" in refused(scores(MIXED), EQUAL, gate("accuracy.f1", min="1 %"), specs=[F1]).message


def test_of_numbers_too() -> None:
    rows = np.linspace(0, 1, 40)[:, None]
    limit = gate("accuracy.rmse", max=9)
    assert "all 40 labels are 2.5, and" in refused(rows, np.full((40, 1), 2.5), limit, specs=[RMSE]).message
    assert not check(rows, rows[::-1].copy(), limit, specs=[RMSE])
    assert "answers 0.5 for all 40" in refused(np.full((40, 1), 0.5), rows, limit, specs=[RMSE]).message


def test_one_label_that_differs_is_enough() -> None:
    assert not check(scores(MIXED), [*EQUAL[:-1], 2], MIN, batch=7)


def test_a_goal_is_asked_as_limits_are() -> None:
    error = refused(scores(MIXED), EQUAL, goal="accuracy.top1")
    assert error.option == ("tune", "x")
    assert not check(scores(MIXED), EQUAL, gate("agreement", min="90 %"))


def test_answers_that_are_all_the_same() -> None:
    """Scores differ and the class in front never does: agreement tells nothing, how close they are does."""
    same = scores([1] * 200)
    error = refused(same, None, gate("agreement", min="90 %"))
    assert error.message == (
        "`agreement` tells nothing on the evaluation data: the original answers 1 for all 200 samples, and any model "
        "that always does is as good"
    )
    assert "the original answers 1 for all" in refused(same, MIXED, MIN).message
    assert not check(same, None, gate("fidelity.sqnr", min="20 dB"))
    assert "answers the same for all" in refused(np.ones((200, 4)), None, gate("fidelity.sqnr", min="20 dB")).message
    assert not check(scores([1] * 199 + [0]), None, gate("agreement", min="90 %"), batch=50)


def test_single_scores_are_read_as_a_whole() -> None:
    """0.3 is class 0 as a probability and class 1 as a logit: a batch of such ones alone does not say which."""
    logits = np.array([[-0.5], [0.3]] * 20)
    assert not check(logits, [0, 1] * 20, MIN, batch=1)
    assert "answers 0 for all 40" in refused(np.abs(logits) - 0.1, [0, 1] * 20, MIN, batch=1).message


def test_as_many_guesses_as_classes() -> None:
    limit, top5 = gate("accuracy.top5", min="10 %"), [AccuracySpec(metric="topk", k=5)]
    for width in (4, 5):
        error = refused(scores(MIXED, width), MIXED, limit, specs=top5)
        assert error.message.endswith(f": of {width} classes any model names the right one")
    assert not check(scores(MIXED, 6), MIXED, limit, specs=top5)


def test_of_several_outputs_one_that_tells_is_enough() -> None:
    answers = {"a": scores([1] * 200), "b": scores(MIXED)}
    assert not check(answers, None, gate("agreement", min="90 %"))
    assert not check(answers, None, gate("agreement", output="y_b", min="90 %"))
    assert "answers 1" in refused(answers, None, gate("agreement", output="y_a", min="90 %")).message


def test_labels_of_another_output_are_not_meant() -> None:
    answers = {"a": scores(MIXED), "b": scores(MIXED)}
    labels = {"y_a": np.array(MIXED), "y_b": np.array(EQUAL)}
    specs = [AccuracySpec(metric="top1", output=name) for name in ("y_a", "y_b")]
    assert not check(answers, labels, gate("accuracy.top1", output="y_a", min="10 %"), specs=specs)
    assert "are 3" in refused(answers, labels, gate("accuracy.top1", output="y_b", min="10 %"), specs=specs).message


def test_no_more_is_run_than_it_takes() -> None:
    feeds = {"x": np.asarray(scores(MIXED), np.float32)}
    data, session = Counted(feeds, np.array(MIXED), batch=10), given_back({"x": 4})
    found = evaluate({"original": session, "compressed": session}, data)
    looked_at(data, session, (), found, MIN)
    assert data.read == 1
    looked_at(data, session, (), found, gate("size.file", max="1 MB"), gate("accuracy.top1", min="1 %", level="warn"))
    assert data.read == 0


@pytest.mark.parametrize(
    ("limit", "count", "step", "enough"),
    [
        # 1.96² (d / L² - 1) with d the assumed 2 %, or L where only what was right can be lost.
        (gate("accuracy.top1", max_drop="0.5 pp"), 100, "1.00 pp", 3070),
        (gate("accuracy.top1", max_drop="0.5 pp"), 1, "100.00 pp", 3070),
        (gate("accuracy.top1", min_ratio="99 %"), 80, "1.25 pp", 765),
        (gate("agreement", min="99 %"), 99, "1.01 pp", 381),
    ],
)
def test_a_limit_within_one_sample(limit: Gate, count: int, step: str, enough: int) -> None:
    classes = (MIXED * 2)[:count]
    error = refused(scores(classes), classes, limit)
    assert error.code == "tune.too-few-samples"
    assert error.option == ("gates", 0)
    assert error.message.endswith(f"one more that is wrong is {step}")
    assert error.hint is not None
    assert f" {enough:,} samples" in error.hint


def test_a_limit_on_the_worst_class_needs_samples_of_each() -> None:
    """Fifty of every class: one of them is two points, one of all 200 half a point."""
    error = refused(scores(MIXED), MIXED, gate("accuracy.worst_class", max_drop="1 pp"))
    assert error.code == "tune.too-few-samples"
    assert error.message.startswith("50 samples of each class cannot tell `accuracy.worst_class: max_drop 1 pp`")
    assert error.message.endswith("one more that is wrong is 2.00 pp")
    assert error.hint is not None
    assert "765 samples of each class" in error.hint
    (warning,) = check(scores(MIXED), MIXED, gate("accuracy.worst_class", max_drop="2 pp"))
    assert "with 50 samples of each class" in warning
    # F1 has classes, and a metric with as many guesses as classes says nothing of its own.
    specs = [AccuracySpec(metric="f1"), AccuracySpec(metric="topk", k=4)]
    for spec in specs:
        (warning,) = check(scores(MIXED), MIXED, gate("accuracy.worst_class", max_drop="2 pp"), specs=[spec])
        assert "with 50 samples of each class" in warning
    assert "labels are 3" in refused(scores(EQUAL), EQUAL, gate("accuracy.worst_class", max_drop="2 pp")).message


def test_a_limit_of_one_sample_is_told_but_not_well() -> None:
    """With 200 samples half a point is one of them."""
    limit = gate("accuracy.top1", max_drop="0.5 pp")
    (warning,) = check(scores(MIXED), MIXED, limit)
    # 1.96 * sqrt((0.02 - 0.005²) / 200)
    assert warning == (
        "`accuracy.top1: max_drop 0.5 pp`: with 200 samples what is lost is known to about 1.96 pp (95 %), no closer "
        "than the limit; 3,070 samples would tell"
    )
    assert not check(scores(MIXED * 16), MIXED * 16, limit)


def test_few_errors_of_the_original_bound_what_can_be_gained() -> None:
    """Where none of 800 answers is wrong, at most 0.48 % of all can become right, and no more in return be lost."""
    right = MIXED * 4
    half = [(label + index % 2) % 4 for index, label in enumerate(right)]
    z2 = 1.959963984540054**2
    gained = z2 / (800 + z2)  # Wilson's upper end for none of 800
    enough = math.ceil(z2 * ((0.005 + 2 * gained) / 0.005**2 - 1))
    limit = gate("accuracy.top1", max_drop="0.5 pp")
    (warning,) = check(scores(right), right, limit)
    assert warning.endswith(f"; {enough:,} samples would tell")
    assert enough < 3070
    (warning,) = check(scores(half), right, limit)
    assert warning.endswith("; 3,070 samples would tell")


def test_as_many_are_lost_as_the_limit_allows() -> None:
    """5 points are more than the 2 % that are assumed: 1.96² (1 / 0.05 - 1)."""
    (warning,) = check(scores(MIXED[:40]), MIXED[:40], gate("accuracy.top1", max_drop="5 pp"))
    assert warning.endswith("; 73 samples would tell")


def test_a_share_of_what_is_right_now() -> None:
    """1 % of one half is half a point."""
    half = [(label + index % 2) % 4 for index, label in enumerate(MIXED)]
    (warning,) = check(scores(half), MIXED, gate("accuracy.top1", min_ratio="99 %"))
    assert warning.endswith("; 3,070 samples would tell")


@pytest.mark.parametrize(
    "limit",
    [
        gate("accuracy.top1", max_drop="0 pp"),
        gate("accuracy.top1", min_ratio=1),
        gate("accuracy.top1", min="99.9 %"),
        gate("agreement", min="100 %"),
        gate("accuracy.top1", max_drop="0.5 pp", level="warn"),
    ],
)
def test_limits_that_ask_for_all_or_for_a_level(limit: Gate) -> None:
    """Nothing lost is what any number of samples shows, and a level is no difference."""
    assert not check(scores(MIXED[:20]), MIXED[:20], limit)


def test_samples_of_many_positions() -> None:
    """Two texts of 500 tokens: a thousand answers, one of which is less than the limit."""
    tokens = np.random.default_rng(1).integers(0, 4, 1000)
    rows, limit = scores(tokens.tolist()), gate("accuracy.top1", max_drop="0.5 pp")
    assert not check(rows.reshape(2, 500, 4), tokens.reshape(2, 500), limit)
    assert not check(rows.reshape(1, 1000, 4), tokens.reshape(1, 1000), limit)
    assert "labels are the same" in refused(rows.reshape(2, 500, 4), np.tile(tokens[:500], (2, 1)), limit).message


def test_a_score_of_several_metrics_is_left_alone() -> None:
    answers = {"a": scores(MIXED), "b": scores(MIXED)}
    specs = [AccuracySpec(metric="top1", output=name) for name in ("y_a", "y_b")]
    assert not check(answers, np.array(EQUAL), gate("accuracy.score", min=0.1), specs=specs)


def test_scores_that_never_decide_for_class_one_still_tell() -> None:
    """What is looked for is rare: every decision is 0, and the order of the scores is what counts."""
    labels = [0, 0, 0, 1] * 50
    answers = np.random.default_rng(0).random((200, 1)) * 0.3
    specs = [AccuracySpec(metric="auc")]
    assert check(answers, labels, gate("accuracy.auc", max_drop="1 pp"), specs=specs) == []
    same = refused(np.full((200, 1), 0.3), labels, gate("accuracy.auc", max_drop="1 pp"), specs=specs)
    assert same.code == "tune.metric-constant"
    assert "the original answers" in same.message


def test_few_texts_cannot_tell_a_small_limit() -> None:
    """One text of 20 that is read otherwise is 5 points."""
    words = [f"line {number}" for number in range(20)]
    model = "g (string[N] x) => (string[N] y) { y = Identity (x) }"
    data = Counted({"x": np.array(words, object)}, words)
    session = Session(builders.model(model), threads=1)
    specs = [AccuracySpec(metric="exact")]
    found = evaluate({"original": session, "compressed": session}, data, specs)
    with pytest.raises(RecipeError, match="one more that is wrong") as caught:
        looked_at(data, session, specs, found, gate("accuracy.exact", max_drop="1 pp"))
    assert caught.value.code == "tune.too-few-samples"
