"""Accuracy of models whose outputs are known, because the model is the identity or a matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_cli.data.groups import Groups
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError, MeasurementError, RecipeError
from lepton_cli.measure import accuracy
from lepton_cli.measure.spec import AccuracySpec
from tests.measure import builders

SAME = builders.identity("N, 4")
#: Exchanges class 0 and 1.
SWAPPED = builders.linear(np.eye(4, dtype=np.float32)[[1, 0, 2, 3]])


def data(n: int = 60, wrong: int = 6, classes: int = 4, **options: Any) -> Arrays:
    """Scores that favour the label, except for the first `wrong` samples."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % classes
    favoured = np.where(np.arange(n) < wrong, (labels + 1) % classes, labels)
    scores = generator.random((n, classes)).astype(np.float32) + 3 * np.eye(classes, dtype=np.float32)[favoured]
    return Arrays({"x": scores}, {"labels": labels}, **options)


def test_top1_is_the_default_for_class_labels() -> None:
    found = accuracy.evaluate({"original": SAME, "compressed": SAME}, data())
    (metric,) = found.values["original"]
    assert (metric.metric, metric.value, metric.n, metric.output) == ("top1", 0.9, 60, "y")
    assert metric.low == pytest.approx(0.7985, abs=1e-3)
    (change,) = found.changes
    assert (change.difference, change.method, change.variant) == (0.0, "newcombe", "compressed")
    assert found.fidelity[0].agreement == 1
    assert found.fidelity[0].sqnr_db is None
    assert found.flips_total == 0
    assert found.warnings == ()


def test_flips_and_classes() -> None:
    found = accuracy.evaluate(
        {"original": SAME, "compressed": SWAPPED},
        data(wrong=0, class_names={"labels": ("cat", "dog", "owl", "bee")}),
    )
    assert found.changes[0].difference == pytest.approx(-0.5)
    assert found.changes[0].high is not None
    assert found.changes[0].high < -0.3
    assert found.flips_total == 30
    assert len(found.flips) == 30
    confidences = [flip.confidence for flip in found.flips]
    assert confidences == sorted(confidences, reverse=True)
    assert {(flip.label, flip.original, flip.compressed) for flip in found.flips} == {
        ("cat", "cat", "dog"),
        ("dog", "dog", "cat"),
    }
    assert [(c.label, c.n, c.original, c.compressed) for c in found.classes] == [
        ("cat", 15, 1.0, 0.0),
        ("dog", 15, 1.0, 0.0),
        ("owl", 15, 1.0, 1.0),
        ("bee", 15, 1.0, 1.0),
    ]
    assert found.fidelity[0].agreement == 0.5


def test_a_class_that_pays_is_told() -> None:
    """All of class 0 and 1 change places."""
    found = accuracy.evaluate(
        {"original": SAME, "compressed": SWAPPED},
        data(n=160, wrong=0, class_names={"labels": ("cat", "dog", "owl", "bee")}),
    )
    cat, _, owl, _ = found.classes
    assert (cat.output, cat.lost, cat.won) == ("y", 40, 0)
    assert cat.p == pytest.approx(2 / 2**40)
    assert cat.p_adjusted == pytest.approx(8 / 2**40)
    assert (owl.lost, owl.won, owl.p, owl.low) == (0, 0, 1, pytest.approx(-owl.high if owl.high else 0))
    assert [one.label for one in found.payers] == ["cat", "dog"]
    (spread,) = found.spread
    assert (spread.output, spread.change, spread.judged) == ("y", -0.5, 4)
    # All of half of the samples.
    assert spread.evenness == 2
    (warning,) = found.warnings
    assert "the whole (-50.00 pp): class cat -100.0 pp (40 answers lost, 0 won, n = 40), class dog -100.0 pp" in warning


