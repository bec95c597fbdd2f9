"""The tree of a YAML text: values, places, and an error with a place for all that is wrong."""

import pytest
import yaml

from lepton_cli.errors import RecipeError
from lepton_cli.recipe import yaml as reader


def read(text):
    return reader.read(text, "r.yaml")


def failure(text):
    with pytest.raises(RecipeError) as caught:
        read(text)
    return caught.value


def test_values():
    text = """\
a: no
b: 12:30
c: 1e-3
d: 'null'
e: [1, ~, "x"]
f: |
  two
  lines
1: one
no: two
null: three
"""
    assert read(text).plain() == {
        "a": "no",
        "b": "12:30",
        "c": 0.001,
        "d": "null",
        "e": (1, None, "x"),
        "f": "two\nlines\n",
        "1": "one",
        "no": "two",
        "null": "three",
    }


def test_tags_of_the_core_schema():
    assert read("{a: !!str 5, b: !!int 5, c: !!float 5, d: ! 5, e: !!seq [], f: !!map {}}").plain() == {
        "a": "5",
        "b": 5,
        "c": 5,
        "d": "5",
        "e": (),
        "f": {},
    }


def test_anchors_and_merge_keys():
    tree = read(
        "base: &b {x: 1, y: 2}\nmore: &m {z: 3, y: 9}\n"
        "one: {<<: *b, y: 5}\ntwo: {<<: [*b, *m]}\nsame: *b\nquoted: {'<<': 1}\n"
    )
    assert tree.plain()["one"] == {"x": 1, "y": 5}
    assert tree.plain()["two"] == {"x": 1, "y": 2, "z": 3}
    assert tree.plain()["same"] == {"x": 1, "y": 2}
    assert tree.plain()["quoted"] == {"<<": 1}


def test_a_merged_key_is_placed_where_it_is_written():
    tree = read("base: &b {x: 1}\none: {<<: *b}\n")
    assert str(tree.value["one"].keys["x"]) == "r.yaml:1:11"


def test_places():
    tree = read("a:\n  - bc: def\n    g: [1, 22]\n")
    item = tree.value["a"].value[0]
    assert str(tree.keys["a"]) == "r.yaml:1:1"
    assert str(item.place) == "r.yaml:2:5"
    assert str(item.value["bc"].place) == "r.yaml:2:9"
    assert item.value["bc"].place.length == 3
    assert item.value["bc"].place.source == "  - bc: def"
    assert str(item.value["g"].value[1].place) == "r.yaml:3:12"
    assert item.value["g"].value[1].place.length == 2


def test_places_behind_wide_characters_and_other_line_breaks():
    tree = read("é: ü\r\n𝔸𝔹: [💡, x]\r\n")
    assert str(tree.value["𝔸𝔹"].value[1].place) == "r.yaml:2:9"


