"""Doctor's checks: all of them on this machine, and each failure on a made-up one."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

from lepton_cli.measure import doctor, environment
from tests.conftest import ROOT


def by_name(found: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in found}


def test_this_machine(tmp_path: Path) -> None:
    found = by_name(doctor.checks(noise_seconds=0.3, cache=tmp_path / "cache"))
    assert found["telemetry"].status == "ok"
    assert found["provider cpu"].status == "ok"
    assert "target: auto" in found["instructions"].found
    assert "cannot be decided here" in found["noise"].found
    assert found["cache"].found == str(tmp_path / "cache")
    assert all(check.fix for check in found.values() if check.status != "ok")


def test_a_provider_that_is_asked_for_must_start() -> None:
    found = by_name(doctor.checks("cuda", noise_seconds=0))
    if found["provider cuda"].status == "ok":
        pytest.skip("this machine has CUDA")
    assert found["provider cuda"].status == "fail"
    assert "provider cpu" not in found
    assert "noise" not in found


def test_both_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version", lambda package: "1.31.1")
    check = doctor._onnxruntime()
    assert check.status == "fail"
    assert "pip uninstall" in check.fix


def test_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version", lambda package: None)
    found = by_name(doctor.checks())
    assert found["onnxruntime"].status == "fail"
    assert "telemetry" not in found
    assert "noise" not in found


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = doctor._cache(tmp_path / "file")
    assert check.status == "warn"
    assert "LEPTON_CACHE" in check.fix


def test_governor_and_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "governor", lambda: "powersave")
    monkeypatch.setattr(environment, "others", lambda seconds: 0.5)
    check = doctor._governor()
    assert check.status == "warn"
    assert environment.GOVERNORS in check.fix  # where the governor was read: nothing else has to be installed
    assert doctor._load().status == "warn"


def test_the_extras_are_those_that_lepton_asks_for() -> None:
    """No more and no fewer, each with the package that it really installs."""
    asked: dict[str, str] = {}
    for path in (ROOT / "lepton_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingExtraError":
                extra, package = (ast.literal_eval(argument) for argument in node.args[:2])
                asked[extra] = package
    assert asked.pop("cpu") == "onnxruntime"  # has a check of its own
    assert {extra: package for extra, (package, _) in doctor._EXTRAS.items()} == asked
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, package in asked.items():
        assert any(requirement.startswith(package) for requirement in known[extra])


def test_telemetry_that_cannot_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """To export a variable that lepton itself sets would change nothing."""
    done = subprocess.CompletedProcess([], 0, '["socket:[1]"]\n', "")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)
    check = doctor._telemetry()
    assert (check.status, check.found) == ("fail", "onnxruntime holds socket:[1]")
    assert "export" not in check.fix
