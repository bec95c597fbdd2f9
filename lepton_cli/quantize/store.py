"""Where quantized weights go while a model is made: memory, one file, or nowhere where only sizes are asked for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

#: Values that were made of a weight, the energies of the weight and of its error, and the weight itself (kept, so that
#: its number stays its own), by that number and the form.
Shared = dict[tuple[Any, ...], tuple[list[ir.Value], float, float, ir.TensorProtocol]]


class WeightStore:
    """Keeps results in memory, or appends them to one file and hands out references to it.

    `empty`: the arrays are not filled, as only sizes are asked for (`lepton plan`); no two are equal all the same.
    """

    def __init__(self, workdir: Path | None, empty: bool = False) -> None:
        self.path = None
        self.end = 0
        self.empty = empty
        if workdir is not None and not empty:
            self.path = Path(tempfile.mkdtemp(dir=workdir)) / "weights.data"

    def keep(self, array: NDArray[Any]) -> ir.TensorProtocol:
        """The array as a tensor without a name yet."""
        if self.empty:
            self.end += 1
            array.reshape(-1).view(np.uint8)[:8] = np.frombuffer(self.end.to_bytes(8, "little"), np.uint8)[
                : array.nbytes
            ]
        if self.path is None:
            return ir.tensor(array)
        start = -(-self.end // 4096) * 4096
        with self.path.open("ab") as stream:
            stream.write(b"\0" * (start - self.end))
            array.tofile(stream)
        self.end = start + array.nbytes
        return ir.ExternalTensor(
            self.path.name,
            start,
            array.nbytes,
            ir.DataType.from_numpy(array.dtype),
            shape=ir.Shape(array.shape),
            name="",
            base_dir=self.path.parent,
        )
