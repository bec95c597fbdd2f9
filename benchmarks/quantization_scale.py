"""What quantization costs: memory for a 2.4 GB model, memory and time of calibration at 224x224.

Every run is a process tree of its own; its resident memory is summed over the tree 50 times a second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lepton_cli.data.synthetic import synthetic
from lepton_cli.tensors import TensorInfo

#: 36 matrices of 4096 x 4096 float32 are 2.4 GB.
SIDE, LAYERS = 4096, 36
RECIPES = {
    "quantize.weights int4": "{step: quantize.weights, bits: 4}",
    "quantize.weights int8": "{step: quantize.weights, bits: 8}",
    "quantize.dynamic": "{step: quantize.dynamic}",
}
#: onnxruntime keeps every activation: more samples than this do not fit a modest machine.
MOST_FOR_ONNXRUNTIME = 200
METHODS = ("minmax", "percentile", "entropy")


def memory() -> None:
    """Peak memory of `lepton compress` on a 2.4 GB model of MatMuls with external data."""
    print("\n| step on a 2.4 GB model | peak memory of the process tree | seconds | result |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = _large(folder)
        for name, step in RECIPES.items():
            recipe = folder / "recipe.yaml"
            recipe.write_text(f"version: 1\nsteps:\n  - {step}\n")
            command = [sys.executable, "-m", "lepton_cli", "compress", str(path), "-r", str(recipe)]
            peak, seconds, code = watched([*command, "-o", str(folder / "out")])
            result = sum(file.stat().st_size for file in (folder / "out").glob("*.onnx*")) / 1e6
            print(f"| {name} | {peak:.0f} MB | {seconds:.0f} | exit code {code}, {result:.0f} MB |", flush=True)


def _large(folder: Path) -> Path:
    """MatMuls one after another, weights written matrix by matrix."""
    nodes, weights = [], []
    random = np.random.default_rng(0)
    with (folder / "large.data").open("wb") as stream:
        for i in range(LAYERS):
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "large.data"), ("offset", stream.tell()), ("length", SIDE * SIDE * 4)):
                tensor.external_data.add(key=key, value=str(value))
            random.standard_normal((SIDE, SIDE), dtype=np.float32).__imul__(np.float32(SIDE**-0.5)).tofile(stream)
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"MatMul_{i}"))
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["b", SIDE]) for i in (0, LAYERS)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "large.onnx").write_bytes(model.SerializeToString())
    return folder / "large.onnx"


def watched(command: list[str]) -> tuple[float, float, int]:
    """Peak resident memory of the process and its children in MB, seconds, exit code."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.02)
    assert process.stderr is not None
    if process.returncode:
        print(process.stderr.read().decode(errors="replace")[-2000:], file=sys.stderr)
    return peak / 1e6, time.perf_counter() - started, process.returncode


def _resident(pid: int) -> int:
    """Bytes of the process and all its descendants; 0 for one that has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text().split()]  # fmt: skip
    except (OSError, IndexError):
        return 0
    return pages * 4096 + sum(_resident(child) for child in children)


def calibration(threads: int) -> None:
    """Peak memory and time of calibrating a ResNet-18 at 224x224, lepton's and onnxruntime's."""
    runs = [("lepton", method, samples) for method in METHODS for samples in (50, 200, 800)]
    runs += [("onnxruntime", method, MOST_FOR_ONNXRUNTIME) for method in METHODS[:2]]
    print("\n| calibration, ResNet-18 at 224x224 | samples | peak memory | seconds of calibration |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "resnet18.onnx"
        path.write_bytes(_resnet18().SerializeToString())
        for tool, method, samples in runs:
            done = Path(temporary) / "seconds"
            job = [tool, method, str(samples), str(threads), str(path), str(done)]
            peak, _, code = watched([sys.executable, __file__, *job])
            seconds = float(done.read_text()) if code == 0 else float("nan")
            print(f"| {tool} {method} | {samples} | {peak:.0f} MB | {seconds:.1f} |", flush=True)


def _resnet18() -> onnx.ModelProto:
    """ResNet-18 with folded batch norm and random weights."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def op(kind: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"t{len(nodes)}"], name=f"{kind}_{len(nodes)}", **attributes))
        return str(nodes[-1].output[0])

    def constant(array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{len(weights)}"))
        return str(weights[-1].name)

    def conv(x: str, cin: int, cout: int, k: int, stride: int = 1) -> str:
        weight = random.normal(0, (1.5 / (cin * k * k)) ** 0.5, (cout, cin, k, k))
        bias = constant(random.normal(0, 0.1, cout))
        return op("Conv", x, constant(weight), bias, pads=[k // 2] * 4, strides=[stride, stride])

    x = op("Relu", conv("x", 3, 64, 7, 2))
    x = op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    wide = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        y = conv(op("Relu", conv(x, wide, width, 3, stride)), width, width, 3)
        x = op("Relu", op("Add", y, x if wide == width and stride == 1 else conv(x, wide, width, 1, stride)))
        wide = width
    x = op("Flatten", op("GlobalAveragePool", x))
    op("Gemm", x, constant(random.normal(0, 512**-0.5, (1000, 512))), constant(np.zeros(1000)), transB=1)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 224, 224]),
            helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["b", 1000])]  # fmt: skip
    graph = helper.make_graph(nodes, "resnet18", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _calibrate(tool: str, method: str, samples: int, threads: int, path: Path) -> float:
    """Seconds from the float model to a range per tensor."""
    from quantization_arms import context

    from lepton_cli.model import io
    from lepton_cli.probe import calibration
    from lepton_cli.quantize import choose
    from lepton_cli.runtime import onnxruntime

    onnxruntime()
    # Made when they are asked for, so that the data take no memory of their own.
    images = TensorInfo("x", "float32", (None, 3, 224, 224))
    data = synthetic([images], seed=0, samples=samples, batch=32)
    if tool == "lepton":
        model = io.load(path).model
        here = context(model, data, threads, path.parent)
        started = time.perf_counter()
        names = choose.activations(model, choose.candidates(model, {node.name or "" for node in model.graph}))
        calibration.collect(model, names, data, here).limits(method)  # type: ignore[arg-type]
        return time.perf_counter() - started
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    batches = data.batches(1)

    class Reader:
        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(batches, None)
            return None if part is None else part.feeds

    kind = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}[method]
    started = time.perf_counter()
    calibrator = create_calibrator(path, calibrate_method=kind, augmented_model_path=str(path.with_suffix(".aug")))
    calibrator.collect_data(Reader())
    calibrator.compute_data()
    return time.perf_counter() - started


def main() -> None:
    """One calibration; started by `calibration` in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("tool", str), ("method", str), ("samples", int), ("threads", int), ("model", Path)):
        parser.add_argument(name, type=kind)
    parser.add_argument("seconds", type=Path)
    options = parser.parse_args()
    seconds = _calibrate(options.tool, options.method, options.samples, options.threads, options.model)
    options.seconds.write_text(str(seconds))


if __name__ == "__main__":
    main()
