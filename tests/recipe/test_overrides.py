"""`--set`: what it can change, and errors that show the override."""

import pytest

from lepton_cli.errors import RecipeError


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("seed=7", lambda r: r.seed, 7),
        ("steps.1.target.macs=50%", lambda r: r.steps[1].target.macs, 0.5),
        ("steps.prune.channels.target.macs=40 %", lambda r: r.steps[1].target.macs, 0.4),
        ("steps.simplify.if_possible=true", lambda r: r.steps[0].if_possible, True),
        ("steps.0.exclude=[a, 'b*']", lambda r: r.steps[0].exclude, ("a", "b*")),
        ("steps.1.exclude.0=x", lambda r: r.steps[1].exclude, ("x",)),
        ("steps.2.accuracy_guard.max_drop=1 pp", lambda r: r.steps[2].accuracy_guard.max_drop, 0.01),
        ("gates.size.file.max=2MB", lambda r: r.gates[0].limit, 2e6),
        ("evaluate.cost.per_hour=0.40 USD", lambda r: r.evaluate.cost.per_hour, "0.40 USD"),
        ("evaluate.memory=false", lambda r: r.evaluate.memory, False),
        ("data.evaluation=null", lambda r: r.data.evaluation, None),
        ("data.evaluation=", lambda r: r.data.evaluation, None),
        ("data.calibration.path=a=b.npz", lambda r: r.data.calibration.path, "a=b.npz"),
        ("data.evaluation.labels=no", lambda r: r.data.evaluation.labels, "no"),
        ("output={reports: [md]}", lambda r: r.output.reports, ("md",)),
        ("steps=[{step: fuse}]", lambda r: r.steps[0].step, "fuse"),
    ],
)
def test_changes(load, override, get, value):
    assert get(load(overrides=[override]).recipe) == value


def test_overrides_apply_in_order(load):
    assert load(overrides=["seed=1", "evaluate.latency=null", "evaluate.latency.threads=1", "seed=2"]).recipe.seed == 2


def test_a_key_with_dots_is_found(load):
    loaded = load(("{image: images}", "{input.1: images}"), overrides=["data.calibration.inputs.input.1=x"])
    assert loaded.recipe.data.calibration.inputs == {"input.1": "x"}


def test_parts_shared_by_an_alias_are_changed_in_one_place_only(load):
    recipe = load(overrides=["data.evaluation.preprocess.layout=nhwc"]).recipe
    assert (recipe.data.calibration.preprocess.layout, recipe.data.evaluation.preprocess.layout) == ("nchw", "nhwc")


@pytest.mark.parametrize(
    ("override", "column", "length", "said", "hint"),
    [
        ("seed", 1, 4, "KEY=VALUE", "for example"),
        ("=3", 1, 1, "KEY=VALUE", "for example"),
        ("a..b=1", 1, 4, "empty part", None),
        ("steps.9.x=1", 1, 9, "has no item 9: the last is steps.2", None),
        ("steps.-1.x=1", 1, 10, "has no `-1`", "steps.0"),
        ("steps.٣.x=1", 1, 9, "has no `٣`", None),
        ("steps.prune_channels.target=1", 1, 27, "has no `prune_channels`", "did you mean `steps.prune.channels`?"),
        ("seed.x=1", 1, 6, "`seed` is a single value", "--set seed=..."),
        ("steps.0.exclude=[a, b", 17, 5, "not closed", None),
        ("steps.0.exclude=*a", 17, 2, "not defined", "quote it"),
        ("seed=x", 6, 1, "`seed` must be a whole number", None),
        ("steps.1.target.macs=50", 21, 2, "has no unit", None),
        ("sed=1", 1, 3, "has no option `sed`", "did you mean `seed`?"),
        ("steps.1.target.mac=5 %", 1, 18, "has no option `mac`", "did you mean `macs`?"),
        ("steps.1={step: fuse, foo: 1}", 22, 3, "step `fuse` has no option `foo`", None),
        ("seed=!!python/name:os.system", 6, 23, "not allowed", None),
        ("seed=\udcff", 6, 1, "U+DCFF is not allowed", None),
        ("seed=a\nb: 1", 6, 6, "`:`", None),
    ],
)
def test_errors_show_the_override(load, override, column, length, said, hint):
    with pytest.raises(RecipeError) as caught:
        load(overrides=[override])
    error = caught.value
    assert said in error.message
    assert hint is None or hint in error.hint
    assert (error.where.file, error.where.line, error.where.column, error.where.length) == ("--set", 1, column, length)
    assert error.where.source.startswith(override[:4])


def test_a_step_that_occurs_twice_needs_its_position(load):
    with pytest.raises(RecipeError, match="`simplify` occurs 2 times") as caught:
        load(
            ("  - step: quantize.static", "  - step: simplify\n  - step: quantize.static"),
            overrides=["steps.simplify.include=[a]"],
        )
    assert caught.value.hint == "one of: steps.0, steps.2"


def test_limits(load):
    for override in ("a." * 60 + "a=1", "x=" + "y" * 20_000, "x=" + "[" * 60):
        with pytest.raises(RecipeError) as caught:
            load(overrides=[override])
        assert caught.value.where.file == "--set"
