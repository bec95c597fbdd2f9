"""What all tests share: the choice of slow tests, small models, and the command run in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import hypothesis
import pytest
from typer.testing import CliRunner, Result

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_models"

Lepton = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_configure() -> None:
    """Ctrl-C works in the tests and what they start, even where a shell runs them in the background without it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A busy machine is no failure.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing of layers is short in tests: they do not look at its results."""
    monkeypatch.setattr("lepton_cli.prune.stopwatch.LIMIT", 0.1)
    monkeypatch.setattr("lepton_cli.prune.times.SECONDS", 0.2)
    monkeypatch.setattr("lepton_cli.tune.known._TABLES", 0.2)
    monkeypatch.setattr("lepton_cli.tune.known._GLANCE", 0.05)


@pytest.fixture
def samples() -> Path:
    """The folder of the bundled models and their data."""
    return SAMPLES


class Invoke(Protocol):
    """Runs a command in this process."""

    def __call__(self, *arguments: str | Path) -> Result: ...


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run `lepton` with arguments in this process, in `tmp_path`: quick, for everything that is not about processes."""
    from lepton_cli.cli.main import make_app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(make_app(), [str(argument) for argument in arguments])

    return run


@pytest.fixture
def lepton(tmp_path: Path) -> Lepton:
    """Run `lepton` with arguments, in `tmp_path`, in a process of its own."""

    def run(
        *arguments: str | Path, env: dict[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "lepton_cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "NO_COLOR": "1", **(env or {})},
            timeout=timeout,
            check=False,
        )

    return run
