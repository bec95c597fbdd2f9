"""Whatever text stands in a recipe or behind `--set`: a recipe or a RecipeError, nothing else."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_cli.errors import Place, RecipeError
from lepton_cli.recipe import overrides
from lepton_cli.recipe.load import from_dict, load_recipe
from lepton_cli.recipe.yaml import read
from lepton_cli.units import Share

PIECES = [
    *(
        "version: 1\n",
        "steps:\n",
        "  - step: simplify\n",
        "- ",
        "? ",
        ": ",
        "a: ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "&a ",
        "*a",
    ),
    *("<<: ", "!!int ", "!!python/object:os.system ", "!<tag:x> ", "|", ">-\n", "'", '"', "\\x00", "\t", "\n", "  "),
    *("---\n", "...\n", "%YAML 1.2\n", "# ", "~", "1e400", ".nan", "60 %", "1 MB", "9" * 40),
    *("\ufeff", "\u2028", "\x85", "é", "💡", "\x00", "\ud800"),
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["60 %", "1 MB", "5 ms", "1/255", "top1", "simplify", "fuse", "cpu", "2:4", "size.file"]),
)  # fmt: skip
WORDS = """version name seed data steps evaluate gates output step target macs include exclude metric max max_drop
provider batch calibration evaluation path inputs preprocess scale resize latency providers accuracy reports"""
KEYS = st.one_of(st.text(max_size=5), st.sampled_from(WORDS.split()))
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20
)
FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(error, placed=False):
    assert error.code.startswith("recipe.")
    assert error.message
    assert error.message.isprintable()
    assert isinstance(error.where, Place) or not placed
    if isinstance(error.where, Place):
        assert error.where.line >= 1
        assert error.where.column >= 1
        assert error.where.length >= 1


@FEW
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join)))
def test_texts(text):
    try:
        read(text, "r").plain()
    except RecipeError as error:
        check(error)


@FEW
@given(st.data())
def test_damaged_recipes(write, complete, data):
    start = data.draw(st.integers(0, len(complete)))
    end = data.draw(st.integers(start, min(len(complete), start + 20)))
    text = complete[:start] + data.draw(st.sampled_from(PIECES)) + complete[end:]
    try:
        load_recipe(write(text=text.encode("utf-8", "surrogatepass")))
    except RecipeError as error:
        check(error, placed=True)


@FEW
@given(st.binary(max_size=200))
def test_bytes(write, data):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text=data))
    check(caught.value)


@FEW
@given(TREES)
def test_data_made_in_code(tree):
    try:
        loaded = from_dict(tree, "code")
    except RecipeError as error:
        check(error)
    else:
        assert from_dict(loaded.resolved()).recipe == loaded.recipe


@FEW
@given(st.data())
def test_values_in_a_good_recipe(complete, data):
    recipe = read(complete, "r").plain()
    parent, key = recipe, data.draw(st.sampled_from(sorted(recipe)))
    while isinstance(parent[key], (dict, tuple)) and parent[key] and data.draw(st.booleans()):
        inner = list(parent[key]) if isinstance(parent[key], tuple) else parent[key]
        parent[key] = inner
        parent, key = inner, data.draw(st.sampled_from(range(len(inner)) if isinstance(inner, list) else sorted(inner)))
    parent[key] = data.draw(TREES)
    try:
        loaded = from_dict(recipe, "code")
    except RecipeError as error:
        check(error)
    else:
        assert from_dict(loaded.resolved()).recipe == loaded.recipe


@FEW
@given(
    st.lists(
        st.sampled_from(
            [
                *("steps", "gates", "0", "1", "9", "step", "target", "prune.channels", "seed", "data", "..", "a"),
                "",
                "é",
                "\x1b",
            ]
        ),
        max_size=6,
    ),
    st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES), max_size=6).map("".join)),
    st.sampled_from(["=", "", "=="]),
)
def test_overrides(complete, path, value, equals):
    root = read(complete, "r")
    try:
        from_dict(overrides.apply(root, [".".join(path) + equals + value]).plain())
    except RecipeError as error:
        check(error)


@FEW
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=200), max_size=3), st.floats(0, 1e9), st.floats(0, 1))
def test_resolved_recipes_read_back(texts, number, share):
    steps = [
        {"step": "simplify", "exclude": texts},
        {"step": "prune.weights", "threshold": number, "sparsity": Share(share)},
    ]
    loaded = from_dict({"version": 1, "steps": steps})
    again = from_dict(read(loaded.resolved_yaml(), "resolved").plain())
    assert again.recipe == loaded.recipe
    assert again.sha256 == loaded.sha256


def test_data_without_end_is_refused():
    data = {"version": 1}
    data["steps"] = [data]
    with pytest.raises(RecipeError, match="50 levels"):
        from_dict(data)
