"""Every command and every recipe in the documentation works as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_cli.data.open import open_dataset
from lepton_cli.measure.accuracy import evaluate
from lepton_cli.recipe.load import load_recipe
from lepton_cli.runtime import Session
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "docs/recipes.md", ROOT / "docs/metrics.md"]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in _FENCE.findall(page.read_text()) if found == language]


def _numbered(language: str) -> list[tuple[str, int]]:
    return [(page.name, index) for page in PAGES for index in range(len(_blocks(page, language)))]


def _page(name: str) -> Path:
    return next(page for page in PAGES if page.name == name)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("sample_models", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


@pytest.mark.parametrize(("name", "index"), _numbered("yaml"))
def test_recipes_are_valid(name: str, index: int, checkout: Path) -> None:
    path = checkout / "recipe.yaml"
    path.write_text(_blocks(_page(name), "yaml")[index])
    load_recipe(path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index"), _numbered("yaml"))
def test_recipes_run(name: str, index: int, checkout: Path) -> None:
    path = checkout / "recipe.yaml"
    text = _blocks(_page(name), "yaml")[index]
    path.write_text(text.replace("latency: 90 %, ", ""))  # which is measured for minutes
    model = "digits_mlp" if "pixels" in text else "digits_cnn" if "32, 32" in text else "digits_vit"
    if "training:" in text:
        pytest.importorskip("torch", reason="needs the extra `train`")
    command = ["lepton", "compress", f"sample_models/{model}.onnx", "-r", "recipe.yaml", "-o", "out"]
    own = " --allow-code" if "function:" in text else ""
    _run(
        " ".join(command) + own + (" --set evaluate.latency.time=500ms" if "latency: false" not in text else ""),
        checkout,
    )


def test_the_metric_of_ones_own_is_measured(checkout: Path) -> None:
    """The documentation's example: how far off are the digits that the sample model reads?"""
    path = checkout / "recipe.yaml"
    path.write_text(next(text for text in _blocks(_page("metrics.md"), "yaml") if "reading_error" in text))
    recipe = load_recipe(path).recipe
    assert recipe.data.evaluation is not None
    session = Session(checkout / "sample_models/digits_cnn.onnx", threads=1)
    few = recipe.data.evaluation.model_copy(update={"samples": 60})
    data = open_dataset(few, session.inputs, name="evaluation", base=checkout)
    measured = evaluate({"original": session}, data, recipe.evaluate.accuracy, allow_code=True, base=checkout)
    (found,) = measured.values["original"]
    (batch,) = data.batches(data.count)
    scores = session.run(batch.feeds)["logits"]
    expected = [abs(int(row.argmax()) - int(label)) for row, label in zip(scores, batch.labels["labels"], strict=True)]
    assert found.value == pytest.approx(sum(expected) / len(expected))
    assert not found.higher_is_better


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index"), _numbered("sh"))
def test_commands_run(name: str, index: int, checkout: Path) -> None:
    _run(_blocks(_page(name), "sh")[index], checkout)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index"), _numbered("python"))
def test_python_runs(name: str, index: int, checkout: Path) -> None:
    script = _blocks(_page(name), "python")[index]
    assert len([line for line in script.splitlines() if line]) == 6
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    assert "top1" in done.stdout


def _run(script: str, folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs/architecture.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_step_and_command_is_in_the_readme() -> None:
    from lepton_cli.cli.main import COMMANDS
    from lepton_cli.steps import STEPS

    text = (ROOT / "README.md").read_text()
    for name in STEPS:
        assert f"`{name}`" in text
    for name in COMMANDS:
        assert f"lepton {name}" in text
