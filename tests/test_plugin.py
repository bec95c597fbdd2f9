"""Providers that are packages of their own: OpenVINO's, and stand-ins for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lepton_cli import plugin, runtime
from lepton_cli.errors import ProviderError
from tests.measure import builders

NAME = "OpenVINOExecutionProvider"
SMALL = builders.chain(2, 8)


class Fake:
    """onnxruntime with a plugin that offers devices of these kinds and names."""

    OrtHardwareDeviceType = SimpleNamespace(CPU="cpu", GPU="gpu")

    def __init__(self, *devices: tuple[str, str, str]) -> None:
        self.registered: list[tuple[str, str]] = []
        self.offered = [
            SimpleNamespace(ep_name=name, device=SimpleNamespace(type=kind), ep_metadata={"ov_device": own})
            for name, kind, own in devices
        ]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if path == "broken":
            raise RuntimeError("no such\nlibrary")
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[Any]:
        return self.offered


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing is remembered of other tests' plugins."""
    plugin.load.cache_clear()
    yield
    plugin.load.cache_clear()


def package(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    """Install a package whose library is at `path`, or none."""
    module = ModuleType("onnxruntime_ep_openvino")
    module.get_library_path = lambda: path  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module if path else None)  # type: ignore[arg-type]


def test_only_the_processor_of_the_plugin_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, "here")
    ort = Fake((NAME, "gpu", "GPU"), ("other", "cpu", "CPU"), (NAME, "cpu", "CPU"), (NAME, "cpu", "AUTO"))
    found = plugin.load(ort, NAME)
    assert found == plugin.Plugin((ort.offered[2],))
    assert plugin.load(ort, NAME) is found, "a library can be registered once"
    assert ort.registered == [(NAME, "here")]


@pytest.mark.parametrize(
    ("path", "devices", "said"),
    [
        (None, [], "`onnxruntime-ep-openvino` is not installed"),
        ("here", [], "offers no CPU here: it takes Intel's processors alone"),
        ("here", [(NAME, "gpu", "GPU")], "offers no CPU here"),
        ("broken", [], "cannot be loaded: no such library"),
    ],
)
def test_what_is_missing_is_said(
    path: str | None, devices: list[tuple[str, str, str]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(monkeypatch, path)
    found = plugin.load(Fake(*devices), NAME)
    assert found is not None
    assert found.devices == ()
    assert said in found.missing
    assert ("pip install" in found.fix) == (path is None)


def test_other_providers_have_no_package() -> None:
    assert plugin.load(Fake(), "CUDAExecutionProvider") is None
    assert plugin.settings("CUDAExecutionProvider", 2) == {}
    assert json.loads(plugin.settings(NAME, 2)["load_config"]) == {"CPU": {"INFERENCE_NUM_THREADS": "2"}}


def test_without_the_package_the_error_is_that_of_any_absent_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    if NAME in runtime.onnxruntime().get_available_providers():
        pytest.skip("this onnxruntime was built with OpenVINO")
    package(monkeypatch, None)
    with pytest.raises(ProviderError) as caught:
        runtime.Session(SMALL, provider="openvino")
    assert caught.value.code == "provider.unavailable"
    assert caught.value.exit_code == 2
    assert "not installed" in (caught.value.cause or "")
    assert "pip install onnxruntime-ep-openvino" in (caught.value.hint or "")


def test_openvino_computes_the_same() -> None:
    pytest.importorskip("onnxruntime_ep_openvino", reason="onnxruntime-ep-openvino is not installed")
    found = plugin.load(runtime.onnxruntime(), NAME)
    if found is None or not found.devices:
        pytest.skip(found.missing if found else "")
    feeds = {"x": np.ones((3, 8), np.float32)}
    session = runtime.Session(SMALL, provider="openvino", threads=1, fallback=False)
    assert set(session.placement()) == {NAME}
    assert session.fallback() == ()
    # OpenVINO computes in bfloat16 where the processor does.
    np.testing.assert_allclose(session.run(feeds)["y"], runtime.Session(SMALL).run(feeds)["y"], rtol=0.02, atol=0.02)
    session.caller(feeds)()
