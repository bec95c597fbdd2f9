"""Synthetic but realistic reports: a pruned and quantized ResNet-20, measured on two cores."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from lepton_cli.measure import rows
from lepton_cli.measure.results import (
    Accuracy,
    Energy,
    EnergyChange,
    EnergyTable,
    Environment,
    Fidelity,
    Flip,
    Latency,
    LatencyChange,
    LatencyTable,
    Layer,
    Memory,
    MetricChange,
    MetricValue,
    Size,
    Skipped,
)
from lepton_cli.measure.rows import Counts
from lepton_cli.prune.details import PruneChannelsDetails, Width
from lepton_cli.quantize.details import QuantizeStaticDetails, Sensitivity
from lepton_cli.report.headline import headline
from lepton_cli.report.model import RECORDS, DataFacts, FileFacts, RecipeFacts, Report, StepRecord, Variant, Verdict
from lepton_cli.step import Decision

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NODES = ("conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)), "fc")


def environment(**changes: Any) -> Environment:
    """A small virtual machine with VNNI."""
    fields: dict[str, Any] = {
        "lepton": "1.0.0",
        "python": "3.11.2",
        "onnxruntime": "1.31.1",
        "onnx": "1.22.0",
        "system": "Linux 6.8 x86_64",
        "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        "instructions": ("avx2", "avx512f", "avx512_vnni"),
        "cores": 8,
        "usable_cores": 2,
        "memory": 24 * 2**30,
        "providers": ("CPUExecutionProvider",),
    }
    return Environment(**{**fields, **changes})


def layer(node: str, parameters: int, dtype: str, macs: int) -> Layer:
    """One convolution."""
    return Layer(
        node=node,
        op="Conv",
        dtype=dtype,
        parameters=parameters,
        bytes=parameters * (4 if dtype == "float32" else 1),
        macs=macs,
    )


def sizes(share: float = 1.0, dtype: str = "float32") -> Size:
    """Size of a ResNet-20 with `share` of its channels' weights."""
    layers = []
    for index, node in enumerate(NODES):
        parameters = int((432 if index == 0 else 2304 * 4 ** min(2, (index - 1) // 6) if node != "fc" else 650) * share)
        layers.append(layer(node, parameters, dtype, parameters * 256 // 4 ** min(2, index // 6)))
    parameters = sum(one.parameters for one in layers)
    stored = sum(one.bytes for one in layers)
    return Size(
        file=stored + 12_345,
        external=0,
        gzip=int(stored * 0.92),
        parameters=parameters,
        nonzeros=parameters - 3,
        macs=sum(one.macs or 0 for one in layers),
        nodes=67,
        by_dtype={dtype: stored},
        layers=tuple(layers),
    )


def with_layers(variants: tuple[Variant, ...], layers: tuple[Layer, ...]) -> tuple[Variant, ...]:
    """The variants with other layers."""
    return tuple(one.model_copy(update={"size": one.size.model_copy(update={"layers": layers})}) for one in variants)


def times(median: float, seed: int, count: int = 200) -> tuple[float, ...]:
    """Skewed latencies, as a busy machine gives."""
    source = random.Random(seed)
    return tuple(median * (0.97 + 0.03 * math.exp(source.gauss(0, 0.8))) for _ in range(count))


def latency(variant: str, median: float, *, provider: str = "cpu", batch: int = 1, threads: int = 2) -> Latency:
    """One latency result with a 1 % interval."""
    return Latency(
        variant=variant,
        provider=provider,
        batch=batch,
        threads=threads,
        median=median,
        low=median * 0.99,
        high=median * 1.01,
        p90=median * 1.1,
        p99=median * 1.3,
        n=640,
        throughput=batch / median,
        times=times(median, batch + len(variant)),
        placement={"CPUExecutionProvider": 67},
    )


def change(original: float, ratio: float, *, half: float = 0.02, batch: int = 1, threads: int = 2) -> LatencyChange:
    """A paired ratio with an interval of `half` on each side."""
    return LatencyChange(
        provider="cpu",
        batch=batch,
        threads=threads,
        original=original,
        compressed=original * ratio,
        ratio=ratio,
        low=ratio * (1 - half),
        high=ratio * (1 + half),
        pairs=640,
    )


def latency_table(ratio: float = 0.406, half: float = 0.02) -> LatencyTable:
    """Batch 1 and 32 on the CPU; CUDA was optional and is not there."""
    results, changes = [], []
    for batch, median in ((1, 0.483e-3), (32, 9.7e-3)):
        results += [latency("original", median, batch=batch), latency("compressed", median * ratio, batch=batch)]
        changes.append(change(median, ratio, half=half, batch=batch))
    skipped = (Skipped(what="latency, cuda batch 1", reason="no CUDA device (optional)"),)
    return LatencyTable(results=tuple(results), changes=tuple(changes), skipped=skipped)


def on_threads(**ratios: float) -> LatencyTable:
    """Batch 1 on the CPU with two and with one thread: `two`, `one`: time over the original's 1 and 2 ms."""
    results, changes = [], []
    for threads, median, ratio in ((2, 1e-3, ratios["two"]), (1, 2e-3, ratios["one"])):
        results += [
            latency(name, time, threads=threads)
            for name, time in (("original", median), ("compressed", median * ratio))
        ]
        changes.append(change(median, ratio, threads=threads))
    return LatencyTable(results=tuple(results), changes=tuple(changes))


def energy_table(ratio: float = 0.4, half: float = 0.03, provider: str = "cpu") -> EnergyTable:
    """12 mJ a sample on a processor that rests at 8 W."""

    def use(variant: str, joules: float) -> Energy:
        bounds = {"low": joules * (1 - half), "high": joules * (1 + half)}
        return Energy(
            variant=variant,
            provider=provider,
            batch=1,
            threads=2,
            joules=joules,
            above_idle=joules * 0.6,
            watts=20.0,
            idle_watts=8.0,
            n=900,
            **bounds,
        )

    change = EnergyChange(
        variant="compressed",
        provider=provider,
        batch=1,
        threads=2,
        ratio=ratio,
        low=ratio * (1 - half),
        high=ratio * (1 + half),
    )
    return EnergyTable(
        domains={provider: ("package-0", "dram")},
        results=(use("original", 0.012), use("compressed", 0.012 * ratio)),
        changes=(change,),
    )


def accuracy(
    original: float = 0.918,
    compressed: float = 0.9144,
    *,
    half: float = 0.0035,
    n: int = 5000,
    lost: Sequence[int] = (),
) -> Accuracy:
    """Top-1 with a paired interval, agreement, classes and flips.

    `lost`: of the 500 samples of each class, of which the original has 450 right and 6 are won; default: more of the
    later ones, none by more than chance.
    """
    difference = compressed - original
    classes, spread = rows.judged(
        {
            ("logits", ""): [
                Counts(label, 450 - gone, gone, 6, 44)
                for label, gone in zip(CLASSES, lost or range(3, 23, 2), strict=True)
            ]
        }
    )

    def value(amount: float) -> MetricValue:
        return MetricValue(metric="top1", output="logits", value=amount, low=amount - 0.008, high=amount + 0.008, n=n)

    return Accuracy(
        values={"original": (value(original),), "compressed": (value(compressed),)},
        changes=(
            MetricChange(
                metric="top1",
                output="logits",
                original=original,
                compressed=compressed,
                difference=difference,
                low=difference - half,
                high=difference + half,
                n=n,
                method="newcombe",
            ),
        ),
        fidelity=(
            Fidelity(
                output="logits",
                agreement=0.9764,
                agreement_low=0.9718,
                agreement_high=0.9803,
                sqnr_db=30.2,
                max_abs_error=0.81,
                n=n,
            ),
        ),
        classes=classes,
        spread=spread,
        flips=tuple(
            Flip(
                sample=137 * index % n,
                label=CLASSES[index % 10],
                original=CLASSES[index % 10],
                compressed=CLASSES[(index + 3) % 10],
                confidence=0.97 - 0.02 * index,
            )
            for index in range(20)
        ),
        flips_total=118,
    )


def _width(width: Width) -> Decision:
    if width.after < width.before:
        reason = f"{width.before} to {width.after} channels"
        return Decision(node=width.node, op="Conv", action="pruned", reason=reason)
    return Decision(node=width.node, op="Conv", action="kept", reason="all channels matter")


def kept(node: str) -> Decision:
    """A node that the recipe excludes."""
    return Decision(node=node, op="Gemm", action="kept", reason="excluded at recipe.yaml:38")


def _quantized(node: str) -> Decision:
    if node == "fc":
        return kept(node)
    return Decision(node=node, op="Conv", action="quantized", reason="")


def steps() -> tuple[StepRecord, ...]:
    """Clean-up, channel pruning, int8."""
    convolutions = NODES[:-1]
    before = [16 * 2 ** min(2, index // 6) for index in range(len(convolutions))]
    widths = tuple(
        Width(node=node, before=before[index], after=before[index] - 8 * (index % 2))
        for index, node in enumerate(convolutions)
    )
    sensitivity = tuple(
        Sensitivity(node=node, op="Conv", sqnr_db=44.0 - 1.1 * (index * 7 % 19)) for index, node in enumerate(NODES)
    )
    return (
        RECORDS["simplify"](
            index=0,
            step="simplify",
            changed=21,
            seconds=0.41,
            summary="21 nodes folded",
            decisions=tuple(
                Decision(node=f"{node}.bn", op="BatchNormalization", action="folded", reason="into its convolution")
                for node in convolutions
            ),
            size_after=1_100_000,
        ),
        RECORDS["prune.channels"](
            index=1,
            step="prune.channels",
            changed=9,
            seconds=14.2,
            summary="60.1 % of the MACs remain",
            decisions=(
                *(_width(width) for width in widths),
                Decision(node="fc", op="Gemm", action="kept", reason="matches `exclude` classifier"),
            ),
            details=PruneChannelsDetails(widths=widths),
            size_after=700_000,
        ),
        RECORDS["quantize.static"](
            index=2,
            step="quantize.static",
            changed=19,
            seconds=12.4,
            summary="19 of 20 layers int8, per channel, symmetric weights",
            decisions=tuple(_quantized(node) for node in NODES),
            details=QuantizeStaticDetails(sensitivity=sensitivity),
            warnings=("calibration saw 512 samples; 3 activations were never reached",),
            size_after=210_345,
        ),
    )


def unknown_step() -> StepRecord:
    """A step that only a later version has."""
    return StepRecord(index=0, step="prune.later", changed=1, seconds=0.1, summary="1 thing pruned")


def verdict(metric: str = "size.file", outcome: Any = "pass", **changes: Any) -> Verdict:
    """One judged gate."""
    fields: dict[str, Any] = {
        "metric": metric,
        "level": "error",
        "limit": "max 1 MB",
        "verdict": outcome,
        "observed": "210,345 bytes",
        "where": "recipe.yaml:47",
    }
    return Verdict(**{**fields, **changes})


def variant(name: str, size: Size, peak: int) -> Variant:
    """A variant with a hash made from its name."""
    return Variant(
        name=name,
        file=FileFacts(path=f"models/{name}.onnx", sha256=(name.encode().hex() * 16)[:64], name="resnet20"),
        size=size,
        memory=Memory(peak=peak, added=peak // 3),
    )


def report(**changes: Any) -> Report:
    """A complete report of `lepton compress`; `changes` replace fields. The headline is the real one unless given."""
    fields: dict[str, Any] = {
        "command": "compress",
        "status": "ok",
        "complete": True,
        "headline": "",
        "created": "2026-11-20T14:03:12Z",
        "environment": environment(),
        "recipe": RecipeFacts(
            name="resnet20-int8", path="configs/resnet20.yaml", sha256="ab" * 32, resolved={"version": 1, "seed": 0}
        ),
        "data": (
            DataFacts(role="calibration", path="data/train.npz", samples=512, fingerprint="c1" * 32, labelled=True),
            DataFacts(role="evaluation", path="data/test.npz", samples=5000, fingerprint="e1" * 32, labelled=True),
        ),
        "steps": steps(),
        "variants": (
            variant("original", sizes(), 61_000_000),
            variant("compressed", sizes(0.6, "int8"), 48_000_000),
        ),
        "accuracy": accuracy(),
        "latency": latency_table(),
        "reproduce": "lepton compress models/resnet20.onnx -r configs/resnet20.yaml -o out",
        "seconds": 73.0,
        **changes,
    }
    made = Report(**fields)
    return made if made.headline else made.model_copy(update={"headline": headline(made)})
