"""`lepton init`: the recipe a user starts from, with every part explained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from lepton_cli.commands.choose import data_section
from lepton_cli.commands.job import check_shapes
from lepton_cli.commands.source import scores_classes
from lepton_cli.data.batching import layout
from lepton_cli.errors import DataError, OutputError, disk_full
from lepton_cli.graph.facts import facts
from lepton_cli.model import io
from lepton_cli.quantize import targets
from lepton_cli.recipe import defaults
from lepton_cli.steps import STEPS
from lepton_cli.tensors import TensorInfo

_TEMPLATE = """\
# yaml-language-server: $schema=recipe.schema.json
#   (lepton schema > recipe.schema.json gives editors completion and checks)
#
# Recipe for {{ model }}
#   inputs:  {{ inputs | join("; ") }}
#   outputs: {{ outputs | join("; ") }}
# Look before running:  lepton plan {{ model }} -r {{ path }}{{ sizes }}
# Run:                  lepton compress {{ model }} -r {{ path }}{{ sizes }} -o out
# In CI, fail the build when a gate fails:
#   lepton compress {{ model }} -r {{ path }}{{ sizes }} -o out   (exit code 1: a gate failed)

version: 1
name: {{ name }}            # names the result: out/{{ name }}.onnx
seed: 0

# Where samples come from. Calibration data needs no labels; evaluation data is what accuracy is measured on.
# Paths are relative to this file. Sources: .npz arrays, image folders, .csv / .jsonl / .parquet tables.
{% if data -%}
data:
{%- if problem %}
  # NOT READY: {{ problem.message }}
  # {{ problem.hint or "see docs/recipes.md for the preprocessing" }}, in `preprocess` below
{%- endif %}
{%- if undecided %}
  # DECIDE `scale`: 1/255 feeds values from 0 to 1 (often with `mean` and `std` too: docs/recipes.md); take it out
  # where the model was trained on 0 to 255. Pictures are RGB: `channels: bgr` where it was trained on BGR.
{%- endif %}
{%- if unlabelled %}
  # No labels: `{{ unlabelled }}` holds no scores of classes, so that top-1 says nothing. How close the outputs stay
  # is measured without; a metric of your own is `metric: python` (docs/recipes.md).
{%- endif %}
{{ data | indent(2, true) }}
{%- else -%}
# data:
#   calibration:
#     path: train.npz
#     inputs: { {{ first_input }}: images }     # model input: array in the file
#     samples: 512
#     preprocess: {layout: nchw, scale: 1/255, mean: [0.5], std: [0.5]}
#   evaluation:
#     path: test.npz
#     inputs: { {{ first_input }}: images }
#     labels: labels
#     preprocess: {layout: nchw, scale: 1/255, mean: [0.5], std: [0.5]}
{%- endif %}

# What is done, in order. `lepton steps` lists all steps, `lepton steps NAME` the options of one.
steps:
{%- for step, reason in steps %}
  - step: {{ step.step }}      # {{ reason }}
{%- if known[step.step].options.for_machine %}
    target: auto               # the machine the model will run on; auto is this one ({{ target }})
{%- endif %}
{%- if step.get("if_possible") %}
    if_possible: true          # changing nothing is not an error
{%- endif %}
{%- endfor %}
{%- if prunable %}
  # To make the model smaller and faster still, put this before the quantization and watch the accuracy:
  # - step: prune.channels
  #   target: {macs: 70 %}     # what remains of the original; or params, size, latency
{%- endif %}

# What is measured, original and result side by side.
evaluate:
{%- if labelled %}
  accuracy: {metric: top1}
{%- endif %}
  latency: {providers: [cpu], batch: {{ batches }}}

# Limits. A gate that fails ends in exit code 1; `level: warn` only says so.
gates:
  - {metric: size.file, max_ratio: 1.01}               # not larger than the original
  - {metric: latency.median, provider: cpu, batch: {{ batches[0] }}, max_ratio: 1.25, level: warn}
{%- if labelled %}
  - {metric: accuracy.top1, max_drop: 1 pp}
{%- endif %}
"""


def write_recipe(
    model: Path,
    path: Path,
    data: Path | None,
    labels: str | None,
    given: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Write the recipe for `model`. `given`: shapes of inputs, batch included, where there is no data.

    Raises OutputError when `path` exists, ModelError, DataError, UsageError.
    """
    if path.exists():
        raise OutputError(
            "output.exists", f"{path} exists already, and init never overwrites", hint="choose another -o FILE"
        )
    loaded = io.load(model)
    check_shapes(given or {}, io.inputs(loaded.model))
    found = facts(loaded.model, given)
    section, labelled, problem = _data(loaded, data, labels)
    unlabelled = "" if labels or scores_classes(loaded.model) else loaded.model.graph.outputs[0].name
    for source in section.values():
        source["path"] = os.path.relpath(source["path"], path.parent)
    choice = defaults.choose(found, name=path.stem, data=section, labelled=labelled, calibrated=bool(section))
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = environment.from_string(_TEMPLATE).render(
        model=os.path.relpath(model, path.parent),
        path=path.name,
        sizes="".join(
            f" --shape {_comment(name)}={'x'.join(map(str, shape))}" for name, shape in (given or {}).items()
        ),
        name=choice.recipe["name"],
        inputs=[_comment(info) for info in found.inputs],
        outputs=[_comment(info) for info in found.outputs],
        first_input=json.dumps(found.inputs[0].name if found.inputs else "input"),
        data=_dump(section) if section else "",
        problem=problem,
        undecided=any("scale" in source.get("preprocess", {}) for source in section.values()),
        unlabelled=_comment(unlabelled or ""),
        labelled=labelled,
        steps=list(zip(choice.recipe["steps"], choice.reasons, strict=True)),
        known=STEPS,
        target=targets.resolve("auto").name,
        prunable=found.convolutions + found.products > 0 and not found.quantized,
        batches=_batches(io.inputs(loaded.model)),
    )
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise disk_full(error, path, begun=False) or OutputError(
            "output.write", f"cannot write {path}", cause=error.strerror or str(error)
        ) from error


def _data(
    loaded: io.LoadedModel, data: Path | None, labels: str | None
) -> tuple[dict[str, Any], bool, DataError | None]:
    """The data section, whether it is labelled, and what is still wrong: shapes are for the user to settle."""
    if data is None:
        return {}, False, None
    try:
        return *data_section(loaded, data, labels), None
    except DataError as error:
        if error.code != "data.shape":
            raise
        source = {"path": os.path.relpath(data), "preprocess": {}, **({"labels": labels} if labels else {})}
        return {"calibration": source}, False, error


def _batches(inputs: tuple[TensorInfo, ...]) -> list[int]:
    """Batch sizes worth measuring; the only possible one where it is fixed."""
    fixed = layout(inputs).fixed
    return [1, 32] if fixed is None else [fixed]


def _comment(info: TensorInfo | str) -> str:
    """A tensor or its name in a comment line: names come from files and must not end the line."""
    return "".join(char if char.isprintable() else "?" for char in str(info))


def _dump(section: dict[str, Any]) -> str:
    return yaml.safe_dump(section, sort_keys=False, default_flow_style=None, allow_unicode=True).rstrip()
