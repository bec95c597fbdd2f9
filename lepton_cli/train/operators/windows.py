"""Windows that slide over the spatial axes of an input: strides, dilations and padding of convolutions and pooling."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from lepton_cli.train.operators.call import OperatorCall


@dataclasses.dataclass(frozen=True)
class Windows:
    """One entry for each spatial axis everywhere; `begin` and `end` are the padded places before and after it."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]

    @property
    def extents(self) -> list[int]:
        """How many places a window spans, holes included."""
        return [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]

    @property
    def symmetric(self) -> bool:
        """Whether both ends are padded alike, which torch's kernels do without a copy."""
        return self.begin == self.end

    def counts(self, sizes: Sequence[int], ceil: bool) -> list[int]:
        """How many windows stand along each axis. `ceil` also counts a last one that hangs over the end, unless it
        would start in the padding.
        """
        found = []
        for size, begin, end, extent, stride in zip(
            sizes, self.begin, self.end, self.extents, self.strides, strict=True
        ):
            room = size + begin + end - extent
            count = (-(-room // stride) if ceil else room // stride) + 1
            if ceil and (count - 1) * stride >= size + begin:
                count -= 1
            found.append(count)
        return found

    def filled(self, x: Tensor, value: float, ceil: bool) -> Tensor:
        """The input padded with the value as far as its windows reach, so that they fit without padding."""
        places = zip(x.shape[2:], self.counts(x.shape[2:], ceil), self.begin, self.strides, self.extents, strict=True)
        end = [max(0, (count - 1) * stride + extent - begin - size) for size, count, begin, stride, extent in places]
        return padded(x, self.begin, end, value)


def windows(call: OperatorCall, kernel: Sequence[int], sizes: Sequence[int]) -> Windows:
    """As the attributes `strides`, `dilations`, `pads` and `auto_pad` say, for an input of these spatial sizes."""
    rank = len(kernel)
    strides = list(call.get("strides") or [1] * rank)
    dilations = list(call.get("dilations") or [1] * rank)
    pads = list(call.get("pads") or [0] * 2 * rank)
    made = Windows(list(kernel), strides, dilations, pads[:rank], pads[rank:])
    auto = call.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return made
    if auto == "VALID":
        return dataclasses.replace(made, begin=[0] * rank, end=[0] * rank)
    totals = [
        max(0, (-(-size // stride) - 1) * stride + extent - size)
        for size, stride, extent in zip(sizes, strides, made.extents, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (
        dataclasses.replace(made, begin=less, end=more)
        if auto == "SAME_UPPER"
        else dataclasses.replace(made, begin=more, end=less)
    )


def padded(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """The input with places added before and after each spatial axis, or cut off where their number is negative."""
    if not any(begin) and not any(end):
        return x
    pairs = zip(reversed(begin), reversed(end), strict=True)
    return functional.pad(x, [places for pair in pairs for places in pair], value=value)
