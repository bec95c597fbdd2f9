"""onnxruntime sessions: the only place that creates them.

Telemetry is off before the import, threads are fixed, and the provider that was asked for is the provider that runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lepton_cli import plugin
from lepton_cli.errors import MissingExtraError, ModelError, ProviderError, cause_of, check_room
from lepton_cli.machine import usable_threads
from lepton_cli.tensors import TensorInfo

#: Short names of recipes -> onnxruntime's.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}

#: Providers with a memory of their own that onnxruntime's IO binding can use from Python.
_DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
CPU = PROVIDERS["cpu"]

#: Microseconds that threads look for more work before they sleep.
SPIN = 1000

#: Arrays by the names of inputs, outputs or inner values; `data.memory.Arrays` is the data set.
Values = dict[str, np.ndarray]


def onnxruntime() -> Any:
    """The onnxruntime module, imported with telemetry off. Raises MissingExtraError when it is not installed."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingExtraError("cpu", "onnxruntime", "running models") from error
    ort.set_default_logger_severity(4)
    return ort


@functools.cache
def _schemas() -> Mapping[tuple[str, str], list[Any]]:
    onnxruntime()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[tuple[str, str], list[Any]] = {}
    for schema in state.get_all_operator_schema():
        found.setdefault((schema.domain, schema.name), []).append(schema)
    return found


