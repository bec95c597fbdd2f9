"""What is wrong with a recipe, said in plain words, at the right place, with the nearest right word."""

import re

import pytest

from lepton_cli.errors import RecipeError

PYDANTIC = re.compile(
    r"Input should|type=|valid (dictionary|tuple|integer|string)|instance of|discriminator|pydantic|union"
)

CASES = [
    # what is changed, code, underlined text, message, hint
    (
        ("  - step: simplify", "  - step: simplify\n    fold_batchnorm: true"),
        "recipe.unknown-key",
        "fold_batchnorm",
        "step `simplify` has no option `fold_batchnorm`",
        "did you mean `fold_batch_norm`?   all options: lepton steps simplify",
    ),
    (
        ("step: simplify", "step: prune_channels"),
        "recipe.unknown-step",
        "prune_channels",
        "there is no step `prune_channels`",
        "did you mean `prune.channels`?   all steps: lepton steps",
    ),
    (("step: simplify", "step: 3"), "recipe.unknown-step", "3", "there is no step `3`", "steps: simplify, fuse"),
    (
        ("- step: simplify", "- simplify"),
        "recipe.wrong-value",
        "simplify",
        "step 1 is the text `simplify`, not a mapping",
        "write `- step: simplify`",
    ),
    (("- step: simplify", "- 7"), "recipe.wrong-value", "7", "step 1 is `7`, not a mapping", "write `- step: NAME`"),
    (("- step: simplify", "- fuse: {}"), "recipe.missing-key", None, "step 1 has no `step`", "write `- step: fuse`"),
    (("- step: simplify", "- stepp: fuse"), "recipe.missing-key", None, "step 1 has no `step`", "instead of `stepp`"),
    (("- step: simplify", "- {}"), "recipe.missing-key", None, "step 1 has no `step`", "add `step: NAME`"),
    (
        ("60 %}\n", "60}\n"),
        "recipe.unit-missing",
        "60",
        "`target.macs` of step `prune.channels`: `60` has no unit: write for example `60 %` (units: %)",
        None,
    ),
    (
        ("{macs: 60 %}", "{mac: 60 %}"),
        "recipe.unknown-key",
        "mac",
        "`target` of step `prune.channels` has no option `mac`",
        "did you mean `macs`?   known: macs, params, size, latency",
    ),
    (
        ("{macs: 60 %}", "{}"),
        "recipe.wrong-value",
        None,
        "`target` of step `prune.channels`: give macs, params, size or latency",
        None,
    ),
    (
        ("[least_squares, batch_norm]", "least_squares"),
        "recipe.wrong-value",
        "least_squares",
        "`recover` of step `prune.channels` must be a list, not the text `least_squares`",
        "`recover`: ",
    ),
    (
        ("calibration: percentile", "calibration: percentil"),
        "recipe.wrong-value",
        "percentil",
        "`calibration` of step `quantize.static` must be `minmax`, `percentile`, ",
        "did you mean `percentile`?",
    ),
    (
        ("seed: 3", "seed: '3'"),
        "recipe.wrong-value",
        "'3'",
        "`seed` must be a whole number, not the text `3`",
        "write 3 without quotes",
    ),
    (("seed: 3", "seed: true"), "recipe.wrong-value", "true", "`seed` must be a whole number, not `true`", None),
    (("seed: 3", "seed: -1"), "recipe.wrong-value", "-1", "`seed` must be at least 0, not `-1`", None),
    (
        ("seed: 3", "sed: 3"),
        "recipe.unknown-key",
        "sed",
        "the recipe has no option `sed`",
        "did you mean `seed`?   known: version,",
    ),
    (("version: 1", "version: 2"), "recipe.wrong-value", "2", "`version` must be `1`, not `2`", None),
    (("version: 1", "version: true"), "recipe.wrong-value", "true", "`version` must be `1`, not `true`", None),
    (
        ("version: 1\n", ""),
        "recipe.missing-key",
        None,
        "the recipe has no `version`",
        "write `version: 1` in the first line",
    ),
    (
        ("name: resnet20-int8", "name: a/b"),
        "recipe.wrong-value",
        "a/b",
        "`name` cannot be the text `a/b`",
        "letters, digits",
    ),
    (
        ("name: resnet20-int8", "name: 5"),
        "recipe.wrong-value",
        "5",
        "`name` must be a text, not `5`",
        'write "5" in quotes',
    ),
    (
        ("output: {reports: [json, md]}", "output:"),
        "recipe.wrong-value",
        "output",
        "`output` must be a mapping",
        "remove the line",
    ),
    (("[json, md]", "[json, pdf]"), "recipe.wrong-value", "pdf", "`output.reports.1` must be `json`, `md`,", None),
    (("path: data/test.npz, ", ""), "recipe.missing-key", None, "`data.evaluation` has no `path`", "add `path:`"),
    (
        ("samples: 512", "samples: 5.5"),
        "recipe.wrong-value",
        "5.5",
        "`data.calibration.samples` must be a whole number, not `5.5`",
        "`samples`: ",
    ),
    (("scale: 1/255", "scale: 1/0"), "recipe.wrong-value", "1/0", "`1/0` divides by zero", "`scale`: "),
    (
        ("scale: 1/255", "resize: [1, 2, 3]"),
        "recipe.wrong-value",
        None,
        "`data.calibration.preprocess.resize` needs at most 2 items",
        "short side",
    ),
    (
        ("scale: 1/255", "resize: [1]"),
        "recipe.wrong-value",
        None,
        "`data.calibration.preprocess.resize` needs more than 1 item",
        None,
    ),
    (
        ("scale: 1/255", "crop: big"),
        "recipe.wrong-value",
        "big",
        "must be a whole number or a list, not the text `big`",
        "Centre crop",
    ),
    (
        ("optional: true", "optional: yes"),
        "recipe.wrong-value",
        "yes",
        "must be `true` or `false`, not the text `yes`",
        "write `true`",
    ),
    (
        ("batch: [1, 32]", "batch: 0"),
        "recipe.wrong-value",
        "0",
        "`evaluate.latency.batch` must be at least 1, not `0`",
        "Batch sizes",
    ),
    (
        ("batch: [1, 32]", "batches: 1"),
        "recipe.unknown-key",
        "batches",
        "`evaluate.latency` has no option `batches`",
        "did you mean `batch`?",
    ),
    (
        ("latency: {providers: [cpu, {name: cuda, optional: true}], batch: [1, 32], threads: 2}", "latency: fals"),
        "recipe.wrong-value",
        "fals",
        "`evaluate.latency` must be a mapping (`option: value`) or `false`, not the text `fals`",
        "did you mean `false`?",
    ),
    (
        ("threads: 2", "time: 5"),
        "recipe.unit-missing",
        "5",
        "`evaluate.latency.time`: `5` has no unit: write for example `20 ms`",
        None,
    ),
    (
        ("max: 1 MB", "max: 1000000"),
        "recipe.unit-missing",
        "1000000",
        "`max` of gate `size.file`: `1000000` has no unit",
        None,
    ),
    (
        ("metric: size.file", "metric: size.fil"),
        "recipe.unknown-metric",
        "size.fil",
        "there is no metric `size.fil`",
        "did you mean `size.file`?",
    ),
    (
        ("max: 1 MB", "maxx: 1 MB"),
        "recipe.unknown-key",
        "maxx",
        "gate `size.file` has no option `maxx`",
        "did you mean `max`?",
    ),
    (("max: 1 MB", "level: warn"), "recipe.wrong-value", None, "gate `size.file`: give exactly one of max, min,", None),
    (
        ("max: 1 MB", "max: 1 MB, provider: cpu"),
        "recipe.wrong-value",
        "provider",
        "a gate on `size.file` takes neither",
        None,
    ),
    (("max_drop: 0.5", "max_increase: 0.5"), "recipe.wrong-value", "max_increase", "so write `max_drop`", None),
]


