"""A complete recipe, and a way to load variations of it."""

import pytest

from lepton_cli.recipe.load import load_recipe

RECIPE = """\
version: 1
name: resnet20-int8
seed: 3
data:
  calibration:
    path: data/train.npz
    inputs: {image: images}
    samples: 512
    preprocess: &pre {layout: nchw, scale: 1/255, mean: [0.485, 0.456, 0.406]}
  evaluation: {path: data/test.npz, labels: labels, preprocess: *pre}
steps:
  - step: simplify
  - step: prune.channels
    target: {macs: 60 %}
    recover: [least_squares, batch_norm]
    exclude: ["classifier/*"]
  - step: quantize.static
    calibration: percentile
evaluate:
  accuracy: {metric: top1}
  latency: {providers: [cpu, {name: cuda, optional: true}], batch: [1, 32], threads: 2}
gates:
  - {metric: size.file, max: 1 MB}
  - {metric: accuracy.top1, max_drop: 0.5 pp}
  - {metric: latency.median, provider: cpu, batch: 1, max_ratio: 60 %, level: warn}
output: {reports: [json, md]}
"""


@pytest.fixture(scope="session")
def complete():
    """The text of the complete recipe."""
    return RECIPE


@pytest.fixture
def write(tmp_path):
    """Write a recipe file, with parts of the complete one replaced, or with a text of its own."""

    def write(*replacements, text=RECIPE):
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def load(write):
    """Load such a file."""

    def load(*replacements, overrides=(), **given):
        return load_recipe(write(*replacements, **given), overrides)

    return load
