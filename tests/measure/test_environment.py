"""Facts about this machine, and what they are derived from."""

from __future__ import annotations

import pytest

from lepton_cli.measure import environment


def test_environment_of_this_machine() -> None:
    found = environment.environment()
    assert found.onnxruntime
    assert found.onnx
    assert 1 <= found.usable_cores <= found.cores
    assert found.memory > 0
    assert "CPUExecutionProvider" in found.providers
    assert found.cpu


def test_what_makes_numbers_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version", lambda package: "1.0")
    monkeypatch.setattr(environment, "governor", lambda: "powersave")
    monkeypatch.setattr(environment, "others", lambda: 0.5)
    found = environment.warnings()
    assert len(found) == 3
    assert "both installed" in found[0]
    assert "powersave" in found[1]
    assert "50 %" in found[2]


def test_missing_packages_have_no_version() -> None:
    assert environment.version("surely-not-a-package") is None


def test_other_work_is_counted_without_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([(100, 1000), (160, 1100), (100, 1000), (100, 1000), None])
    monkeypatch.setattr(environment, "_processor_time", lambda: next(ticks))
    monkeypatch.setattr(environment.time, "sleep", lambda seconds: None)
    assert environment.others() == pytest.approx(0.6, abs=0.05)
    assert environment.others() is None
    assert environment.others() is None
