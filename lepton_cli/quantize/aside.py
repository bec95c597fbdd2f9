"""Names that onnxruntime's quantizers would give once more, kept out of their way.

The quantizers call what they add after what is there (`x_scale`, `x_quantized`, `x_QuantizeLinear`), and do not look
whether the model has such a name already: weights are overwritten then, and graphs come out with cycles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count

import onnx_ir as ir

from lepton_cli.model import io

#: What the quantizers append.
_APPENDED = re.compile("_(quant|scale|zero_point|QuantizeLinear|DequantizeLinear|output_|cast)")
#: Ends a name that stands aside; nothing that is appended ends so.
_ASIDE = "\u00b7"


def set_aside(model: ir.Model) -> tuple[ir.Model, dict[str, str]]:
    """The model, or a copy without names that a quantizer may give; the names that changed, and what they are now."""
    names = {named.name or "" for named in _named(model)}
    moved = {
        name: name + _ASIDE
        for name in names
        if any(name[: match.start()] in names for match in _APPENDED.finditer(name, 1))
    }
    if not moved:
        return model, {}
    copy = io.clone(model)
    for named in list(_named(copy)):
        if named.name in moved:
            named.name = moved[named.name]
    return copy, moved


def put_back(model: ir.Model, moved: Mapping[str, str]) -> None:
    """Give the names back, in place; what a quantizer added under one of them gets a number."""
    if not moved:
        return
    old = {aside: name for name, aside in moved.items()}
    every = list(_named(model))
    taken = {named.name or "" for named in every} | set(moved)
    for named in every:
        name = named.name or ""
        if name in moved or (_ASIDE in name and name not in old):
            wanted = name.replace(_ASIDE, "")
            named.name = next(free for n in count(1) if (free := f"{wanted}_{n}") not in taken)
            taken.add(named.name)
    for named in every:
        if named.name in old:
            named.name = old[named.name]


def renamed(names: Iterable[str], moved: Mapping[str, str]) -> frozenset[str]:
    """These names as they are now."""
    return frozenset(moved.get(name, name) for name in names)


def _named(model: ir.Model) -> Iterator[ir.Node | ir.Value]:
    """Nodes and values of all graphs, each once."""
    for graph in model.graphs():
        seen = dict.fromkeys((*graph.inputs, *graph.initializers.values()))
        yield from seen
        for node in graph:
            yield node
            yield from (value for value in node.outputs if value.name)
