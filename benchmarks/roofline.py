"""How near the kernels come to what the processor can do: GMAC/s of every layer, in float and in int8, on one thread.

    python benchmarks/roofline.py MODEL.onnx... [--batch 1 32] [--data C.npz] [--all] [--openvino PYTHON]

Kernels of whole models, by onnxruntime's own profile. It knows wall time alone: medians of some runs, which together
are made to give what a run without profiling takes by the thread's CPU clock. Beside them, by the same clock, the
product of matrices that the layer is, alone and with the weight known (the faster of QLinearMatMul and MatMulInteger),
and the most that any large product reaches: the clock of a virtual machine's core is not known, so the ceiling of its
instruction set is measured, and told as the clock that it would take.

`--openvino`: instead, what a user would pick in onnxruntime's place (`openvino_peer.py`, in an environment with
openvino, nncf and onnxruntime), on the int8 file that lepton makes with its defaults, and on OpenVINO's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import prod
from pathlib import Path
from time import thread_time_ns
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from quantization_arms import context

import lepton_cli as lepton
from lepton_cli.data.open import synthetic
from lepton_cli.graph import cost
from lepton_cli.graph.feeds import sized
from lepton_cli.graph.shapes import concrete
from lepton_cli.graph.spec import Simplify
from lepton_cli.machine import machine
from lepton_cli.model import io
from lepton_cli.quantize import profiling
from lepton_cli.quantize.spec import QuantizeStatic
from lepton_cli.runtime import Session, Values
from lepton_cli.timing.bursts import warm_up

#: Multiply-accumulates of 8 bits in one instruction, and how many of them a core begins in a cycle: Intel's and AMD's
#: optimisation guides. Zen 4 runs those of 512 bits in two halves, and servers of Intel in two units.
PER_CYCLE = {"amx_int8": (16384, "1/16"), "avx512_vnni": (64, "1 or 2"), "avx_vnni": (32, "2")}
#: Products large enough to be bound by nothing but the multipliers, M, N and K; the best of them is the ceiling.
LARGE = ((256, 256, 256), (384, 512, 512), (512, 512, 1024), (1024, 1024, 1024), (1024, 512, 2048))
#: Runs of a profile, fewer where one takes longer: so many seconds in all.
RUNS, SECONDS = 60, 12.0
#: Calls of a product that are timed.
TIMES = 5


@dataclasses.dataclass(frozen=True)
class Shape:
    """A layer as the product that it is: [M, K] times [K, N], `groups` of them."""

    operator: str
    window: str
    m: int
    n: int
    k: int
    groups: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.groups * self.m * self.n * self.k

    def __str__(self) -> str:
        product = f"{self.m} x {self.n} x {self.k}"
        return f"{self.operator} {self.window} {product}" + (f" ({self.groups} groups)" if self.groups > 1 else "")


@dataclasses.dataclass
class Row:
    """Layers of one shape: how many, and what all of them took."""

    count: int = 0
    int8: float = 0.0
    plain: float = 0.0


def main() -> None:
    """A table for each model and batch, and the widest gaps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--data", type=Path, help="NPZ with arrays by input; made-up samples otherwise")
    parser.add_argument("--all", action="store_true", help="rows of less than 1 %% of the int8 model's time too")
    parser.add_argument("--openvino", type=Path, metavar="PYTHON", help="compare with OpenVINO of this environment")
    options = parser.parse_args()
    print(f"{machine().processor}: {', '.join(machine().instructions)}; one thread", flush=True)
    if options.openvino:
        for path in options.models:
            beside_openvino(options.openvino.absolute(), path, options.data, options.batch)
        return
    floats, ints = ceiling(np.dtype(np.float32)), ceiling(np.dtype(np.int8))
    print(f"ceiling, the best of {len(LARGE)} large products: {floats:.0f} GMAC/s in float, {ints:.0f} in int8")
    print(_cycles(ints))
    for path in options.models:
        given = io.load(path).model
        data = samples(given, options.data)
        made = int8(path, data)
        for batch in batches(given, options.batch):
            table(path.stem, given, made, data, batch, ints, options.all)


def batches(model: ir.Model, wanted: Sequence[int]) -> list[int]:
    """Those that the model takes."""
    first = io.inputs(model)[0].shape
    return [batch for batch in wanted if not first or not isinstance(first[0], int) or first[0] == batch]