@pytest.mark.parametrize(
    ("change", "code", "underlined", "message", "hint"), CASES, ids=[f"{case[0][1][:30]!r}" for case in CASES]
)
def test_one_mistake(load, change, code, underlined, message, hint):
    with pytest.raises(RecipeError) as caught:
        load(change)
    error = caught.value
    assert error.code == code
    assert message in error.message
    assert hint is None or hint in (error.hint or "")
    place = error.where
    assert place.source.splitlines() == [place.source]
    if underlined is not None:
        assert place.source[place.column - 1 :][: place.length] == underlined
    assert not PYDANTIC.search(" ".join(filter(None, (error.message, error.hint, error.note))))


def test_the_first_mistake_is_shown_and_the_others_are_named(load):
    with pytest.raises(RecipeError) as caught:
        load(
            ("seed: 3", "seed: x"),
            ("60 %}\n", "60}\n"),
            ("threads: 2", "thread: 2"),
            ("[json", "[jso"),
            ("max: 1 MB", "max: 1"),
        )
    assert caught.value.message == "`seed` must be a whole number, not the text `x`"
    assert caught.value.note.startswith("also line 14: `target.macs` of step `prune.channels`")
    assert caught.value.note.endswith("; and 1 more")


def test_a_mistake_in_a_shared_part_is_named_once(load):
    with pytest.raises(RecipeError) as caught:
        load(("layout: nchw", "layout: chw"))
    assert caught.value.note is None


def test_the_path_of_the_mistake_is_kept(load):
    with pytest.raises(RecipeError) as caught:
        load(("60 %}\n", "60}\n"))
    assert caught.value.option == ("steps", 1, "target", "macs")


def test_control_characters_are_written_out(load):
    with pytest.raises(RecipeError) as caught:
        load(("step: simplify", 'step: "\\e[31m"'))
    assert caught.value.message == "there is no step `\\x1b[31m`"
    with pytest.raises(RecipeError) as caught:
        load(("seed: 3", '"\\a": 3'))
    assert caught.value.message == "the recipe has no option `\\x07`"
