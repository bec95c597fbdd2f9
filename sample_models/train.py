"""Train the sample models and export them as ONNX files.

Running ``python sample_models/train.py`` rebuilds, next to this file:

* ``digits_train.npz`` and ``digits_test.npz``: a stratified split of scikit-learn's digits;
* ``digits_cnn.onnx``: a residual CNN whose BatchNormalization nodes are kept unfolded;
* ``digits_mlp.onnx``: an over-parameterised multi-layer perceptron;
* ``digits_vit.onnx``: a small pre-norm vision transformer.

Every model starts from its own seed, training uses one thread and deterministic kernels, and
the exported graphs carry no source paths, so a rerun on the same kind of processor with the same
library versions gives the same files. The test set is only used for the final measurement: no
checkpoint is chosen by it.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

SEED = 20
OPSET = 17
CLASSES = 10
TEST_FRACTION = 1 / 3

FloatArray = npt.NDArray[np.float32]
Preprocess = Callable[[npt.NDArray[np.uint8]], FloatArray]


# --------------------------------------------------------------------------------------------
# Data


@dataclass(frozen=True)
class Digits:
    """One part of the data: ``images`` is uint8 [n, 8, 8] valued 0..16, ``labels`` int64 [n]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write a compressed archive (NumPy stamps every member 1980-01-01: stable bytes)."""
        np.savez_compressed(path, images=self.images, labels=self.labels)


def load_split() -> tuple[Digits, Digits]:
    """Return the train and test parts, stratified by class and always the same."""
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=TEST_FRACTION,
        stratify=labels,
        random_state=SEED,
    )
    train, test = np.sort(train), np.sort(test)
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def enlarge(image: npt.NDArray[np.uint8]) -> FloatArray:
    """Resize one image to 32x32 with Pillow, bilinear, in mode F (float32)."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((32, 32), Image.BILINEAR))


def preprocess_cnn(images: npt.NDArray[np.uint8]) -> FloatArray:
    """Resize to 32x32, add the channel axis, scale by 1/16, then (x - 0.5) / 0.5."""
    scaled = np.stack([enlarge(image) for image in images])[:, None] / np.float32(16)
    return (scaled - np.float32(0.5)) / np.float32(0.5)


def preprocess_mlp(images: npt.NDArray[np.uint8]) -> FloatArray:
    """Flatten to 64 values, scaled by 1/16."""
    return images.reshape(len(images), 64).astype(np.float32) / np.float32(16)


def preprocess_vit(images: npt.NDArray[np.uint8]) -> FloatArray:
    """Add the channel axis and scale by 1/16."""
    return images[:, None].astype(np.float32) / np.float32(16)


def augment(
    images: Tensor,
    *,
    background: float,
    shift: float,
    rotate: float,
    zoom: float,
    noise: float,
) -> Tensor:
    """Apply a random affine map and Gaussian noise to a batch [n, 1, h, w].

    ``shift`` is in fractions of the image side, ``rotate`` in degrees and ``zoom`` relative.
    Pixels drawn from outside the image take the value ``background``.
    """
    n, _, *size = images.shape

    def uniform(limit: float) -> Tensor:
        return (torch.rand(n) * 2 - 1) * limit

    angle = uniform(math.radians(rotate))
    scale = 1 + uniform(zoom)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) * scale
    theta[:, 0, 1] = -torch.sin(angle) * scale
    theta[:, 1, 0] = torch.sin(angle) * scale
    theta[:, 0, 2] = 2 * uniform(shift)
    theta[:, 1, 2] = 2 * uniform(shift)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images - background, grid, align_corners=False) + background
    # Noise is drawn on the 8x8 grid of the source and enlarged with the image.
    grain = torch.randn(n, 1, 8, 8) * noise
    if size != [8, 8]:
        grain = functional.interpolate(grain, size, mode="bilinear", align_corners=False)
    return moved + grain


# --------------------------------------------------------------------------------------------
# Models


