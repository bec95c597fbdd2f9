"""Runs one other tool on one model, in that tool's own Python environment; imports nothing of lepton.

    PYTHON benchmarks/quantization_peer.py TOOL --model M.onnx --calibration C.npz --out Q.onnx [--transformer]

C.npz holds arrays named after the model's inputs, samples on the first axis. Every tool runs with its own defaults.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx


def samples(options: argparse.Namespace) -> list[dict[str, np.ndarray]]:
    """Calibration samples one by one, or in the model's own fixed batch."""
    graph = onnx.load(options.model, load_external_data=False).graph
    inputs = [value for value in graph.input if value.name not in {tensor.name for tensor in graph.initializer}]
    batch = inputs[0].type.tensor_type.shape.dim[0].dim_value or 1
    with np.load(options.calibration) as arrays:
        feeds = {value.name: arrays[value.name] for value in inputs}
    count = len(next(iter(feeds.values())))
    return [
        {name: array[start : start + batch] for name, array in feeds.items()}
        for start in range(0, count - batch + 1, batch)
    ]


def nncf(options: argparse.Namespace) -> None:
    import nncf as tool

    data = samples(options)
    kind = {"model_type": tool.ModelType.TRANSFORMER} if options.transformer else {}
    onnx.save(tool.quantize(onnx.load(options.model), tool.Dataset(data), subset_size=len(data), **kind), options.out)


def neural_compressor(options: argparse.Namespace, approach: str = "static") -> None:
    from neural_compressor import PostTrainingQuantConfig, quantization

    class Loader:
        batch_size = 1
        data = samples(options)

        def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], int]]:
            return ((sample, 0) for sample in self.data)

        def __len__(self) -> int:
            return len(self.data)

    static = {"quant_format": "QDQ", "calibration_sampling_size": [len(Loader())]} if approach == "static" else {}
    config = PostTrainingQuantConfig(approach=approach, backend="default", device="cpu", **static)
    quantization.fit(str(options.model), config, calib_dataloader=Loader()).save(str(options.out))


def neural_compressor_dynamic(options: argparse.Namespace) -> None:
    neural_compressor(options, "dynamic")


def onnx_neural_compressor(options: argparse.Namespace) -> None:
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import QuantFormat, config, quantize

    class Reader(data_reader.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.data = samples(options)
            self.rewind()

        def rewind(self) -> None:
            self.left = iter(self.data)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    reader = Reader()
    settings = config.StaticQuantConfig(
        calibration_data_reader=reader,
        per_channel=True,
        calibration_sampling_size=len(reader.data),
        quant_format=QuantFormat.QDQ,
    )
    quantize(str(options.model), str(options.out), settings)


TOOLS: dict[str, Callable[[argparse.Namespace], None]] = {
    "nncf": nncf,
    "neural-compressor": neural_compressor,
    "neural-compressor-dynamic": neural_compressor_dynamic,
    "onnx-neural-compressor": onnx_neural_compressor,
}


def main() -> None:
    """Quantize one model with one tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--transformer", action="store_true")
    options = parser.parse_args()
    TOOLS[options.tool](options)


if __name__ == "__main__":
    main()
