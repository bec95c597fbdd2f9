"""Networks on pictures, as exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.corpus.net import INT64, Feed, Member, Net, Shape, normal


def _pictures(name: str, *shape: int) -> Callable[[np.random.Generator], Feed]:
    return lambda random: {name: normal(random, *shape)}


def vit(batch: int | str, opset: int) -> Any:
    """Patches by a convolution, a class token, two blocks; the token's row decides."""
    net = Net(opset)
    x = net.conv(net.take("pixel_values", [batch, 3, 16, 16]), 3, 32, 4, stride=4, relu=False)
    # pads of two rows and columns make 5 x 5 patches
    x = net.transpose(net.reshape(x, 0, 32, -1), 0, 2, 1)
    token = net.weight(1, 1, 32)
    if isinstance(batch, str):
        token = net.op("Expand", token, net.op("Concat", net.size(x, 0), net.integers(1, 32), axis=0))
    x = net.op("Add", net.op("Concat", token, x, axis=1), net.weight(1, 26, 32))
    for _ in range(2):
        x = net.block(x, 32, 4)
    first = net.op("Gather", net.layer_norm(x, 32), net.whole(0), axis=1)
    return net.proto({"logits": (net.linear(first, 32, 10), [batch, 10])})


def swin() -> Any:
    """Windows that move by half of themselves, a table of relative places, merged patches."""
    net = Net(18)
    x = net.conv(net.take("pixel_values", ["batch", 3, 16, 16]), 3, 16, 3, stride=2, relu=False)
    x = net.transpose(x, 0, 2, 3, 1)  # [batch, 8, 8, 16]
    for moved in (False, True):
        y = net.layer_norm(x, 16)
        if moved:
            for axis in (1, 2):
                y = net.op("Concat", net.slice(y, 2, 8, axis), net.slice(y, 0, 2, axis), axis=axis)
        y = net.transpose(net.reshape(y, -1, 2, 4, 2, 4, 16), 0, 1, 3, 2, 4, 5)
        y = net.reshape(y, -1, 16, 16)  # [batch * windows, places, width]
        places = np.arange(16)
        apart = (places[:, None] // 4 - places // 4 + 3) * 7 + places[:, None] % 4 - places % 4 + 3
        table = net.op("Gather", net.weight(49, 2), net.constant(apart.ravel()), axis=0)
        bias = net.transpose(net.reshape(table, 16, 16, 2), 2, 0, 1)
        y = net.attention(y, 16, 2, mask=bias)
        y = net.transpose(net.reshape(y, -1, 2, 2, 4, 4, 16), 0, 1, 3, 2, 4, 5)
        y = net.reshape(y, -1, 8, 8, 16)
        if moved:
            for axis in (1, 2):
                y = net.op("Concat", net.slice(y, 6, 8, axis), net.slice(y, 0, 6, axis), axis=axis)
        x = net.op("Add", x, y)
        x = net.op("Add", x, net.projected(net.gelu(net.projected(net.layer_norm(x, 16), 16, 32)), 32, 16))
    corners = [net.slice(net.slice(x, a, 8, 1, 2), b, 8, 2, 2) for b in (0, 1) for a in (0, 1)]
    x = net.projected(net.layer_norm(net.op("Concat", *corners, axis=-1), 64), 64, 32, bias=False)
    x = net.op("ReduceMean", x, net.integers(1, 2), keepdims=0)
    return net.proto({"logits": (net.linear(x, 32, 10), ["batch", 10])})


def convnext() -> Any:
    """Depthwise 7 x 7, norms and layers with the channels last, scaled branches."""
    net = Net(18)
    x = net.conv(net.take("x", ["batch", 3, 16, 16]), 3, 24, 3, stride=2, relu=False)
    for _ in range(2):
        y = net.transpose(net.conv(x, 24, 24, 7, group=24, relu=False), 0, 2, 3, 1)
        y = net.projected(net.gelu(net.projected(net.layer_norm(y, 24), 24, 96)), 96, 24)
        y = net.op("Mul", y, net.near_one(24))
        x = net.op("Add", x, net.transpose(y, 0, 3, 1, 2))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.proto({"logits": (net.linear(net.layer_norm(x, 24), 24, 10), ["batch", 10])})


def unet() -> Any:
    """Down by pooling, up by a transposed convolution and by Resize; a class for every pixel."""
    net = Net(17)
    first = net.conv(net.take("image", ["batch", 3, "height", "width"]), 3, 16)
    second = net.conv(net.op("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2]), 16, 32)
    x = net.conv(net.op("MaxPool", second, kernel_shape=[2, 2], strides=[2, 2]), 32, 32)
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    x = net.op("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    x = net.conv(net.op("Concat", x, second, axis=1), 64, 32)
    x = net.op("ConvTranspose", x, net.weight(32, 16, 2, 2, scale=0.15), net.weight(16), strides=[2, 2])
    x = net.conv(net.op("Concat", x, first, axis=1), 32, 16)
    return net.proto({"masks": (net.conv(x, 16, 4, 1, relu=False), ["batch", 4, "height", "width"])})


def diffusion() -> Any:
    """A U-Net of a diffusion model: one time step for all, group norms, attention to a text."""
    net = Net(18)
    x = net.take("sample", ["batch", 4, "height", "width"])
    time = net.take("timestep", [], INT64)
    text = net.take("encoder_hidden_states", ["batch", "sequence", 32])
    count = net.op("Cast", net.reshape(time, 1, 1), to=1)
    angle = net.op("Mul", count, net.constant(0.01 ** np.linspace(0, 1, 16, dtype=np.float32)[None]))
    step = net.op("Concat", net.op("Sin", angle), net.op("Cos", angle), axis=-1)
    step = net.linear(net.silu(net.linear(step, 32, 32)), 32, 32)

    def normed(x: str) -> str:
        unit = (net.constant(np.full(8, value, np.float32)) for value in (1, 0))
        y = net.op("InstanceNormalization", net.reshape(x, 0, 8, -1), *unit)
        y = net.op("Reshape", y, net.op("Shape", x))
        return str(net.op("Add", net.op("Mul", y, net.near_one(32, 1, 1)), net.weight(32, 1, 1)))

    def residual(x: str) -> str:
        y = net.conv(net.silu(normed(x)), 32, 32, relu=False)
        shift = net.op("Unsqueeze", net.linear(net.silu(step), 32, 32), net.integers(2, 3))
        return str(net.op("Add", x, net.conv(net.silu(normed(net.op("Add", y, shift))), 32, 32, relu=False)))

    first = residual(net.conv(x, 4, 32, relu=False))
    x = net.conv(first, 32, 32, stride=2, relu=False)
    shape = net.op("Shape", x)
    flat = net.transpose(net.reshape(normed(x), 0, 32, -1), 0, 2, 1)
    flat = net.op("Add", flat, net.attention(net.layer_norm(flat, 32), 32, 4, memory=text))
    x = net.op("Add", x, net.op("Reshape", net.transpose(flat, 0, 2, 1), shape))
    x = net.op("Resize", residual(x), "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    x = net.conv(net.op("Concat", x, first, axis=1), 64, 32, relu=False)
    x = net.conv(net.silu(normed(x)), 32, 4, relu=False)
    return net.proto({"out_sample": (x, ["batch", 4, "height", "width"])})


def mobilenet() -> Any:
    """Hard swish, squeeze and excite, batch norms left as they are."""
    net = Net(14)

    def layer(x: str, cin: int, cout: int, k: int, group: int = 1, act: bool = True) -> str:
        y = net.batch_norm(net.conv(x, cin, cout, k, group=group, relu=False), cout)
        return str(net.op("HardSwish", y)) if act else y

    x = layer(net.take("x", ["batch", 3, 16, 16]), 3, 16, 3)
    for _ in range(2):
        y = layer(layer(x, 16, 48, 1), 48, 48, 3, group=48)
        gate = net.conv(net.conv(net.op("GlobalAveragePool", y), 48, 16, 1), 16, 48, 1, relu=False)
        y = net.op("Mul", y, net.op("HardSigmoid", gate, alpha=1 / 6, beta=0.5))
        x = net.op("Add", x, layer(y, 48, 16, 1, act=False))
    x = net.op("Flatten", net.op("GlobalAveragePool", layer(x, 16, 32, 1)))
    x = net.op("HardSwish", net.linear(x, 32, 64))
    return net.proto({"logits": (net.linear(x, 64, 10), ["batch", 10])})


def _head(net: Net, x: str, width: int) -> tuple[str, str]:
    """Boxes [1, 64, 4] in pixels (edges by a distribution over distances), scores [1, 64, 3]."""
    sides = net.conv(net.conv(x, width, 32), 32, 32, 1, relu=False)  # four sides, eight distances each
    sides = net.op("Softmax", net.transpose(net.reshape(sides, 1, 4, 8, 64), 0, 3, 1, 2), axis=-1)
    far = net.op("MatMul", sides, net.constant(np.arange(8, dtype=np.float32)[:, None]))
    far = net.op("Squeeze", far, net.integers(3))
    y, x_place = np.divmod(np.arange(64), 8)
    centre = net.constant(np.stack([x_place, y], -1)[None].astype(np.float32) + 0.5)
    low = net.op("Sub", centre, net.slice(far, 0, 2, 2))
    high = net.op("Add", centre, net.slice(far, 2, 4, 2))
    boxes = net.op("Mul", net.op("Concat", low, high, axis=-1), net.scalar(40))
    classes = net.conv(net.conv(x, width, 32), 32, 3, 1, relu=False)
    return boxes, net.op("Sigmoid", net.transpose(net.reshape(classes, 1, 3, 64), 0, 2, 1))


def detector() -> Any:
    """One output that holds pixels and scores."""
    net = Net(17)
    x = net.conv(net.take("images", [1, 3, 32, 32]), 3, 16, stride=2)
    x = net.conv(x, 16, 32, stride=2)
    boxes, scores = _head(net, x, 32)
    return net.proto({"output0": (net.op("Concat", boxes, scores, axis=-1), [1, 64, 7])})


def detector_nms() -> Any:
    """The boxes that are left are the output: how many follows from the picture."""
    net = Net(17)
    x = net.conv(net.take("images", [1, 3, 32, 32]), 3, 16, stride=2)
    boxes, scores = _head(net, net.conv(x, 16, 32, stride=2), 32)
    limits = [net.integers(20), net.constant(np.float32([0.5])), net.constant(np.float32([0.5]))]
    chosen = net.op("NonMaxSuppression", boxes, net.transpose(scores, 0, 2, 1), *limits)
    which = net.op("Squeeze", net.slice(chosen, 2, 3, 1), net.integers(1))
    best = net.op("Gather", net.op("ReduceMax", scores, axes=[2], keepdims=0), which, axis=1)
    found = {"boxes": (net.op("Gather", boxes, which, axis=1), [1, "found", 4]), "scores": (best, [1, "found"])}
    labels = net.op("Squeeze", net.slice(chosen, 1, 2, 1), net.integers(1))
    return net.proto({**found, "labels": (labels, ["found"])}, {"labels": INT64})


def super_resolution() -> Any:
    """Pixels from pixels."""
    net = Net(17)
    x = net.conv(net.conv(net.take("input", ["batch", 1, "height", "width"]), 1, 32, 5), 32, 16)
    x = net.op("DepthToSpace", net.conv(x, 16, 4, relu=False), blocksize=2, mode="CRD")
    shape: Shape = ["batch", 1, "high", "wide"]
    return net.proto({"output": (x, shape)})


def _diffusion_feed(random: np.random.Generator) -> Feed:
    step = np.array(random.integers(0, 1000), np.int64)
    return {"sample": normal(random, 1, 4, 8, 8), "timestep": step, "encoder_hidden_states": normal(random, 1, 7, 32)}


VISION: dict[str, Member] = {
    "vit, one picture": Member(lambda: vit(1, 18), _pictures("pixel_values", 1, 3, 16, 16)),
    "vit, open batch": Member(lambda: vit("batch", 20), _pictures("pixel_values", 1, 3, 16, 16), "external"),
    "swin": Member(swin, _pictures("pixel_values", 1, 3, 16, 16)),
    "convnext": Member(convnext, _pictures("x", 1, 3, 16, 16), "function"),
    "unet": Member(unet, _pictures("image", 1, 3, 16, 24)),
    "diffusion": Member(diffusion, _diffusion_feed, "external"),
    "mobilenet": Member(mobilenet, _pictures("x", 1, 3, 16, 16)),
    "detector": Member(detector, _pictures("images", 1, 3, 32, 32), parts={"output0": (4,)}),
    "detector with nms": Member(detector_nms, _pictures("images", 1, 3, 32, 32), decides=True),
    "super resolution": Member(super_resolution, _pictures("input", 1, 1, 12, 16)),
}