class ConvNorm(nn.Module):
    """Convolution without bias, followed by batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual sum; a 1x1 shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 3, stride)
        self.conv2 = ConvNorm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv2(functional.relu(self.conv1(x))) + self.shortcut(x))


class ResidualCNN(nn.Module):
    """Residual network for [batch, 1, 32, 32] images."""

    def __init__(
        self,
        widths: tuple[int, ...] = (24, 48, 96),
        depths: tuple[int, ...] = (6, 4, 2),
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(1, widths[0], 3)
        stages: list[nn.Module] = []
        inputs = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks: list[nn.Module] = []
            for block in range(depth):
                blocks.append(BasicBlock(inputs, width, 2 if stage and not block else 1))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(functional.relu(self.stem(x)))
        return self.head(torch.flatten(self.pool(x), 1))


class MLP(nn.Module):
    """Over-parameterised multi-layer perceptron for [batch, 64] pixels."""

    def __init__(self, hidden: tuple[int, int] = (1024, 896), dropout: float = 0.4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], CLASSES)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(functional.relu(self.fc1(x)))
        x = self.dropout(functional.relu(self.fc2(x)))
        return self.fc3(x)


class Attention(nn.Module):
    """Multi-head self-attention over a fixed number of tokens and any batch size."""

    def __init__(self, dim: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.dim, self.heads, self.tokens = dim, heads, tokens
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        # -1 keeps the batch size out of the exported graph.
        return x.reshape(-1, self.tokens, self.heads, self.dim // self.heads)

    def forward(self, x: Tensor) -> Tensor:
        query = self._split(self.query(x)).permute(0, 2, 1, 3)
        key = self._split(self.key(x)).permute(0, 2, 3, 1)
        value = self._split(self.value(x)).permute(0, 2, 1, 3)
        weights = torch.softmax(query @ key * (self.dim // self.heads) ** -0.5, dim=-1)
        mixed = (weights @ value).permute(0, 2, 1, 3).reshape(-1, self.tokens, self.dim)
        return self.out(mixed)


class EncoderBlock(nn.Module):
    """Pre-norm transformer encoder block with a GELU feed-forward part."""

    def __init__(self, dim: int, heads: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, tokens)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.fc2(functional.gelu(self.fc1(self.norm2(x)))))


class VisionTransformer(nn.Module):
    """Transformer over the sixteen 2x2 patches of a [batch, 1, 8, 8] image."""

    def __init__(self, dim: int = 64, depth: int = 4, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.dim, self.tokens = dim, 16
        self.patches = nn.Conv2d(1, dim, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, self.tokens, dim) * 0.02)
        blocks = [EncoderBlock(dim, heads, self.tokens, dropout) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).reshape(-1, self.dim, self.tokens).transpose(1, 2)
        x = self.norm(self.blocks(x + self.position))
        return self.head(x.mean(dim=1))


def count_macs(model: nn.Module, sample: Tensor) -> int:
    """Count the multiply-accumulates of convolutions, linear layers and attention products."""
    total = 0

    def hook(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d | nn.Linear):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, Attention):
            total += 2 * module.tokens**2 * module.dim

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    with torch.no_grad():
        model.eval()(sample[:1])
    for handle in handles:
        handle.remove()
    return total


# --------------------------------------------------------------------------------------------
# Training


@dataclass(frozen=True)
class Recipe:
    """How one sample model is built, fed, trained and exported."""

    name: str
    input_name: str
    build: Callable[[], nn.Module]
    preprocess: Preprocess
    augment: Callable[[Tensor], Tensor]
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    channels_last: bool = False


def augment_cnn(images: Tensor) -> Tensor:
    """Shifts of up to 2.5 pixels of the 32x32 image, slight rotation, zoom and noise."""
    return augment(images, background=-1, shift=0.08, rotate=10, zoom=0.1, noise=0.08)


def augment_mlp(pixels: Tensor) -> Tensor:
    """The augmentation of `augment_vit` on flattened images."""
    return augment_vit(pixels.reshape(-1, 1, 8, 8)).reshape(-1, 64)


def augment_vit(images: Tensor) -> Tensor:
    """Shifts of up to half a pixel of the 8x8 image, slight rotation, zoom and noise."""
    return augment(images, background=0, shift=0.06, rotate=8, zoom=0.08, noise=0.04)


RECIPES = (
    Recipe(
        name="digits_cnn",
        input_name="image",
        build=ResidualCNN,
        preprocess=preprocess_cnn,
        augment=augment_cnn,
        epochs=24,
        batch=48,
        learning_rate=4e-3,
        weight_decay=0.05,
        channels_last=True,
    ),
    Recipe(
        name="digits_mlp",
        input_name="pixels",
        build=MLP,
        preprocess=preprocess_mlp,
        augment=augment_mlp,
        epochs=100,
        batch=64,
        learning_rate=1e-3,
        weight_decay=0.1,
    ),
    Recipe(
        name="digits_vit",
        input_name="image",
        build=VisionTransformer,
        preprocess=preprocess_vit,
        augment=augment_vit,
        epochs=120,
        batch=64,
        learning_rate=2e-3,
        weight_decay=0.05,
    ),
)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay the weight matrices and kernels; leave biases, norms and positions alone."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name == "position"
        (kept if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def train(recipe: Recipe, data: Digits) -> nn.Module:
    """Train one model from its seed and return it in evaluation mode."""
    torch.manual_seed(SEED)
    model = recipe.build()
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    inputs = torch.from_numpy(recipe.preprocess(data.images))
    labels = torch.from_numpy(data.labels)
    steps = math.ceil(len(labels) / recipe.batch)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, epochs=recipe.epochs, steps_per_epoch=steps, pct_start=0.2
    )
    started = time.perf_counter()
    for epoch in range(recipe.epochs):
        model.train()
        loss_sum = 0.0
        for picked in torch.randperm(len(labels)).chunk(steps):
            batch = recipe.augment(inputs[picked])
            if recipe.channels_last:
                batch = batch.to(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(batch), labels[picked], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(picked)
        if (epoch + 1) % max(1, recipe.epochs // 8) == 0 or epoch + 1 == recipe.epochs:
            print(
                f"{recipe.name}: epoch {epoch + 1}/{recipe.epochs}, "
                f"loss {loss_sum / len(labels):.4f}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    return model.to(memory_format=torch.contiguous_format).eval()


# --------------------------------------------------------------------------------------------
# Export


def module_path(node_name: str) -> str:
    """Turn a node name such as "/blocks/blocks.0/fc1/MatMul" into the module's "blocks.0.fc1"."""
    scopes = node_name.strip("/").split("/")[:-1]
    # A sequential container is repeated in the scope of its children: keep the longer form.
    following = [*scopes[1:], ""]
    kept = [a for a, b in zip(scopes, following, strict=True) if not b.startswith(f"{a}.")]
    return ".".join(kept)


