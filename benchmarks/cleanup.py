"""Nodes left by each tool that cleans up a graph, model by model, and what `simplify` changed of the outputs and time.

    python benchmarks/cleanup.py MODEL_OR_FOLDER... [--only TOOL,...]

Counted are the nodes of the main graph and of the graphs inside nodes, without Constant. Tools that are not installed
are left out (`pip install onnxslim onnxsim`); `-` is a tool that fails, or writes what onnxruntime does not load.
`basic` is what onnxruntime's own optimiser saves at the level ORT_ENABLE_BASIC. `dB`: least agreement over the parts of
all outputs of `simplify` with plain onnxruntime's on the original, on random inputs (`equal`: bit for bit).
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

TOOLS = ("lepton", "onnxslim", "onnxsim", "onnxscript", "basic")
#: Seconds a tool may take for a model.
LONGEST = 300


def nodes(path: Path) -> int:
    """Nodes of a file, inner graphs and the bodies of functions included, Constant left out."""
    model = onnx.load(path, load_external_data=False)
    bodies = {(function.domain, function.name): function for function in model.functions}

    def count(graph: onnx.GraphProto | onnx.FunctionProto) -> int:
        found = 0
        for node in graph.node:
            body = bodies.get((node.domain, node.op_type))
            found += count(body) if body is not None else node.op_type != "Constant"
            for attribute in node.attribute:
                found += sum(count(inner) for inner in (*attribute.graphs, attribute.g) if inner.node)
        return found

    return count(model.graph)


def make(tool: str, source: Path, target: Path) -> None:
    """Write what a tool makes of a model."""
    if tool == "basic":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath, options.log_severity_level = str(target), 4
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    elif tool == "onnxslim":
        import onnxslim

        onnx.save(onnxslim.slim(str(source)), target)
    elif tool == "onnxsim":
        import onnxsim

        made, equal = onnxsim.simplify(onnx.load(source))
        assert equal
        onnx.save(made, target)
    elif tool == "onnxscript":
        import onnxscript.optimizer

        onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), target)
    else:
        import lepton_cli
        from lepton_cli.graph.spec import Simplify
        from lepton_cli.model import io

        io.save(lepton_cli.apply(source, Simplify()).model, target)


def agreement(before: Path, after: Path) -> str:
    """Least agreement in dB over the parts of all outputs, by plain onnxruntime on the same random inputs."""
    import onnxruntime

    from lepton_cli.graph.feeds import default_feeds
    from lepton_cli.model import io

    sizes = default_feeds(io.load(before).model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    first, second = (
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in (before, after)
    )
    random, least = np.random.default_rng(0), math.inf
    for _ in range(3):
        feeds = {}
        for value in first.get_inputs():
            shape, kind = sizes[value.name], value.type.removeprefix("tensor(").removesuffix(")")
            if kind in ("float", "float16", "double"):
                feeds[value.name] = random.random(shape).astype({"float": np.float32}.get(kind, kind))
            else:
                feeds[value.name] = random.integers(0, 2, shape).astype(kind)
        try:
            results = first.run(None, feeds)
        except Exception:  # onnxruntime's own types
            return "not on random inputs"
        for one, other in zip(results, second.run(None, feeds), strict=True):
            one, other = np.asarray(one), np.asarray(other)
            if one.shape != other.shape or one.dtype != other.dtype:
                return "other shape or type"
            if not np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
                signal = float(np.square(one.astype(np.float64)).sum())
                noise = float(np.square(one.astype(np.float64) - other.astype(np.float64)).sum())
                least = min(least, 10 * math.log10(signal / noise) if signal and noise else -math.inf)
    return "equal" if math.isinf(least) and least > 0 else f"{least:.0f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--only", default=",".join(TOOLS))
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make[0], arguments.models[0], Path(arguments.make[1]))
        return
    tools = [t for t in arguments.only.split(",") if t in ("lepton", "basic") or importlib.util.find_spec(t)]
    files = [f for given in arguments.models for f in (sorted(given.rglob("*.onnx")) if given.is_dir() else [given])]
    print("| model | original | " + " | ".join(tools) + " | dB |\n|" + "---|" * (len(tools) + 3))
    behind = 0
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            counts: dict[str, int] = {}
            for tool in tools:
                target = Path(folder, f"{tool}.onnx")
                command = [sys.executable, __file__, str(file), "--make", tool, str(target)]
                try:
                    subprocess.run(command, check=True, capture_output=True, timeout=LONGEST)
                    counts[tool] = nodes(target)
                except subprocess.SubprocessError as error:
                    print(file.name, tool, (getattr(error, "stderr", b"") or b"").decode()[-300:], file=sys.stderr)
            said = agreement(file, Path(folder, "lepton.onnx")) if "lepton" in counts else "-"
            cells = [str(counts.get(tool, "-")) for tool in tools]
            late = min(counts.values(), default=0) < counts.get("lepton", math.inf)
            behind += late
            print(f"| {file.stem}{' *' if late else ''} | {nodes(file)} | {' | '.join(cells)} | {said} |", flush=True)
    print(f"\n{behind} of {len(files)} models have fewer nodes with another tool (*)")


if __name__ == "__main__":
    main()