def test_every_output_with_classes_is_looked_at() -> None:
    """Two outputs with labels of their own: of the second all of a class are lost."""
    both = "g (float[N, 4] x) => (float[N, 4] first, float[N, 4] second) { first = Identity (x) second = %s }"
    same, worse = both % "Identity (x)", both % "MatMul (x, w)"
    swap = np.eye(4, dtype=np.float32)[[1, 0, 2, 3]]
    made = data(n=160, wrong=0)
    labels = {"first": made.labels["labels"], "second": made.labels["labels"]}
    found = accuracy.evaluate(
        {"original": builders.model(same), "compressed": builders.model(worse, w=swap)},
        Arrays(made.feeds, labels),
        [AccuracySpec(metric="top1", output=name) for name in labels],
    )
    assert [(one.output, one.n, one.lost) for one in found.classes] == [
        *(("first", 40, 0) for _ in range(4)),
        *(("second", 40, lost) for lost in (40, 40, 0, 0)),
    ]
    assert [spread.output for spread in found.spread] == ["first", "second"]
    # The smallest of eight.
    assert found.classes[4].p_adjusted == pytest.approx(8 * 2 / 2**40)
    (warning,) = found.warnings
    assert warning.startswith("some classes of `second` pay more than the whole")
    # Flips are those of the first.
    assert found.flips_total == 0


def test_groups_are_told_beside_the_classes() -> None:
    """Class 0 and 1 change places: all of site north are of these classes, and two thirds of site south are not."""
    made = data(n=160, wrong=0)
    site = np.where(np.isin(made.labels["labels"], (0, 1)) & (np.arange(160) < 120), 1, 2)
    groups = {"site": Groups(site, ("east", "north", "south"))}
    found = accuracy.evaluate({"original": SAME, "compressed": SWAPPED}, made, groups=groups)
    north, south = found.classes[4:]
    assert (north.title, north.column, north.output, north.n, north.lost) == ("site north", "site", "y", 60, 60)
    assert (south.title, south.n, south.lost) == ("site south", 100, 20)
    # Four classes and two groups, of which the largest loss has the least p.
    assert north.p_adjusted == pytest.approx(6 * 2 / 2**60)
    classes, sites = found.spread
    assert (classes.column, sites.column) == ("", "site")
    assert sites.change == classes.change == -0.5
    assert sites.worst == north
    assert [one.title for one in found.payers] == ["class 0", "class 1", "site north"]
    assert len(found.warnings) == 2
    assert found.warnings[1].startswith("some groups pay more than the whole (-50.00 pp): site north -100.0 pp")
    part = accuracy.evaluate({"original": SAME, "compressed": SWAPPED}, made, groups=groups, limit=64)
    assert sum(one.n for one in part.classes if one.column) == 64


def test_one_model_alone_has_no_changes_by_class() -> None:
    found = accuracy.evaluate({"original": SAME}, data(n=160))
    assert found.classes == found.spread == ()


def test_at_most_fifty_flips_are_kept() -> None:
    found = accuracy.evaluate({"original": SAME, "compressed": SWAPPED}, data(n=240, wrong=0))
    assert (len(found.flips), found.flips_total) == (50, 120)


def test_without_labels_only_agreement_is_measured() -> None:
    unlabelled = Arrays(data(wrong=0).feeds)
    found = accuracy.evaluate({"original": SAME, "compressed": SWAPPED}, unlabelled)
    assert found.values == {"original": (), "compressed": ()}
    assert found.changes == ()
    assert found.fidelity[0].agreement == 0.5
    assert found.flips_total == 30
    assert found.flips[0].label is None


def test_several_metrics_and_their_pairing() -> None:
    specs = [AccuracySpec(metric="topk", k=2), AccuracySpec(metric="f1")]
    found = accuracy.evaluate({"original": SAME, "compressed": SWAPPED}, data(wrong=9), specs)
    assert [change.metric for change in found.changes] == ["top2", "f1"]
    assert found.changes[1].method == "bootstrap"
    low, high = found.changes[1].low, found.changes[1].high
    assert low is not None
    assert high is not None
    assert low < found.changes[1].difference < high < 0


