"""Timing is short in tests: they do not look at its results."""

from __future__ import annotations

import pytest

from lepton_cli.prune import stopwatch, times


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "LIMIT", 0.1)
    monkeypatch.setattr(times, "SECONDS", 0.2)
