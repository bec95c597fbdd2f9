"""What a model's input or output looks like; shared by graph, data and runtime. Standard library only."""

from __future__ import annotations

import dataclasses

#: A size: a number where it is fixed, the name of a symbolic one, `None` for an unnamed open one.
Dim = int | str | None


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A model input or output.

    `dtype` is numpy's name (`float32`, `int64`, `bfloat16`, `str`). `shape` has a number for a fixed dimension, the
    name of a symbolic one, `None` for an unnamed dynamic one; `shape` itself is `None` when the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None
    #: For indices into a table the model holds: how many rows the shortest has.
    rows: int | None = dataclasses.field(default=None, compare=False)
    #: Where the graph tells the axis of the samples, -1 that there is none; `None`: shape and names have to.
    batch_axis: int | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name} {self.dtype}"
        return f"{self.name} {self.dtype} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    @property
    def floating(self) -> bool:
        """Whether it holds floats."""
        return self.dtype in ("float16", "bfloat16", "float32", "float64")

    def concrete(self, batch: int, other: int = 1) -> tuple[int, ...]:
        """The shape with `batch` for a dynamic first dimension and `other` for every further dynamic one."""
        shape = self.shape or ()
        return tuple(d if isinstance(d, int) else (batch if i == 0 else other) for i, d in enumerate(shape))