def test_regression_is_the_default_for_other_numbers() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((50, 1)).astype(np.float32)
    labels = x[:, 0] + 0.1
    double = builders.linear(np.full((1, 1), 1.1, np.float32))
    found = accuracy.evaluate(
        {"original": builders.identity("N, 1"), "compressed": double}, Arrays({"x": x}, {"labels": labels})
    )
    (metric,) = found.values["original"]
    assert (metric.metric, metric.higher_is_better) == ("rmse", False)
    assert metric.value == pytest.approx(0.1, abs=1e-6)
    assert found.fidelity[0].sqnr_db == pytest.approx(20, abs=0.01)
    assert found.fidelity[0].agreement is None
    assert found.flips_total == 0


def test_logits_of_one_column_are_decided_over_all_batches() -> None:
    """The first batch alone looks like probabilities, the whole does not: 0.4 is a positive logit."""
    x = np.array([[0.4]] * 7 + [[-3.0], [2.0]], np.float32)
    labels = np.array([1] * 7 + [0, 1])
    found = accuracy.evaluate({"original": builders.identity("N, 1")}, Arrays({"x": x}, {"labels": labels}))
    assert found.values["original"][0].value == 1


def test_many_outputs_each_with_its_metric() -> None:
    two = builders.model(
        """g (float[N, 4] x) => (float[N, 4] a, float[N, 1] b) {
             a = Identity (x)
             b = ReduceSum <keepdims = 1> (x, axes)
        }""",
        axes=np.array([1]),
    )
    dataset = data()
    labels = {"kind": dataset.labels["labels"], "b": dataset.feeds["x"].sum(axis=1)}
    dataset = Arrays(dataset.feeds, labels)
    specs = [AccuracySpec(metric="top1", labels="kind", weight=3), AccuracySpec(metric="mae", output="b")]
    found = accuracy.evaluate({"original": two, "compressed": two}, dataset, specs)
    assert [(m.metric, m.output) for m in found.values["original"]] == [
        ("top1", "a"),
        ("mae", "b"),
        ("score", ""),
    ]
    top1, mae, score = found.values["original"]
    spread = float(np.abs(dataset.labels["b"] - np.median(dataset.labels["b"])).mean())
    assert score.value == pytest.approx((3 * top1.value + 1 - mae.value / spread) / 4)
    assert found.changes[-1].difference == 0
    assert [f.output for f in found.fidelity] == ["a", "b"]
    assert accuracy.score(two, dataset, specs) == pytest.approx((3 * 0.9 + 1) / 4, abs=1e-6)


def test_score_of_an_error_is_relative_to_the_labels() -> None:
    x = np.random.default_rng(0).standard_normal((200, 1)).astype(np.float32)
    dataset = Arrays({"x": x}, {"labels": np.zeros(200) + x[:, 0].astype(float)})
    zero = builders.linear(np.zeros((1, 1), np.float32))
    specs = [AccuracySpec(metric="rmse")]
    assert accuracy.score(builders.identity("N, 1"), dataset, specs) == pytest.approx(1)
    assert accuracy.score(zero, dataset, specs) == pytest.approx(0, abs=0.01)


def test_fixed_batch_models_get_full_batches() -> None:
    fixed = builders.identity("8, 4")
    found = accuracy.evaluate({"original": fixed, "compressed": SAME}, data(n=60))
    assert found.values["original"][0].n == 60
    assert found.values["original"][0].value == 0.9
    assert found.fidelity[0].n == 60


def test_outputs_are_matched_by_position_when_names_differ() -> None:
    renamed = builders.model("g (float[N, 4] x) => (float[N, 4] other) { other = Identity (x) }")
    found = accuracy.evaluate({"original": SAME, "compressed": renamed}, data())
    assert found.fidelity[0].agreement == 1


