"""`lepton steps`: what a recipe can ask for."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lepton_cli.cli import options
from lepton_cli.cli.boundary import boundary


def _complete(incomplete: str) -> list[str]:
    from lepton_cli.steps import STEPS

    return [name for name in STEPS if name.startswith(incomplete)]


@boundary
def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show the options of this step.", autocompletion=_complete)
    ] = None,
    json_output: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """List the steps of a recipe, or the options of one."""
    import difflib
    import json

    from lepton_cli.cli.console import make_console, plain_table
    from lepton_cli.errors import UsageError
    from lepton_cli.schema import step_schema
    from lepton_cli.steps import STEPS

    if name is not None and name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, n=1)
        raise UsageError(
            "usage.unknown-step",
            f"there is no step `{name}`",
            hint=f"did you mean `{near[0]}`?" if near else "lepton steps",
        )
    chosen = {name: STEPS[name]} if name is not None else STEPS
    if json_output:
        listed = {key: step_schema(step.options) for key, step in chosen.items()}
        typer.echo(json.dumps(listed, indent=2))
        return
    console = make_console()
    if name is None:
        console.print(
            plain_table([("step", "left"), ("does", "left")], [[key, step.summary] for key, step in chosen.items()])
        )
        console.print("\noptions of one step: lepton steps NAME")
        return
    step = STEPS[name]
    console.print(" ".join((step.options.__doc__ or "").split()) + "\n")
    schema = step_schema(step.options)
    rows = [
        [key, _kind(field, schema), _default(key, field, schema), field.get("description", "")]
        for key, field in schema["properties"].items()
        if key != "step"
    ]
    console.print(plain_table([("option", "left"), ("value", "left"), ("default", "left"), ("", "left")], rows))


def _kind(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """A field's type in words of a recipe."""
    if "$ref" in field:
        target = schema["$defs"][field["$ref"].rsplit("/", 1)[1]]
        return (
            "{" + ", ".join(f"{key}: {_kind(part, schema)}" for key, part in target.get("properties", {}).items()) + "}"
        )
    if "const" in field:
        return str(field["const"]).lower()
    if "enum" in field:
        return " | ".join(str(value) for value in field["enum"])
    if "anyOf" in field:
        return " | ".join(dict.fromkeys(_kind(part, schema) for part in field["anyOf"] if part.get("type") != "null"))
    if field.get("type") == "array":
        return f"[{_kind(field.get('items', {}), schema)}, …]"
    if field.get("examples"):
        return str(field["examples"][0])
    return {"boolean": "true | false", "string": "text", "integer": "number"}.get(
        field.get("type", ""), str(field.get("type", ""))
    )


def _default(key: str, field: dict[str, Any], schema: dict[str, Any]) -> str:
    if "default" not in field:
        return "required" if key in schema.get("required", ()) else ""
    value = field["default"]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {part}" for name, part in value.items() if part is not None) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]" if value else ""
    if value is None:
        return "chosen" if "default" in field.get("description", "").lower() else "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