@pytest.mark.parametrize(
    ("text", "code", "place", "said"),
    [
        ("a: 1\nb: 2\na: 3", "recipe.duplicate-key", "r.yaml:3:1", "`a` is given twice"),
        ("a: !!python/object:os.system {}", "recipe.tag", "r.yaml:1:4", "!!python/object"),
        ("a: !x 1", "recipe.tag", "r.yaml:1:4", "`!x` is not allowed"),
        ("!!set {a: 1}", "recipe.tag", "r.yaml:1:1", "not allowed"),
        ("a: !!int x", "recipe.wrong-value", "r.yaml:1:4", "not a YAML int"),
        ("a: 1\n---\nb: 2", "recipe.documents", "r.yaml:2:1", "second YAML document"),
        ("", "recipe.empty", "r.yaml:1:1", "nothing"),
        ("# only a comment\n", "recipe.empty", "r.yaml:1:1", "nothing"),
        ("a: &x [*x]", "recipe.alias", "r.yaml:1:8", "contains itself"),
        ("a: &x {b: *x}", "recipe.alias", "r.yaml:1:11", "contains itself"),
        ("a: *x", "recipe.alias", "r.yaml:1:4", "not defined"),
        ("a: *", "recipe.syntax", "r.yaml:1:5", "alias"),
        ("a:\n\tb: 1", "recipe.syntax", "r.yaml:2:1", "a tab"),
        ("a: [1, 2", "recipe.syntax", "r.yaml:1:4", "not closed"),
        ("a: {b: 1", "recipe.syntax", "r.yaml:1:4", "not closed"),
        ("a: 'x", "recipe.syntax", "r.yaml:1:", "not closed"),
        ("a: b: c", "recipe.syntax", "r.yaml:1:5", "a `:`"),
        ("a: %x", "recipe.syntax", "r.yaml:1:4", "needs quotes"),
        ("a: @x", "recipe.syntax", "r.yaml:1:4", "needs quotes"),
        ("a:\n  b: 1\n c: 1", "recipe.syntax", "r.yaml:3:", "indentation"),
        ("- a\nb: 1", "recipe.syntax", "r.yaml:2:1", "indentation"),
        ("a: - b", "recipe.syntax", "r.yaml:1:4", "list item"),
        ("}", "recipe.syntax", "r.yaml:1:1", "not valid YAML"),
        ("a: 1\n? [b]\n: 2", "recipe.syntax", "r.yaml:2:3", "simple word"),
        ("<<: 3", "recipe.syntax", "r.yaml:1:1", "merges mappings"),
        ("a: b\x00", "recipe.encoding", "r.yaml:1:5", "U+0000"),
        ("a: 1\nb: \ud800", "recipe.encoding", "r.yaml:2:4", "U+D800"),
        ("a: .inf", "recipe.wrong-value", "r.yaml:1:4", "finite"),
        ("a: 1e400", "recipe.wrong-value", "r.yaml:1:4", "too large"),
        ("[" * 100_000, "recipe.nesting", "r.yaml:1:", "50 levels"),
        ("[" * 60 + "]" * 60, "recipe.nesting", "r.yaml:1:52", "50 levels"),
        ("{a: " * 100_000, "recipe.nesting", "r.yaml:1:", "50 levels"),
        ("- " * 100_000, "recipe.nesting", "r.yaml:1:", "50 levels"),
        ("? " * 1000, "recipe.syntax", "r.yaml:1:", "simple word"),
    ],
)
def test_errors(text, code, place, said):
    error = failure(text)
    assert error.code == code
    assert str(error.where).startswith(place)
    assert said in error.message


def test_duplicate_keys_name_both_places():
    assert failure("a: 1\nb: {c: 1,\n  c: 2}").note == "first at r.yaml:2:5"


def test_alias_bombs_are_stopped():
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    error = failure(text)
    assert error.code == "recipe.too-large"
    assert str(error.where) == "r.yaml:6:5"


def test_aliases_cannot_nest_without_end():
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 80))
    assert failure(text).code == "recipe.nesting"


def test_long_lines_are_not_shown():
    assert failure("a: " + "x" * 1000 + "\na: 1\nb: [" + "y" * 1000 + ", *z]").where.source == "a: 1"
    assert failure("b: [" + "y" * 1000 + ", *z]").where.source == ""


def test_decoding():
    assert reader.decode(b"\xef\xbb\xbfa: 1", "f") == "a: 1"
    for data, place in (
        (b"a: 1\nb: \xff", "f:2:4"),
        ("a".encode("utf-16"), "f:1:1"),
        (b"\x08\x07\x12\xffpytorch", "f:1:4"),
    ):
        with pytest.raises(RecipeError) as caught:
            reader.decode(data, "f")
        assert caught.value.code == "recipe.encoding"
        assert str(caught.value.where) == place
    with pytest.raises(RecipeError, match="larger than 1 MB"):
        reader.decode(b"#" * (reader.MAX_BYTES + 1), "f")


def test_the_parser_written_in_python_gives_the_same(monkeypatch):
    text = "a: &x {b: [1, no, 'c d']}\ne: *x\n"
    tree = read(text)
    monkeypatch.setattr(reader, "_LOADER", yaml.SafeLoader)
    assert read(text).plain() == tree.plain()
    assert read(text).value["a"].value["b"].value[2].place == tree.value["a"].value["b"].value[2].place
    assert failure("[" * 10_000).code == "recipe.nesting"
    assert failure("a:\n\tb: 1").message == "a tab where YAML wants blanks"
