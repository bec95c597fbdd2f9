"""JSON Schema of the recipe, the budget and the report, for editors and for tools that read reports."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from lepton_cli import units
from lepton_cli.recipe.schema import Budget, Recipe

SchemaName = Literal["recipe", "budget", "report"]


class _Generator(GenerateJsonSchema):
    """Writes the defaults of values with units as a file would."""

    def encode_default(self, dft: Any) -> Any:
        return super().encode_default(units.write(dft))


def step_schema(params: type[BaseModel]) -> dict[str, Any]:
    """The schema of one step's options."""
    return params.model_json_schema(schema_generator=_Generator)


def json_schema(name: SchemaName) -> dict[str, Any]:
    """The schema as JSON data, draft 2020-12."""
    schema = _model(name).model_json_schema(
        schema_generator=_Generator, mode="serialization" if name == "report" else "validation"
    )
    for definition in schema.get("$defs", {}).values():
        # Editors show the title.
        step = definition.get("properties", {}).get("step", {}).get("const")
        if step:
            definition["title"] = f"step {step}"
    return {
        "$schema": _Generator.schema_dialect,
        "$id": f"urn:lepton:schema:{name}",
        **schema,
        "title": f"lepton {name}",
    }


def _model(name: SchemaName) -> type[BaseModel]:
    if name == "report":
        from lepton_cli.report.model import Report

        return Report
    return Recipe if name == "recipe" else Budget
