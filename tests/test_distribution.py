"""What is published installs and works far from this folder: the wheel, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, SAMPLES

pytestmark = pytest.mark.slow


def _run(*command: str | Path, folder: Path) -> str:
    """Run in `folder`, without what this process would lend it."""
    lent = {"PYTHONPATH", "VIRTUAL_ENV"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in lent},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with sdist and wheel; the wheel is built from the sdist, as a release is."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    return folder


def test_the_distribution_is_named_lepton_cli_and_passes_the_registrys_check(dist: Path) -> None:
    names = sorted(path.name for path in dist.iterdir())
    assert [name.split("-")[0] for name in names] == ["lepton_cli", "lepton_cli"]
    _run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), folder=dist)


def test_nothing_but_the_package_is_installed(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        tops = {name.split("/")[0] for name in wheel.namelist()}
        assert any(name.endswith("report/templates/report.html.j2") for name in wheel.namelist())
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lepton_cli"}
    with tarfile.open(next(dist.glob("*.tar.gz"))) as source:
        assert any(name.endswith("/LICENSE") for name in source.getnames())


def test_the_wheel_works_in_a_fresh_environment(dist: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    _run(sys.executable, "-m", "venv", environment, folder=tmp_path)
    python = environment / "bin" / "python"
    wheel = next(dist.glob("*.whl"))
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--constraint", _constraints(tmp_path), f"{wheel}[cpu]", folder=tmp_path)
    command = environment / "bin" / "lepton"
    assert "onnxruntime" in _run(command, "doctor", "--noise", "0", folder=tmp_path)
    _run(command, "compress", SAMPLES / "digits_vit.onnx", "-o", "out", folder=tmp_path)
    assert (tmp_path / "out" / "report.json").exists()


def _constraints(folder: Path) -> Path:
    """The versions of this environment: the fresh one gets the same."""
    import importlib.metadata

    found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}
    path = folder / "constraints.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in found.items() if name != "lepton-cli"))
    return path
