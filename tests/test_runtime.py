"""Sessions: telemetry off, the asked-for provider, threads, one-line errors, callers."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lepton_cli import runtime
from lepton_cli.errors import ModelError, ProviderError
from tests.measure import builders

SMALL = builders.chain(2, 8)
FEEDS = {"x": np.ones((3, 8), np.float32)}


def test_telemetry_is_off_before_the_import() -> None:
    """In a process without the variable, it is set when onnxruntime is first looked for, and no event database or
    socket is open after a session has run."""
    script = """
import os, sys
seen = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == 'onnxruntime':
            seen.append(os.environ.get('ORT_DISABLE_TELEMETRY'))
sys.meta_path.insert(0, Finder())
from lepton_cli import runtime
assert 'onnxruntime' not in sys.modules
runtime.Session(bytes.fromhex(sys.argv[1]))
assert seen == ['1'], seen
folder = '/proc/self/fd'
links = [os.readlink(f'{folder}/{name}') for name in os.listdir(folder) if os.path.islink(f'{folder}/{name}')]
assert not [link for link in links if link.startswith('socket:') or 'onnxruntime.db' in link], links
"""
    clean = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "CI")}
    done = subprocess.run(
        [sys.executable, "-c", script, SMALL.hex()], env=clean, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_session_runs_and_describes_itself() -> None:
    session = runtime.Session(SMALL, threads=1)
    assert session.run(FEEDS)["y"].shape == (3, 8)
    assert [str(info) for info in session.inputs] == ["x float32 [N, 8]"]
    assert session.threads == 1
    assert session.provider_name == "CPUExecutionProvider"
    assert set(session.placement()) == {"CPUExecutionProvider"}
    assert session.placement()["CPUExecutionProvider"] == len(session.assignment()["CPUExecutionProvider"])
    assert session.fallback() == ()


def test_session_takes_a_path_and_saves_what_it_runs(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(SMALL)
    runtime.Session(tmp_path / "model.onnx", optimised_path=tmp_path / "optimised.onnx")
    assert (tmp_path / "optimised.onnx").stat().st_size > 0


def test_callers() -> None:
    session = runtime.Session(SMALL)
    found = session.caller(FEEDS)()
    assert np.array_equal(found[0], session.run(FEEDS)["y"])  # type: ignore[index]
    assert session.device_caller(FEEDS) is None


def test_io_binding_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device path with the CPU as its device."""
    session = runtime.Session(SMALL)
    monkeypatch.setitem(runtime._DEVICES, "CPUExecutionProvider", "cpu")
    monkeypatch.setattr(runtime, "CPU", "another")
    for call in (session.caller(FEEDS), session.device_caller(FEEDS)):
        assert call is not None
        assert call() is None


@pytest.mark.parametrize("payload", [b"", b"not a model", SMALL[:40]])
def test_a_broken_model_is_one_line(payload: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        runtime.Session(payload)
    assert caught.value.code == "model.runtime"
    assert caught.value.cause
    assert "\n" not in caught.value.cause


def test_the_reason_at_the_end_of_a_long_message_is_kept() -> None:
    """Here onnxruntime says what is wrong behind a list of inputs, as it does behind C++ signatures."""
    names = [f"a_name_of_some_length_{number}" for number in range(24)]
    reason = "is not output of any previous nodes."
    message = f"[ONNXRuntimeError] : 1 : FAIL : Node ({', '.join(names)}) {reason}"
    assert runtime.one_line(Exception(message)) == message.split(" : ", 2)[-1]
    longer = runtime.one_line(Exception(message.replace("Node", "Node " + "x " * 2000)))
    assert len(longer) < 1000
    assert longer.startswith("FAIL : Node x x")
    assert longer.endswith(reason)
    assert " … " in longer


def test_paths_of_source_files_are_left_out_of_messages() -> None:
    said = "[ONNXRuntimeError] : 6 : E : Status Message: /src/core/concatbase.h:135 Prepare Axis 2 of model.onnx is off"
    assert runtime.one_line(Exception(said)) == "E : Status Message: Prepare Axis 2 of model.onnx is off"


def test_a_failing_run_is_one_line() -> None:
    with pytest.raises(ModelError) as caught:
        runtime.Session(SMALL).run({"x": np.ones((3, 9), np.float32)})
    assert caught.value.code == "model.run"
    assert "\n" not in str(caught.value.cause)


def test_failures_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError):
        runtime.Session(SMALL).run({"x": np.ones((3, 9), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_providers_that_are_not_there() -> None:
    for name in ("tensorrt", "NoSuchProvider"):
        with pytest.raises(ProviderError, match=name):
            runtime.Session(SMALL, provider=name)


def test_a_provider_that_does_not_start_is_no_cpu_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime creates a CPU session with a warning; here it is an error."""
    monkeypatch.setattr(runtime, "provider_name", lambda name: "CUDAExecutionProvider")
    monkeypatch.setattr(runtime, "library_error", lambda full: "libcudnn.so.9: cannot open shared object file")
    with pytest.raises(ProviderError) as caught, pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        runtime.Session(SMALL, provider="cuda")
    assert "libcudnn" in str(caught.value.cause)


def test_library_errors_are_only_asked_of_device_providers() -> None:
    assert runtime.library_error("CPUExecutionProvider") is None
    if "CUDAExecutionProvider" not in runtime.onnxruntime().get_available_providers():
        assert "cannot open" in str(runtime.library_error("CUDAExecutionProvider"))


@pytest.mark.parametrize("level", [logging.INFO, logging.CRITICAL + 10])
def test_the_tools_are_quiet_and_the_log_is_as_it_was_after(level: int, caplog: pytest.LogCaptureFixture) -> None:
    before = logging.root.manager.disable
    try:
        logging.disable(level)
        with contextlib.suppress(KeyError), runtime.quiet():
            logging.getLogger("onnxruntime.any").critical("advice")
            raise KeyError
        assert logging.root.manager.disable == level
    finally:
        logging.disable(before)
    assert not caplog.records


def test_threads_spin_for_timing_alone() -> None:
    """What onnxruntime says of its own options; the results are the same to the bit."""
    timed, plain = runtime.Session(SMALL, threads=2), runtime.Session(SMALL, threads=2, spin=False)
    spinning = "session.intra_op.spin_duration_us"
    assert plain.raw.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert timed.raw.get_session_options().get_session_config_entry(spinning) == str(runtime.SPIN)
    np.testing.assert_array_equal(timed.run(FEEDS)["y"], plain.run(FEEDS)["y"])