def schema(domain: str, operator: str, version: int | None = None) -> Any | None:
    """onnxruntime's definition of an operator, ONNX's or its own: the newest that is not above `version`.

    `None` where it has none; the attributes are those of `onnx.defs.OpSchema`.
    """
    known = _schemas().get((domain, operator), ())
    usable = [one for one in known if version is None or one.since_version <= version]
    return max(usable, key=lambda one: one.since_version, default=None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """onnxruntime's Python tools log advice, under a dozen logger names; ours goes into the report instead.

    Python has one switch for all loggers: it is left as the caller had it.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.CRITICAL))
    try:
        yield
    finally:
        logging.disable(before)


def provider_name(name: str) -> str:
    """onnxruntime's name of a provider given by its short or full name. Raises ProviderError when not installed."""
    full = PROVIDERS.get(name, name)
    available = onnxruntime().get_available_providers()
    if full in available:
        return str(full)
    package = plugin.load(onnxruntime(), full) or plugin.Plugin()
    if not package.devices:
        fix = "CUDA needs onnxruntime-gpu" if name == "cuda" else package.fix
        raise ProviderError(
            "provider.unavailable",
            f"provider `{name}` is not in this onnxruntime",
            cause="; ".join(filter(None, (f"it has {', '.join(available)}", package.missing))),
            hint="; ".join(filter(None, ("lepton doctor   or choose another provider", fix))),
        )
    return str(full)


class Session:
    """A model ready to run on one provider.

    `model` is a serialised model or, for models above 2 GB, a path. Nodes that the provider cannot run fall back to
    the CPU, as onnxruntime does; `placement()` tells how many. Raises ProviderError when the provider does not start
    and ModelError when onnxruntime refuses the model.
    """

    def __init__(
        self,
        model: bytes | Path,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        optimise: bool = True,
        optimised_path: Path | None = None,
        fallback: bool = True,
        profile_prefix: Path | None = None,
        spin: bool = True,
    ) -> None:
        """`optimised_path`: where onnxruntime saves the graph it really runs. `fallback=False`: no node may go to the
        CPU instead of the provider. `profile_prefix`: time every kernel; `raw.end_profiling()` names the file.
        `spin=False`: threads sleep as soon as they have nothing to do, which costs less and is no user's speed."""
        ort = onnxruntime()
        self.provider = provider
        self.threads = threads or usable_threads()
        self.provider_name = full = provider_name(provider)
        options = _options(ort, self.threads, optimise, spin)
        if optimised_path is not None:
            options.optimized_model_filepath = str(optimised_path)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_prefix)
        if not fallback and full != CPU:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [full, CPU] if fallback and full != CPU else [full]
        source: Any = model if isinstance(model, bytes) else str(model)
        if full in _DEVICES:
            _preload_device_libraries()
        package = plugin.load(ort, full)
        if package is not None and package.devices:
            options.add_provider_for_devices(package.devices, plugin.settings(full, self.threads))
            providers = []
        try:
            self._session = ort.InferenceSession(source, options, providers=providers or None, enable_fallback=0)
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            if optimised_path is not None:
                check_room(optimised_path)
            if full != CPU and _loads_on_cpu(ort, source):
                raise _not_started(provider, library_error(full) or one_line(error)) from error
            raise ModelError("model.runtime", "onnxruntime cannot load the model", cause=one_line(error)) from error
        if full not in self._session.get_providers():
            raise _not_started(provider, library_error(full))
        self.inputs = [_info(argument) for argument in self._session.get_inputs()]
        self.outputs = [_info(argument) for argument in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> Values:
        """Outputs by name for one batch. Raises ModelError when the run fails."""
        names = list(outputs) if outputs is not None else [output.name for output in self.outputs]
        if not names:  # onnxruntime takes an empty list for all outputs
            return {}
        try:
            values = self._session.run(names, self._fitting(feeds))
        except Exception as error:
            raise ModelError("model.run", "onnxruntime cannot run the model", cause=one_line(error)) from error
        return dict(zip(names, values, strict=True))

    def _fitting(self, feeds: Mapping[str, np.ndarray]) -> Values:
        """Floats as wide as this model takes them: one data set is for a model and its float16 version."""
        wanted = {one.name: one.dtype for one in self.inputs if one.dtype in _FLOATS}
        return {
            name: array.astype(wanted[name], copy=False) if name in wanted and array.dtype.kind == "f" else array
            for name, array in feeds.items()
        }

    @property
    def raw(self) -> Any:
        """onnxruntime's own session, for timing without a layer in between and for IO binding."""
        return self._session

    def caller(self, feeds: Values) -> Callable[[], object]:
        """One run from host memory to host memory, complete when the call returns: what a user waits for.

        On a device the transfers of inputs and outputs are part of it.
        """
        feeds = self._fitting(feeds)
        if self.provider_name == CPU:
            return functools.partial(self._session.run, [output.name for output in self.outputs], feeds)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for output in self.outputs:
            binding.bind_output(output.name)

        def run() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def device_caller(self, feeds: Values) -> Callable[[], object] | None:
        """One run with inputs and outputs already on the device, synchronised; `None` where there is no such device."""
        device = _DEVICES.get(self.provider_name)
        if device is None:
            return None
        ort = onnxruntime()
        binding = self._session.io_binding()
        for name, array in self._fitting(feeds).items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
        for output in self.outputs:
            binding.bind_output(output.name, device)
        binding.synchronize_inputs()

        def run() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def assignment(self) -> dict[str, tuple[str, ...]]:
        """Names of the optimised graph's nodes by the provider that runs them; empty when onnxruntime does not tell."""
        names: dict[str, tuple[str, ...]] = {}
        try:
            for part in self._session.get_provider_graph_assignment_info():
                nodes = tuple(node.name or node.op_type for node in part.get_nodes())
                names[part.ep_name] = names.get(part.ep_name, ()) + nodes
        except Exception:  # older onnxruntime versions have no such call
            return {}
        return names

    def placement(self) -> dict[str, int]:
        """Number of nodes by the provider that runs them; empty when onnxruntime does not tell."""
        return {provider: len(nodes) for provider, nodes in self.assignment().items()}

    def fallback(self) -> tuple[str, ...]:
        """Nodes that the requested provider left to another one."""
        return tuple(
            node for provider, nodes in self.assignment().items() if provider != self.provider_name for node in nodes
        )


def _options(ort: Any, threads: int, optimise: bool, spin: bool = True) -> Any:
    """Session options: fixed threads, silent, and threads that soon sleep when there is nothing to run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    # Sessions take turns on few cores when models are compared. By default a session's threads spin for 40 ms after its
    # last run, in the other's time; `force_spinning_stop` wakes them for every run, which makes a run of 50 us half as
    # long again (benchmarks/measurement.py, two threads).
    if spin:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN))
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


@functools.cache
def _preload_device_libraries() -> None:
    """Find CUDA and cuDNN where pip installs them; what is missing shows when the provider starts."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        onnxruntime().preload_dlls()


def _loads_on_cpu(ort: Any, source: Any) -> bool:
    """Whether the model itself is sound, so that a failure is the provider's."""
    try:
        ort.InferenceSession(source, _options(ort, 1, optimise=False), providers=[CPU])
    except Exception:
        return False
    return True


def library_error(full: str) -> str | None:
    """Why the library of a provider cannot be loaded, in the words of the system's loader; `None` when it can.

    onnxruntime itself only logs this, and then runs on the CPU.
    """
    short = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}.get(full)
    if short is None:
        return None
    library = Path(onnxruntime().__file__).parent / "capi" / f"libonnxruntime_providers_{short}.so"
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    except OSError as error:
        return str(error)
    return None


def _not_started(provider: str, cause: str | None) -> ProviderError:
    return ProviderError(
        "provider.unavailable",
        f"onnxruntime could not start provider `{provider}`",
        cause=cause,
        hint=f"lepton doctor --provider {provider}   or run with --provider cpu",
    )


#: `/onnxruntime_src/onnxruntime/core/graph/graph.cc:123 ` before what happened there.
_SOURCE = re.compile(r"(?<![\w/])[\w/.+-]+\.(?:cc|cpp|h|hpp|cuh?):\d+ ")
_TYPES = {"float": "float32", "double": "float64"}
_FLOATS = frozenset({"float16", "float32", "float64"})


def _info(argument: Any) -> TensorInfo:
    kind = str(argument.type)
    dtype = kind[len("tensor(") : -1] if kind.startswith("tensor(") else kind
    shape = None if argument.shape is None else tuple(argument.shape)
    return TensorInfo(argument.name, _TYPES.get(dtype, "str" if dtype == "string" else dtype), shape)


def one_line(error: BaseException) -> str:
    """An onnxruntime message as one line, without its prefix and the paths of source files."""
    text = " ".join(str(error).split())
    if "] : " in text[:40]:
        text = text.split(" : ", 2)[-1]
    return cause_of(_SOURCE.sub("", text) or type(error).__name__)
