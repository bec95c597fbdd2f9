"""docs/ci.md and action.yml: every snippet is run, on a bundled model, with real commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, SAMPLES

DOCUMENT = (ROOT / "docs" / "ci.md").read_text()
#: (what the comment before it says, language, text) of each snippet.
SNIPPETS = [match.groups() for match in re.finditer(r"(?:<!-- ([^\n]+) -->\n)?```(\w+)\n(.*?)```", DOCUMENT, re.DOTALL)]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


def snippets(kind: str) -> list[str]:
    return [text for said, _, text in SNIPPETS if said == kind]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the document, a model, its data, and the commands on the PATH."""
    folder = tmp_path_factory.mktemp("project")
    for said, _, text in SNIPPETS:
        if said and said.startswith("file: "):
            (folder / said.removeprefix("file: ")).write_text(text)
    shutil.copy(SAMPLES / "digits_mlp.onnx", folder / "model.onnx")
    for part in ("train", "test"):
        shutil.copy(SAMPLES / f"digits_{part}.npz", folder / f"{part}.npz")
    commands = folder / "bin"
    commands.mkdir()
    # Latency is measured for a moment only: here it matters what runs, not how fast.
    options = "--set evaluate.latency.time=100ms --set evaluate.latency.threads=1"
    quick = f'case $1 in compress|compare) set -- "$@" {options};; esac'
    scripts = {
        "lepton": f'{quick}\nexec "{sys.executable}" -W ignore -m lepton_cli "$@"',
        "pip": f'echo "pip $*" >> "{folder}/installed"',
        "git": f'echo "git $*" >> "{folder}/installed"',
        "python": f'echo "python $*" >> "{folder}/installed"',
    }
    for name, text in scripts.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)
    return folder


def shell(project: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a CI system does: the first line that fails ends it."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("GITHUB_", "CI", "COVERAGE"))}
    return subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={
            **outside,
            "PATH": f"{project / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "LEPTON_URL": "https://example.org/lepton.git",
            **env,
        },
    )


@pytest.fixture(scope="module")
def compressed(project: Path) -> Path:
    """The project after the three lines at the top of the document."""
    first = next(text for said, language, text in SNIPPETS if language == "sh" and said is None)
    done = shell(project, first)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "installed").read_text().splitlines()[-2:] == [
        "git clone --depth 1 https://example.org/lepton.git lepton",
        "pip install ./lepton[cpu]",
    ]
    return project


def test_every_snippet_is_known_to_a_test() -> None:
    kinds = {said for said, language, _ in SNIPPETS if said}
    assert {kind for kind in kinds if not kind.startswith("file: ")} == {"run", "workflow", "gitlab"}
    assert [language for said, language, _ in SNIPPETS if said is None] == ["sh"]


def test_the_commands_of_the_document_run_in_order(compressed: Path) -> None:
    found = snippets("run")
    assert len(found) == 5
    for text in found:
        done = shell(compressed, text)
        assert done.returncode == 0, text + done.stdout + done.stderr
    assert (compressed / "compared" / "report.html").exists()
    assert (compressed / "gates.xml").exists()


def test_gitlab(compressed: Path) -> None:
    (job,) = yaml.safe_load(snippets("gitlab")[0]).values()
    shutil.rmtree(compressed / "out")
    done = shell(compressed, "\n".join(job["script"]))
    assert done.returncode == 0, done.stderr
    assert (compressed / job["artifacts"]["reports"]["junit"]).exists()
    assert (compressed / job["artifacts"]["paths"][0] / "report.html").exists()


def test_make(compressed: Path) -> None:
    shutil.rmtree(compressed / "out")
    assert shell(compressed, "make judge").returncode == 0
    target = compressed / "out" / "small.onnx"
    made = target.stat().st_mtime_ns
    assert "up to date" in shell(compressed, "make out/small.onnx").stdout
    assert target.stat().st_mtime_ns == made

    recipe = compressed / "recipe.yaml"
    before = recipe.read_text()
    recipe.write_text(before.replace("max_ratio: 0.3", "max_ratio: 0.01"))
    failed = shell(compressed, "make")
    assert failed.returncode == 2
    assert "Error 1" in failed.stderr
    assert "FAILED" in failed.stdout
    assert not target.exists()
    recipe.write_text(before)
    assert shell(compressed, "make").returncode == 0
    assert target.exists()


def action(project: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the steps of action.yml as GitHub would; the result and the job's summary."""
    known: dict[str, Any] = ACTION["inputs"]
    assert set(inputs) <= set(known)
    values = {name: inputs.get(name, str(spec.get("default", ""))) for name, spec in known.items()}
    summary, output = project / "summary.md", project / "github_output"
    summary.write_text("")
    done = None
    for step in ACTION["runs"]["steps"]:
        if "run" not in step:
            assert "@" in step["uses"]
            continue
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "inputs go through variables"
        env = {name: _filled(str(value), values) for name, value in step.get("env", {}).items()}
        github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(output)}
        done = shell(project, step["run"], **env, **github)
        if done.returncode:
            break
    assert done is not None
    return done, summary.read_text()


def _filled(text: str, values: dict[str, str]) -> str:
    text = re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], text)
    return text.replace("${{ github.action_path }}", str(ROOT))


def test_the_workflow_uses_the_action_rightly(project: Path) -> None:
    workflow = yaml.safe_load(snippets("workflow")[0])
    # PyYAML reads the key `on` as true.
    assert workflow[True] == ["push", "pull_request"]
    steps = workflow["jobs"]["model"]["steps"]
    (step,) = [step for step in steps if step["uses"].startswith("OWNER/lepton@")]
    done, summary = action(project, **step["with"])
    assert done.returncode == 0, done.stderr
    assert summary.startswith("<!-- lepton:small -->")
    assert (project / "installed").read_text().splitlines()[-1].endswith(f"{ROOT}[cpu]")
    assert "report=out/report.json" in (project / "github_output").read_text()
    assert (project / "out" / "report.html").exists()


def test_the_action_judges(compressed: Path) -> None:
    done, summary = action(compressed, model="model.onnx", budget="size.yaml")
    assert done.returncode == 0, done.stderr
    assert "all 3 gates passed" in summary
    (compressed / "tight file.yaml").write_text("version: 1\ngates:\n  - {metric: size.file, max: 1 kB}\n")
    done, summary = action(compressed, model="out/report.json", budget="tight file.yaml", strict="true")
    assert done.returncode == 1
    assert "::error file=tight file.yaml,line=3,title=size.file::" in done.stderr
    assert "FAILED" in summary


def test_the_action_refuses(compressed: Path) -> None:
    assert action(compressed, model="model.onnx")[0].returncode == 2
    done, _ = action(compressed, model="model.onnx", budget="$(touch injected).yaml")
    assert done.returncode == 2
    assert "::error" in done.stderr
    assert not (compressed / "injected").exists()
