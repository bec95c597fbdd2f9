"""The JSON Schemas: no warnings, every reference resolves, and they describe what the loader takes."""

import json
import re
from pathlib import Path

import pytest

from lepton_cli.recipe.load import load_budget, load_recipe
from lepton_cli.recipe.yaml import read
from lepton_cli.schema import json_schema
from lepton_cli.steps import STEPS

CONFIGS = Path(__file__).parents[2] / "configs"


def accepts(schema, value, root):
    """Whether `value` fits: the part of JSON Schema that pydantic writes for our types."""
    if "$ref" in schema:
        return accepts(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root)
    for word, count in (("anyOf", any), ("oneOf", lambda found: sum(found) == 1)):
        if word in schema and not count([accepts(option, value, root) for option in schema[word]]):
            return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = {
        "object": dict, "array": list, "string": str, "integer": int,
        "number": (int, float), "boolean": bool, "null": type(None),
    }  # fmt: skip
    if "type" in schema:
        if not isinstance(value, kinds[schema["type"]]):
            return False
        if isinstance(value, bool) and schema["type"] in ("integer", "number"):
            return False
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    if isinstance(value, (int, float)) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    if isinstance(value, dict) and schema.get("type") == "object":
        return accepts_mapping(schema, value, root)
    if isinstance(value, list) and schema.get("type") == "array":
        return accepts_list(schema, value, root)
    return True


def accepts_mapping(schema, value, root):
    known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    if not set(schema.get("required", ())) <= set(value):
        return False
    return all(
        accepts(known[key], child, root) if key in known else rest is True or (rest and accepts(rest, child, root))
        for key, child in value.items()
    )


def accepts_list(schema, value, root):
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return False
    first = schema.get("prefixItems", [])
    return all(
        accepts(first[i] if i < len(first) else schema.get("items", {}), child, root) for i, child in enumerate(value)
    )


def references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


@pytest.mark.parametrize("name", ["recipe", "budget", "report"])
def test_schemas_are_plain_json_and_closed(name):
    schema = json_schema(name)
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:lepton:schema:{name}"
    assert {reference.removeprefix("#/$defs/") for reference in references(schema)} <= set(schema["$defs"])


def test_every_step_is_told_apart_by_its_name():
    schema = json_schema("recipe")
    steps = schema["properties"]["steps"]["items"]
    assert set(steps["discriminator"]["mapping"]) == set(STEPS)
    for name, reference in steps["discriminator"]["mapping"].items():
        definition = schema["$defs"][reference.removeprefix("#/$defs/")]
        assert definition["properties"]["step"]["const"] == name
        assert definition["title"] == f"step {name}"
        assert "step" in definition["required"]
        assert definition["additionalProperties"] is False


def test_defaults_with_units_are_written_as_in_a_file():
    latency = json_schema("recipe")["$defs"]["LatencySpec"]["properties"]
    assert latency["precision"]["default"] == "2 %"
    assert latency["time"]["default"] == "10 s"


def test_the_schema_takes_what_the_loader_takes(load, write):
    recipe = json_schema("recipe")
    loaded = load()
    written = json.loads(json.dumps(loaded.source.root.plain()))
    assert accepts(recipe, written, recipe)
    assert accepts(recipe, loaded.resolved(), recipe)
    budget = json_schema("budget")
    text = "version: 1\ngates:\n  - {metric: accuracy.top7, max_drop: 1 pp}\n"
    assert accepts(budget, load_budget(write(text=text)).resolved(), budget)
    assert not accepts(budget, loaded.resolved(), budget)


def test_training_data_fit_the_schema_as_they_are_written_and_as_they_are_resolved(write):
    recipe = json_schema("recipe")
    text = (
        "version: 1\ndata:\n  training:\n    path: a.npz\n    holdout: 5 %\n    augment: [{flip: both}, "
        "{crop: {pad: 4}}, {crop: {random: [1/4, 1]}}, {colour: {contrast: 0.2}}, {noise: 0.1}, {shift: 5 %}, "
        "{drop_tokens: 10 %}, {drop_tokens: {share: 10 %, token: 103}}, {mixup: 0.2}]\nsteps: [{step: simplify}]\n"
    )
    loaded = load_recipe(write(text=text))
    assert accepts(recipe, json.loads(json.dumps(loaded.source.root.plain())), recipe)
    assert accepts(recipe, loaded.resolved(), recipe)
    again = load_recipe(write(text=loaded.resolved_yaml()))
    assert again.recipe == loaded.recipe


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_bundled_files_fit_the_loader_and_the_schema(path):
    written = json.loads(json.dumps(read(path.read_text(encoding="utf-8"), path.name).plain()))
    name = "recipe" if written.keys() & {"steps", "tune"} else "budget"
    loaded = load_recipe(path) if name == "recipe" else load_budget(path)
    schema = json_schema(name)
    assert accepts(schema, written, schema)
    assert accepts(schema, loaded.resolved(), schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 2),
        (("seed",), -1),
        (("sed",), 1),
        (("steps",), []),
        (("steps", 0, "step"), "simplfy"),
        (("steps", 0, "foo"), 1),
        (("steps", 1, "target", "macs"), 60),
        (("steps", 1, "target", "macs"), "60"),
        (("evaluate", "latency", "batch"), [0]),
        (("evaluate", "latency", "time"), "5"),
        (("gates", 0, "metric"), "size.fil"),
        (("data", "evaluation", "preprocess", "scale"), "1/x"),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(load, path, value):
    schema = json_schema("recipe")
    data = load().resolved()
    parent = data
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1]] = value
    assert not accepts(schema, data, schema)