def test_nan_outputs_name_output_and_sample() -> None:
    root = builders.identity("N, 4", "y = Sqrt (x)")
    dataset = data()
    dataset.feeds["x"][40, 2] = -1
    with pytest.raises(MeasurementError, match="output `y` of `compressed` contains NaN at sample 40") as caught:
        accuracy.evaluate({"original": SAME, "compressed": root}, dataset)
    assert caught.value.code == "measure.nan"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.feeds.update(x=d.feeds["x"][:, ::-1] * 0 + np.eye(4, dtype=np.float32)[2]),
            "predicts class 2 for all",
        ),
        (lambda d: d.feeds.update(x=np.roll(d.feeds["x"], 1, axis=1)), "shifted by"),
        (lambda d: d.feeds.update(x=np.random.default_rng(4).random((60, 4)).astype(np.float32)), "near chance"),
    ],
)
def test_implausible_float_accuracy_is_pointed_out(change: Any, message: str) -> None:
    dataset = data(wrong=0)
    change(dataset)
    found = accuracy.evaluate({"original": SAME}, dataset)
    assert len(found.warnings) == 1
    assert message in found.warnings[0]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (AccuracySpec(metric="top1", output="yy"), RecipeError, "no output `yy`"),
        (AccuracySpec(metric="top1", labels="label"), RecipeError, "no labels `label`"),
        (AccuracySpec(metric="python", function="nothing.py:f"), RecipeError, "no file"),
        (AccuracySpec(metric="python"), RecipeError, "needs `function"),
        (AccuracySpec(metric="mae"), DataError, "do not fit"),
    ],
)
def test_specs_that_do_not_fit(spec: AccuracySpec, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        accuracy.evaluate({"original": SAME}, data(), [spec], base=tmp_path, allow_code=True)


def test_labels_out_of_range_and_missing() -> None:
    dataset = data()
    dataset = Arrays(dataset.feeds, dataset.labels["labels"] + 1)
    with pytest.raises(DataError, match="label 4 is none"):
        accuracy.evaluate({"original": SAME}, dataset)
    dataset = Arrays(dataset.feeds)
    with pytest.raises(DataError, match="needs labels"):
        accuracy.evaluate({"original": SAME}, dataset, [AccuracySpec(metric="top1")])
    with pytest.raises(DataError, match="has no labels"):
        accuracy.score(SAME, dataset)


def test_undefined_metrics_are_errors() -> None:
    dataset = Arrays({"x": np.ones((9, 1), np.float32)}, {"labels": np.full(9, 1.5)})
    with pytest.raises(MeasurementError, match="not defined"):
        accuracy.evaluate({"original": builders.identity("N, 1")}, dataset, [AccuracySpec(metric="spearman")])


def test_confusions_are_ranked_by_change() -> None:
    found = accuracy.evaluate({"original": SAME, "compressed": SWAPPED}, data(wrong=1))
    pairs = {(c.label, c.predicted): (c.original, c.compressed) for c in found.confusions}
    assert pairs == {("1", "0"): (0, 15), ("0", "1"): (1, 14)}
    assert (found.confusions[0].label, found.confusions[0].predicted) == ("1", "0")


def test_agreement_of_images_is_by_position() -> None:
    scores = np.random.default_rng(0).standard_normal((6, 3, 2, 2)).astype(np.float32)
    dataset = Arrays({"x": scores}, {"labels": scores.argmax(axis=1)})
    same = builders.identity("N, 3, 2, 2")
    swapped = builders.model(
        "g (float[N, 3, 2, 2] x) => (float[N, 3, 2, 2] y) { y = Gather <axis = 1> (x, order) }",
        order=np.array([1, 0, 2]),
    )
    found = accuracy.evaluate({"original": same, "compressed": swapped}, dataset)
    assert found.values["original"][0].value == 1
    assert found.fidelity[0].agreement == pytest.approx((scores.argmax(axis=1) == 2).mean())
    assert found.flips_total == 0


def test_embeddings_against_the_original() -> None:
    generator = np.random.default_rng(0)
    dataset = Arrays({"x": generator.standard_normal((9, 4)).astype(np.float32)})
    found = accuracy.evaluate({"original": SAME, "compressed": SWAPPED}, dataset)
    x = dataset.feeds["x"]
    expected = ((x * x[:, [1, 0, 2, 3]]).sum(axis=1) / (x * x).sum(axis=1)).mean()
    assert found.fidelity[0].cosine == pytest.approx(expected, abs=1e-5)


def test_outputs_that_change_shape_are_disagreement() -> None:
    """A detector that finds another number of boxes."""
    boxes = builders.model("g (float[N, 4] x) => (int64[2, M] y) { y = NonZero (x) }")
    more = builders.model(
        "g (float[N, 4] x) => (int64[2, M] y) { z = Add (x, one) y = NonZero (z) }", one=np.float32(1)
    )
    dataset = Arrays({"x": np.eye(4, dtype=np.float32)[np.arange(8) % 4]})
    found = accuracy.evaluate({"original": boxes, "compressed": more}, dataset)
    assert found.fidelity[0].agreement == 0
    assert "another shape" in found.warnings[0]
    assert found.fidelity[0].sqnr_db is None


def test_a_background_class_is_noticed() -> None:
    dataset = data(wrong=0, classes=3)
    dataset = Arrays({"x": np.pad(dataset.feeds["x"], ((0, 0), (1, 0)))}, dataset.labels)
    (warning,) = accuracy.evaluate({"original": SAME}, dataset).warnings
    assert "`label_offset: 1`" in warning


def test_outputs_that_steps_made_are_measured_alone_and_compared_with_nothing() -> None:
    """`z` is new and `y` another one than the original's, which would not even take its labels."""
    weight = np.eye(4, dtype=np.float32)[:, [0, 1]] - np.eye(4, dtype=np.float32)[:, [2, 3]]
    text = """g (float[N, 4] x) => (float[N, 4] k, float[N, 2] y, float[N, 4] z)
        { k = Identity (x) y = MatMul (x, w) z = Neg (x) }"""
    before = builders.model("g (float[N, 4] x) => (float[N, 4] k, float[N, 4] y) { k = Neg (x) y = Identity (x) }")
    samples = data()
    samples = Arrays(samples.feeds, {"y": samples.labels["labels"] % 4 // 2, "all": samples.labels["labels"]})
    specs = [AccuracySpec(metric="top1", output=output, labels=labels) for output, labels in
             (("k", "all"), ("y", "y"), ("z", "all"))]  # fmt: skip
    arms = {"original": before, "compressed": builders.model(text, w=weight), "between": before}
    found = accuracy.evaluate(arms, samples, specs, new={"compressed": ("y", "z")})
    scores, labels = samples.feeds["x"], samples.labels
    wanted = [
        (scores.argmax(1) == labels["all"]).mean(),
        ((scores @ weight).argmax(1) == labels["y"]).mean(),
        (scores.argmin(1) == labels["all"]).mean(),
    ]
    assert [(one.output, one.value) for one in found.values["compressed"]] == list(zip("kyz", wanted, strict=True))
    for arm in ("original", "between"):
        assert [(one.output, one.value) for one in found.values[arm]] == [("k", wanted[2])]
    assert [(one.variant, one.output) for one in found.changes] == [("compressed", "k"), ("between", "k")]
    assert [(one.variant, one.output) for one in found.fidelity] == [("compressed", "k"), ("between", "k")]
    assert found.changes[0].difference == pytest.approx(wanted[0] - wanted[2])
    assert [w for w in found.warnings if "new" in w] == [
        f"new output `{name}`: nothing to compare with" for name in ("y", "z")
    ]


def test_new_outputs_decide_nothing_without_labels() -> None:
    both = builders.model("g (float[N, 4] x) => (float[N, 4] z, float[N, 4] y) { z = Neg (x) y = Identity (x) }")
    samples = Arrays(data().feeds)
    found = accuracy.evaluate({"original": both, "compressed": both}, samples, new={"compressed": ("z",)})
    assert [one.output for one in found.fidelity] == ["y"]
    assert found.flips_total == 0
