"""Convolutional nets as exporters write them, for `quantization.py --models`.

    python benchmarks/exported.py DIR [--only TEXT]

Names tell whether the batch is open or fixed at 1, and the opset: below 18 torch's old exporter writes, then the new.
Weights are random, the same in every run; BatchNormalization has the statistics of random pictures, so activations keep
their size. Besides torchvision's nets: MobileNetV2 with Pad, Conv and Clip as TensorFlow has it, and a detector like
RetinaFace, also as onnxruntime saves it (FusedConv). Needs torch, torchvision, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

try:
    import onnxruntime
    import torch
    import torchvision.models as zoo
    from torch import nn
    from torch.nn import functional
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
except ImportError as missing:
    raise SystemExit("these nets need torch, torchvision and onnxruntime") from missing

#: Random pictures by which BatchNormalization is measured, and how often.
PICTURES, PASSES = 16, 4
#: The first opset that the new exporter writes.
NEW = 18


# --- a detector -------------------------------------------------------------------------------------------------------


def unit(channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, linear: bool = False) -> nn.Module:
    """Conv, BatchNormalization and LeakyRelu."""
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), *([] if linear else [nn.LeakyReLU(0.1)]))


def separable(*widths: int) -> nn.Module:
    """Depthwise and pointwise units from width to width; the first halves the picture."""
    pairs = ((unit(a, a, stride=1 if at else 2, groups=a), unit(a, b, 1)) for at, (a, b) in enumerate(pairwise(widths)))
    return nn.Sequential(*chain.from_iterable(pairs))


class ContextModule(nn.Module):
    """SSH's context module: what one, two and three convolutions see, side by side."""

    def __init__(self, channels: int):
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.near, self.reduce = unit(channels, half, linear=True), unit(channels, quarter)
        self.middle = unit(quarter, quarter, linear=True)
        self.far = nn.Sequential(unit(quarter, quarter), unit(quarter, quarter, linear=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reduced = self.reduce(x)
        return functional.relu(torch.cat([self.near(x), self.middle(reduced), self.far(reduced)], 1))


class Retina(nn.Module):
    """MobileNet V1 0.25, a feature pyramid and SSH heads at three scales; boxes and scores of two anchors each."""

    def __init__(self, channels: int = 64):
        super().__init__()
        self.stem = nn.Sequential(unit(3, 8, stride=2), unit(8, 8, groups=8), unit(8, 16, 1))
        fine = nn.Sequential(separable(16, 32, 32), separable(32, 64, 64))
        self.stages = nn.ModuleList([fine, separable(64, *[128] * 6), separable(128, 256, 256)])
        self.lateral = nn.ModuleList([unit(width, channels, 1) for width in (64, 128, 256)])
        self.merge = nn.ModuleList([unit(channels, channels) for _ in range(2)])
        self.context = nn.ModuleList([ContextModule(channels) for _ in range(3)])
        self.boxes = nn.ModuleList([nn.Conv2d(channels, 2 * 4, 1) for _ in range(3)])
        self.scores = nn.ModuleList([nn.Conv2d(channels, 2 * 2, 1) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, maps = self.stem(x), []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        for at in (1, 0):
            maps[at] = self.merge[at](maps[at] + functional.interpolate(maps[at + 1], scale_factor=2.0))
        seen = [module(one) for module, one in zip(self.context, maps, strict=True)]

        def told(heads: nn.ModuleList, values: int) -> torch.Tensor:
            found = [head(one).permute(0, 2, 3, 1) for head, one in zip(heads, seen, strict=True)]
            return torch.cat([one.reshape(one.shape[0], -1, values) for one in found], 1)

        return told(self.boxes, 4), told(self.scores, 2).softmax(-1)


# --- all of them ------------------------------------------------------------------------------------------------------


def mobilenet_v2_pad() -> nn.Module:
    """MobileNetV2 of half the width with Pad before Conv, at stride 2 only right and below: TensorFlow's SAME."""
    net = zoo.mobilenet_v2(width_mult=0.5)
    for parent in list(net.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, nn.Conv2d) and conv.padding != (0, 0):
                whole = conv.kernel_size[0] - conv.stride[0]
                conv.padding = (0, 0)
                setattr(parent, name, nn.Sequential(nn.ZeroPad2d((whole // 2, whole - whole // 2) * 2), conv))
    return net


def convnext() -> nn.Module:
    """ConvNeXt of six blocks; a layer scale as trained nets have it, not the 1e-6 that training begins with."""
    plan = ((48, 96, 1), (96, 192, 1), (192, 384, 3), (384, None, 1))
    return ConvNeXt([CNBlockConfig(*one) for one in plan], layer_scale=0.5)


#: By name the net, and height and width of its pictures.
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mobilenet_v2_open_13": (zoo.mobilenet_v2, 128),
    "mobilenet_v2_pad_open_13": (mobilenet_v2_pad, 128),
    "mobilenet_v3_small_fixed_18": (zoo.mobilenet_v3_small, 128),
    "efficientnet_b0_open_22": (zoo.efficientnet_b0, 128),
    "shufflenet_v2_fixed_11": (zoo.shufflenet_v2_x0_5, 128),
    "mnasnet_open_20": (zoo.mnasnet0_5, 128),
    "densenet_open_19": (lambda: zoo.DenseNet(16, (4, 6, 8, 6), 32), 96),
    "convnext_fixed_18": (convnext, 96),
    "convnext_open_22": (convnext, 96),
    "regnet_y_fixed_12": (zoo.regnet_y_400mf, 128),
    "resnet18_open_21": (zoo.resnet18, 96),
    "googlenet_fixed_13": (lambda: zoo.googlenet(aux_logits=False, init_weights=False), 96),
    "retina_fixed_12": (Retina, 160),
    "retina_open_20": (Retina, 160),
}
#: The net that onnxruntime optimises and saves.
FUSED = "retina_fixed_12"


def measured(net: nn.Module, size: int) -> nn.Module:
    """The net with BatchNormalization's statistics of random pictures, which have coarse and fine parts."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean of all passes
    with torch.no_grad():
        for _ in range(PASSES):
            parts = [torch.randn(PICTURES, 3, size // part, size // part) / 4 for part in (1, 4, 16)]
            net(torch.stack([functional.interpolate(one, (size, size), mode="bilinear") for one in parts]).sum(0))
    return net.eval()


def write(net: nn.Module, size: int, path: Path) -> None:
    """The net's file, as its name says."""
    *_, batch, opset = path.stem.split("_")
    common = {"input_names": ["image"], "opset_version": int(opset), "verbose": False}
    picture, is_open = torch.zeros(2 if batch == "open" else 1, 3, size, size), batch == "open"
    if int(opset) >= NEW:
        axes = ({0: torch.export.Dim("batch")},) if is_open else None
        torch.onnx.export(net, (picture,), path, dynamo=True, dynamic_shapes=axes, external_data=False, **common)
    else:
        named = {"image": {0: "batch"}} if is_open else None
        torch.onnx.export(net, (picture,), path, dynamo=False, dynamic_axes=named, **common)


def main() -> None:
    """Write the nets asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="nets whose name contains this")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in (one for one in NETS if options.only in one):
        torch.manual_seed(0)
        make, size = NETS[name]
        path = options.folder / f"{name}.onnx"
        write(measured(make(), size), size, path)
        if name == FUSED:
            session = onnxruntime.SessionOptions()
            session.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            session.optimized_model_filepath = str(path.with_stem(f"{name}_ortfused"))
            onnxruntime.InferenceSession(path, session, providers=["CPUExecutionProvider"])
        print(f"{name}: {path.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
