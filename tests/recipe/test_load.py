"""Loading files: typed recipes, resolved copies that read back equal, and files that are no recipes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_cli import units
from lepton_cli.errors import ExitCode, RecipeError
from lepton_cli.recipe import load as loading
from lepton_cli.recipe.load import from_dict, load_budget, load_recipe
from lepton_cli.recipe.yaml import read

BUDGET = "version: 1\ngates:\n  - {metric: size.file, max: 1 MB}\n"


def test_a_recipe_is_typed(load, tmp_path):
    loaded = load()
    recipe = loaded.recipe
    assert [step.step for step in recipe.steps] == ["simplify", "prune.channels", "quantize.static"]
    assert recipe.steps[1].target.macs == 0.6
    assert recipe.steps[1].exclude == ("classifier/*",)
    assert recipe.data.evaluation.preprocess.scale == (1 / 255,)
    assert recipe.data.evaluation.path == "data/test.npz"
    assert [provider.name for provider in recipe.evaluate.latency.providers] == ["cpu", "cuda"]
    assert loaded.base == tmp_path
    assert loaded.path == tmp_path / "recipe.yaml"
    assert loaded.name == "resnet20-int8"


def test_the_resolved_recipe_reads_back_equal(load):
    loaded = load()
    again = load(text=loaded.resolved_yaml())
    assert again.recipe == loaded.recipe
    assert again.sha256 == loaded.sha256
    assert again.resolved_yaml() == loaded.resolved_yaml()
    assert loaded.resolved()["steps"][1]["target"]["macs"] == "60 %"
    assert loaded.resolved()["steps"][1]["min_width"] == "5 %"
    assert loaded.resolved()["gates"][2]["max_ratio"] == "60 %"


@pytest.mark.parametrize(
    "text", ["no", "1e-3", "12:30", "0o17", ".5", "~", "null", "1", "*", "a: b", "# x", "1e400", "", " x ", "ü💡"]
)
def test_texts_that_look_like_something_else_survive_resolving(load, text):
    data = {"version": 1, "steps": [{"step": "simplify", "exclude": [text]}]}
    loaded = from_dict(data)
    assert load(text=loaded.resolved_yaml()).recipe.steps[0].exclude == (text,)


def test_the_hash_depends_on_meaning_and_not_on_notation(load):
    plain = load()
    assert load(("seed: 3\n", ""), ("name: res", "seed: 3\nname: res")).sha256 == plain.sha256
    assert load(("[1, 32]", "[ 0x1, 32 ]"), ("seed: 3", "seed: 3  # comment")).sha256 == plain.sha256
    assert load(("seed: 3", "seed: 4")).sha256 != plain.sha256
    assert len(plain.sha256) == len(hashlib.sha256().hexdigest())


def test_the_name_of_a_recipe_without_name_is_the_file_s(write):
    path = write(("name: resnet20-int8\n", ""))
    assert load_recipe(path).name == "recipe"
    odd = path.rename(path.with_name("my modèle.v2.yaml"))
    assert load_recipe(odd).name == "my-mod-le.v2"
    assert from_dict({"version": 1, "steps": [{"step": "simplify"}]}).name == "compressed"


def test_from_dict():
    loaded = from_dict(
        {"version": 1, "steps": [{"step": "prune.channels", "target": {"macs": units.Share(0.5)}, "recover": ["bias"]}]}
    )
    assert loaded.recipe.steps[0].target.macs == 0.5
    assert loaded.base == Path()
    assert loaded.source.place(("steps", 0)) is None
    with pytest.raises(RecipeError) as caught:
        from_dict({"version": 1, "steps": [{"step": "fuse", "x": 1}]}, "the default recipe")
    assert caught.value.where == "the default recipe"
    assert caught.value.option == ("steps", 0, "x")


def test_budgets(write):
    path = write(text=BUDGET)
    loaded = load_budget(path)
    assert loaded.budget.gates[0].limit == 1_000_000
    assert str(loaded.source.place(("gates", 0, "max"))) == f"{path}:3:30"
    assert load_budget(write(text=loaded.resolved_yaml())).budget == loaded.budget


def test_what_is_too_long_for_a_line_is_written_below_each_other():
    many = {f"/stages/stages.{index}/conv/Conv": index for index in range(9)}
    text = loading.write({"few": {"a": 1, "b": [2, 3]}, "short": {"a": 1}, "widths": many, "names": list(many)})
    assert "short: {a: 1}" in text.splitlines()
    assert "  /stages/stages.8/conv/Conv: 8" in text.splitlines()
    assert "- /stages/stages.8/conv/Conv" in text.splitlines()
    assert read(text, "text").plain()["widths"] == many


def test_a_recipe_is_not_a_budget_and_the_other_way_round(write):
    with pytest.raises(RecipeError, match="a recipe, not a budget") as caught:
        load_budget(write())
    assert caught.value.where.source == "steps:"
    with pytest.raises(RecipeError, match="the recipe has no `steps`") as caught:
        load_recipe(write(text=BUDGET))
    assert "--budget" in caught.value.hint
    with pytest.raises(RecipeError, match="`gates` needs at least 1 item"):
        load_budget(write(text="version: 1\ngates: []"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just text", "a recipe is a mapping"),
        ("- step: simplify", "a recipe is a mapping"),
        (b"\x80\x04\x95", "not UTF-8"),
        (b"\x08\x07\x12\x07pytorch:\x00", "not allowed in YAML"),
        ("", "holds nothing"),
        (b"#" * 10_000_000, "larger than 1 MB"),
    ],
)
def test_files_that_are_no_recipes(load, text, said):
    with pytest.raises(RecipeError, match=said) as caught:
        load(text=text)
    assert caught.value.exit_code is ExitCode.CANNOT_START
    assert caught.value.where is not None


def test_files_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, said in [
        ("missing.yaml", "there is no recipe file"),
        ("", "is a folder"),
        ("fifo", "not a regular file"),
        ("loop", "cannot read"),
        ("x" * 5000, "cannot read"),
        ("nul\x00", "cannot read"),
    ]:
        with pytest.raises(RecipeError, match=said):
            load_recipe(tmp_path / name)


def test_a_large_file_of_errors_is_explained_quickly(load):
    with pytest.raises(RecipeError) as caught:
        load(text="version: 1\nsteps:\n" + "  - {step: simplify, foo: 1}\n" * 20_000)
    assert caught.value.where.line == 3
    assert caught.value.note.count("line") == 3


def test_recipes_are_read_without_heavy_imports(write):
    code = (
        "import sys, pathlib; from lepton_cli import schema\nfrom lepton_cli.recipe import load\n"
        "load.load_recipe(pathlib.Path(sys.argv[1]))\n"
    )
    code += "schema.json_schema('recipe'); schema.json_schema('report')\n"
    code += "print([name for name in ('numpy', 'onnx', 'onnx_ir', 'onnxruntime') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code, str(write())], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
