"""ConvTranspose as a convolution, where its kernel is its stride: onnxruntime has no int8 kernel for the one.

No two inputs meet in an output then: a 1x1 convolution computes all that an input gives, and moving values puts that in
its place. They are moved with channels last, as int8 convolutions have them, so that one move is left in the end.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from lepton_cli.graph.edit import Editor, array_of
from lepton_cli.model import io
from lepton_cli.quantize import choose

#: Channels in and out at least: fewer are not worth an int8 kernel.
LEAST = 8


def as_convolutions(model: ir.Model, excluded: Collection[str]) -> None:
    """Rewrite, in place, those that are not `excluded` and stand between int8 convolutions then."""
    names = {node.name or "" for node in model.graph if node.name not in excluded and fits(node)}
    if not names:
        return
    trial = io.clone(model)
    _rewrite(trial, names)
    allowed = {node.name or "" for node in trial.graph} - set(excluded)
    chosen = choose.candidates(trial, allowed).between
    _rewrite(model, {name for name in names if f"{name}_channels" in chosen})


def fits(node: ir.Node) -> bool:
    """Whether a node is a ConvTranspose of images of known size whose kernel is its stride, and nothing more."""
    weight, data = array_of(node), node.inputs[0] if node.inputs else None
    if node.op_type != "ConvTranspose" or node.domain or weight is None or weight.ndim != 4 or data is None:
        return False
    if data.shape is None or len(data.shape) != 4 or not all(isinstance(size, int) for size in data.shape[2:]):
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None and array_of(node, 2) is None:
        return False
    kernel = list(weight.shape[2:])
    numbers = {"pads": [0] * 4, "output_padding": [0] * 2, "dilations": [1] * 2}
    return (
        min(weight.shape[:2]) >= LEAST
        and weight.dtype == np.float32
        and node.attributes.get_int("group", 1) == 1
        and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and "output_shape" not in node.attributes
        and list(node.attributes.get_ints("strides", [1, 1])) == kernel
        and all(list(node.attributes.get_ints(name, usual)) == usual for name, usual in numbers.items())
    )


def _rewrite(model: ir.Model, names: set[str]) -> None:
    editor = Editor(model)
    for node in [node for node in model.graph if node.name in names]:
        weight, bias, data = array_of(node), array_of(node, 2), node.inputs[0]
        assert weight is not None
        assert data is not None
        assert data.shape is not None
        inner, outer, high, wide = weight.shape
        rows, columns = (int(size) for size in data.shape[2:])  # type: ignore[arg-type]
        # Channels of the convolution: place in the kernel, then channel.
        kernel = weight.transpose(2, 3, 1, 0).reshape(high * wide * outer, inner, 1, 1)
        inputs = [data, editor.constant(f"{node.name}_weight", np.ascontiguousarray(kernel))]
        if bias is not None:
            inputs.append(editor.constant(f"{node.name}_bias", np.tile(bias, high * wide)))
        places, image = (
            editor.constant(f"{node.name}_{name}_shape", np.array([-1, *sizes], np.int64))
            for name, sizes in (
                ("places", (rows, columns, high, wide * outer)),
                ("image", (rows * high, columns * wide, outer)),
            )
        )
        steps: list[tuple[str, str, list[ir.Value], list[int]]] = [
            ("Transpose", "last", [], [0, 2, 3, 1]),
            ("Reshape", "places", [places], []),
            ("Transpose", "moved", [], [0, 1, 3, 2, 4]),
            ("Reshape", "image", [image], []),
            ("Transpose", "channels", [], [0, 3, 1, 2]),
        ]
        made = [ir.node("Conv", inputs, {"kernel_shape": [1, 1]}, name=node.name)]
        for op, name, more, perm in steps:
            made[-1].outputs[0].type = data.type
            attributes = {"perm": perm} if perm else {}
            made.append(ir.node(op, [made[-1].outputs[0], *more], attributes, name=f"{node.name}_{name}"))
        editor.put(node, made)