def tidy(model: onnx.ModelProto, name: str) -> None:
    """Remove traces of the exporting machine and give folded weights stable, telling names."""
    graph = model.graph
    graph.name = name
    values = (*graph.input, *graph.output, *graph.value_info)
    for item in (model, graph, *graph.node, *graph.initializer, *values):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    # The exporter stores equal tensors once and copies them by Identity (the two norms before a
    # residual sum can learn the same bias): give each its own initializer again.
    weights = {initializer.name: initializer for initializer in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Identity" and node.input[0] in weights:
            graph.initializer.add().CopyFrom(weights[node.input[0]])
            graph.initializer[-1].name = node.output[0]
            graph.node.remove(node)
    # Weights that the exporter transposed are called "onnx::MatMul_123": name them by their node.
    renamed: dict[str, str] = {}
    for node in graph.node:
        for position, source in enumerate(node.input):
            if source.startswith("onnx::"):
                target = f"{module_path(node.name)}.weight_transposed"
                node.input[position] = renamed.setdefault(source, target)
    for initializer in graph.initializer:
        initializer.name = renamed.get(initializer.name, initializer.name)
    names = [initializer.name for initializer in graph.initializer]
    if len(set(names)) != len(names) or any(name.startswith("onnx::") for name in names):
        raise ValueError(f"ambiguous initializer names in {name}: {names}")


def export(model: nn.Module, recipe: Recipe, sample: Tensor, path: Path) -> None:
    """Export one model with a dynamic batch axis and BatchNormalization left unfolded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces its retirement
        torch.onnx.export(
            model,
            (sample,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            # PRESERVE keeps the model in evaluation mode and switches off the fusion of
            # convolution and batch normalisation that EVAL would do.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=True,
            input_names=[recipe.input_name],
            output_names=["logits"],
            dynamic_axes={recipe.input_name: {0: "batch"}, "logits": {0: "batch"}},
        )
    exported = onnx.load(path)
    tidy(exported, recipe.name)
    for node in exported.graph.node:
        if node.op_type == "BatchNormalization" and len(node.output) != 1:
            raise ValueError(f"{node.name} was exported in training form")
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)


def measure(path: Path, recipe: Recipe, data: Digits, batch: int) -> float:
    """Return the accuracy of an ONNX file in onnxruntime, fed ``batch`` images at a time."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = recipe.preprocess(data.images)
    hits = 0
    for start in range(0, len(inputs), batch):
        feed = {recipe.input_name: inputs[start : start + batch]}
        (logits,) = session.run(["logits"], feed)
        hits += int((logits.argmax(axis=1) == data.labels[start : start + batch]).sum())
    return hits / len(inputs)


def main() -> None:
    """Write the data, then train, export and measure the chosen models."""
    names = [recipe.name for recipe in RECIPES]
    parser = argparse.ArgumentParser(description="Rebuild the sample models.")
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    train_data, test_data = load_split()
    train_data.save(out / "digits_train.npz")
    test_data.save(out / "digits_test.npz")
    for recipe in RECIPES:
        if recipe.name not in arguments.models:
            continue
        model = train(recipe, train_data)
        path = out / f"{recipe.name}.onnx"
        sample = torch.from_numpy(recipe.preprocess(test_data.images[:2]))
        export(model, recipe, sample, path)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        single, batched = (measure(path, recipe, test_data, batch) for batch in (1, 64))
        print(
            f"{path.name}: {parameters:,} parameters, {count_macs(model, sample) / 1e6:.2f} MMACs, "
            f"test accuracy {single:.4f} (batch 1) {batched:.4f} (batch 64), "
            f"{path.stat().st_size:,} bytes"
        )


if __name__ == "__main__":
    main()
