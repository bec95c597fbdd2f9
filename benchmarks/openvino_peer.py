"""Times a model and lepton's int8 of it in OpenVINO beside onnxruntime, in an environment with both; nothing of lepton.

    PYTHON benchmarks/openvino_peer.py --model M.onnx --int8 Q.onnx --data C.npz [--batch 1 32] [--transformer]

C.npz holds arrays named after the model's inputs, samples on the first axis. One thread, bursts in turn, CPU time of
the process: others on the machine do not count. OpenVINO takes models of one fixed batch, and on processors that have
bfloat16 computes float models in it unless told otherwise: both are timed. Its own int8 is that of `nncf.quantize`. The
last line is a JSON list with a row for each batch and arm: speed over onnxruntime's float (median, quartiles) and the
signal over the noise of the output that is furthest off, in decibels.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Bursts of each arm, and CPU seconds of one.
ROUNDS, BURST = 15, 0.15

Feeds = dict[str, np.ndarray]
Call = Callable[[], list[np.ndarray]]


def with_onnxruntime(path: Path, feeds: Feeds) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def with_openvino(model: Any, feeds: Feeds, **settings: str) -> Call:
    import openvino

    fixed = model.clone()
    fixed.reshape({name: list(array.shape) for name, array in feeds.items()})
    compiled = openvino.Core().compile_model(fixed, "CPU", {"INFERENCE_NUM_THREADS": 1, **settings})
    request = compiled.create_infer_request()

    def run() -> list[np.ndarray]:
        request.infer(feeds, share_inputs=True)
        return [request.get_tensor(output).data for output in compiled.outputs]

    return run


def arms(options: argparse.Namespace, feeds: Feeds, own: Any) -> dict[str, Call]:
    import openvino

    core = openvino.Core()
    plain, made = core.read_model(options.model), core.read_model(options.int8)
    found = {
        "float, onnxruntime": with_onnxruntime(options.model, feeds),
        "lepton's int8, onnxruntime": with_onnxruntime(options.int8, feeds),
        "float32, OpenVINO": with_openvino(plain, feeds, INFERENCE_PRECISION_HINT="f32"),
    }
    if core.get_property("CPU", "INFERENCE_PRECISION_HINT") != openvino.Type.f32:
        found["its default (bfloat16), OpenVINO"] = with_openvino(plain, feeds)
    return {
        **found,
        "lepton's int8, OpenVINO": with_openvino(made, feeds),
        "its own int8, OpenVINO": with_openvino(own, feeds),
    }


def quantized(options: argparse.Namespace, data: Feeds) -> Any:
    """OpenVINO's own int8, calibrated on all samples."""
    import nncf
    import openvino

    count = len(next(iter(data.values())))
    samples = [{name: array[at : at + 1] for name, array in data.items()} for at in range(count)]
    kind = {"model_type": nncf.ModelType.TRANSFORMER} if options.transformer else {}
    return nncf.quantize(
        openvino.Core().read_model(options.model), nncf.Dataset(samples), subset_size=len(samples), **kind
    )


def seconds(calls: dict[str, Call]) -> dict[str, np.ndarray]:
    """CPU seconds of a run, one number a burst; the bursts of all arms in turn, each time in another order."""
    random, names = np.random.default_rng(0), list(calls)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS + 1):
        for name in random.permutation(names):
            call, runs, started = calls[name], 0, time.process_time()
            while (spent := time.process_time() - started) < BURST:
                call()
                runs += 1
            found[name].append(spent / runs)
    return {name: np.array(times[1:]) for name, times in found.items()}


def decibels(reference: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Signal over noise of the output that is furthest off."""
    ratios = [
        float(np.square(a.astype(np.float64)).sum()) / max(float(np.square(a.astype(np.float64) - b).sum()), 1e-30)
        for a, b in zip(reference, found, strict=True)
    ]
    return 10 * float(np.log10(min(ratios)))


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--int8", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--transformer", action="store_true")
    options = parser.parse_args()
    with np.load(options.data) as arrays:
        data = dict(arrays)
    own = quantized(options, data)
    rows = []
    for batch in options.batch:
        feeds = {
            name: np.ascontiguousarray(np.resize(array, (batch, *array.shape[1:]))) for name, array in data.items()
        }
        calls = arms(options, feeds, own)
        outputs = {name: [np.array(one) for one in call()] for name, call in calls.items()}
        times = seconds(calls)
        reference = "float, onnxruntime"
        for name in calls:
            low, middle, high = np.quantile(times[reference] / times[name], (0.25, 0.5, 0.75))
            rows.append({"batch": batch, "arm": name, "speed": middle, "low": low, "high": high,
                         "us": 1e6 * float(np.median(times[name])),
                         "sqnr_db": decibels(outputs[reference], outputs[name])})  # fmt: skip
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