def samples(model: ir.Model, path: Path | None) -> lepton.Arrays:
    """What ranges are taken from and models run on."""
    if path is not None:
        with np.load(path) as arrays:
            return lepton.Arrays(dict(arrays))
    parts = [batch.feeds for batch in synthetic(sized(model), seed=1, samples=32, batch=1).batches()]
    return lepton.Arrays({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def int8(path: Path, data: lepton.Arrays) -> ir.Model:
    """Every layer in int8 that can be, whatever it costs."""
    everywhere = QuantizeStatic(speed_guard=False, fidelity_guard=False, effort="quick", least_gain=False)
    return lepton.apply(path, Simplify(if_possible=True), everywhere, data=data).model


def table(
    name: str, given: ir.Model, made: ir.Model, data: lepton.Arrays, batch: int, most: float, every: bool
) -> None:
    """Print what the layers of one model reach at one batch."""
    feeds = {key: np.resize(array, (batch, *array.shape[1:])) for key, array in data.feeds.items()}
    plain = lepton.apply(given, Simplify(if_possible=True)).model
    slow, fast = timed(made, feeds), timed(plain, feeds)
    rows: dict[Shape, Row] = defaultdict(Row)
    for node, shape in shapes(made, feeds):
        found = profiling.times(node, slow, fast)
        if found.int8 is not None:
            row = rows[shape]
            row.count, row.int8, row.plain = row.count + 1, row.int8 + found.int8, row.plain + (found.plain or np.nan)
    whole = sum(kernel.microseconds for kernel in slow.values())
    before = sum(kernel.microseconds for kernel in fast.values())
    layers, within = sum(row.count for row in rows.values()), sum(row.int8 for row in rows.values())
    print(f"\n{name}, batch {batch}: float {before:.0f} us, int8 {whole:.0f} us ({within:.0f} in {layers} layers)")
    print("\n| layer, M x N x K | number | float us | int8 us | float GMAC/s | int8 | product alone | of the ceiling |")
    print("|---|---|---|---|---|---|---|---|")
    gaps = []
    for shape, row in sorted(rows.items(), key=lambda one: -one[1].int8):
        rate = shape.macs * row.count / 1e3
        alone = product(shape.m, shape.n, shape.k, np.dtype(np.int8)) if shape.groups == 1 else np.nan
        gaps.append((row.int8 - row.count * shape.macs / 1e3 / alone, shape))
        if every or row.int8 > 0.01 * whole:
            cells = [f"{shape}", f"{row.count}", f"{row.plain / row.count:.1f}", f"{row.int8 / row.count:.1f}",
                     f"{rate / row.plain:.1f}", f"{rate / row.int8:.1f}", f"{alone:.1f}",
                     f"{100 * rate / row.int8 / most:.0f} %"]  # fmt: skip
            print(f"| {' | '.join(cells)} |".replace(" nan ", " - "))
    widest = sorted((gap for gap in gaps if gap[0] > 0.02 * whole), key=lambda one: -one[0])[:3]
    lost = ", ".join(f"{shape} {100 * gap / whole:.0f} %" for gap, shape in widest)
    print(f"\nof the time lost against the products alone: {lost or 'nothing'}")
    others = sorted(_others(slow).items(), key=lambda one: -one[1])
    print("beside them: " + ", ".join(f"{op} {100 * us / whole:.0f} %" for op, us in others[:5]), flush=True)


def beside_openvino(python: Path, path: Path, given: Path | None, wanted: Sequence[int]) -> None:
    """Print how fast a model and its int8 are in OpenVINO."""
    model = io.load(path).model
    data = samples(model, given)
    transformer = any(node.op_type in ("Softmax", "LayerNormalization") for node in model.graph) and not any(
        node.op_type == "Conv" for node in model.graph
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = lepton.apply(path, Simplify(if_possible=True), QuantizeStatic(), data=data).model
        (folder / "int8.onnx").write_bytes(io.to_bytes(made))
        feeds: dict[str, Any] = dict(data.feeds)
        np.savez(folder / "data.npz", **feeds)
        command = [str(python), str(Path(__file__).with_name("openvino_peer.py")), "--model", str(path.absolute())]
        command += ["--int8", str(folder / "int8.onnx"), "--data", str(folder / "data.npz")]
        command += ["--batch", *map(str, batches(model, wanted)), *(["--transformer"] if transformer else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        print(f"{path.stem}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}", flush=True)
        return
    print(f"\n| {path.stem}, batch | arm | over onnxruntime's float | us | SQNR |\n|---|---|---|---|---|")
    for row in json.loads(done.stdout.splitlines()[-1]):
        speedup = f"{row['speed']:.2f}x ({row['low']:.2f} to {row['high']:.2f})"
        print(f"| {row['batch']} | {row['arm']} | {speedup} | {row['us']:.0f} | {row['sqnr_db']:.1f} dB |", flush=True)


def timed(model: ir.Model, feeds: Values) -> dict[str, profiling.Kernel]:
    """Kernels of the model, in the thread's CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        here = context(model, lepton.Arrays(feeds), 1, Path(folder))
        burst = warm_up(Session(io.payload(model, Path(folder)), threads=1).caller(feeds), thread_time_ns)
        found = profiling.profile(model, feeds, here, int(np.clip(SECONDS / burst.seconds, 3, RUNS)))
        taken = 1e6 * float(np.median(np.concatenate([burst.time(thread_time_ns) for _ in range(TIMES)])))
    share = taken / sum(kernel.microseconds for kernel in found.values())
    return {name: profiling.Kernel(kernel.operator, kernel.microseconds * share) for name, kernel in found.items()}


def shapes(model: ir.Model, feeds: Values) -> Iterator[tuple[ir.Node, Shape]]:
    """Every layer of the int8 model with weights, as the product that it is."""
    known = concrete(model, {name: array.shape for name, array in feeds.items()})
    counted = cost.macs(model, known)
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.name not in counted:
            continue
        weight, output = known[node.inputs[1].name or ""], known[node.outputs[0].name or ""]
        if node.op_type == "Conv":
            groups = node.attributes.get_int("group", 1)
            n, k, m = weight[0] // groups, prod(weight[1:]), output[0] * prod(output[2:])
            steps = node.attributes.get_ints("strides", ())
            window = "x".join(map(str, weight[2:])) + (f"/{max(steps)}" if steps and max(steps) > 1 else "")
        elif len(weight) == 2:
            groups, window, n = 1, "", output[-1]
            m, k = prod(output[:-1]), counted[node.name] // prod(output)
        else:
            continue
        yield node, Shape(node.op_type, window, m, n, k, groups)


@functools.cache
def product(m: int, n: int, k: int, kind: np.dtype[np.generic]) -> float:
    """GMAC/s of a product with a constant weight by the thread's clock; the fastest operator of onnxruntime counts."""
    operators = ("MatMul",) if kind == np.float32 else ("QLinearMatMul", "MatMulInteger")
    return max(m * n * k / _seconds(m, n, k, operator) / 1e9 for operator in operators)


def _seconds(m: int, n: int, k: int, operator: str) -> float:
    random = np.random.default_rng(0)
    whole = operator != "MatMul"
    weight = random.integers(-127, 128, (k, n)).astype(np.int8 if whole else np.float32)
    scale, zero, mid = (numpy_helper.from_array(np.array(value), name) for value, name in
                        ((np.float32(0.01), "scale"), (np.int8(0), "zero"), (np.uint8(128), "mid")))  # fmt: skip
    inputs = {
        "MatMul": ["x", "w"],
        "MatMulInteger": ["x", "w", "mid", "zero"],
        "QLinearMatMul": ["x", "scale", "mid", "w", "scale", "zero", "scale", "mid"],
    }[operator]
    given = TensorProto.UINT8 if whole else TensorProto.FLOAT
    made = TensorProto.INT32 if operator == "MatMulInteger" else given
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"])],
        "product",
        [helper.make_tensor_value_info("x", given, [m, k])],
        [helper.make_tensor_value_info("y", made, [m, n])],
        [numpy_helper.from_array(weight, "w"), *((scale, zero, mid) if whole else ())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = random.integers(0, 256, (m, k)).astype(np.uint8 if whole else np.float32)
    burst = warm_up(Session(model.SerializeToString(), threads=1).caller({"x": x}), thread_time_ns, 0.2)
    return float(np.median(np.concatenate([burst.time(thread_time_ns) for _ in range(TIMES)])))


def ceiling(kind: np.dtype[np.generic]) -> float:
    """The most GMAC/s that a large product reaches."""
    return max(product(*shape, kind) for shape in LARGE)


def _cycles(reached: float) -> str:
    best = next((name for name in PER_CYCLE if name in machine().instructions), None)
    if best is None:
        return "no instruction set for products of 8 bits is known here"
    macs, number = PER_CYCLE[best]
    clocks = " or ".join(f"{reached / macs / float(Fraction(one)):.2f}" for one in number.split(" or "))
    return f"{best} does {macs} in an instruction, {number} a cycle: it would take {clocks} GHz"


def _others(kernels: dict[str, profiling.Kernel]) -> dict[str, float]:
    """Microseconds of everything but the layers, by operator."""
    found: dict[str, float] = defaultdict(float)
    for kernel in kernels.values():
        if not kernel.operator.startswith(LAYERS):
            found[kernel.operator] += kernel.microseconds
    return found


#: Kernels of layers in int8.
LAYERS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger")


if __name__ == "__main__":
    main()
