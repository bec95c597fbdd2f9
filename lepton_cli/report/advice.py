"""What to try when a gate fails: the part of the report that explains the number, in one line."""

from __future__ import annotations

from collections.abc import Mapping

from lepton_cli import metrics
from lepton_cli.measure.results import Layer
from lepton_cli.report import words
from lepton_cli.report.model import Report


def hint(metric: str, outcome: str, report: Report, scope: Mapping[str, str | int]) -> str:
    """One line of advice for a gate that failed or stayed open; empty where there is none."""
    about = metrics.of(metric)
    if outcome == "inconclusive" and about.by_class:
        return f"widen the limit, or evaluate on more samples of every {about.row}"
    if outcome == "inconclusive":
        return "widen the limit, or measure longer: --set evaluate.latency.time=60s"
    if about.layers:
        return _largest(report, by=about.layers)
    if about.quality:
        return _sensitive(report)
    if about.source == "latency":
        return _slow(report, scope)
    return ""


def _largest(report: Report, *, by: str) -> str:
    """The three largest layers, with the reason where a step left one alone."""
    layers = report.variants[-1].size.layers if report.variants else ()
    ranked = sorted(layers, key=lambda layer: getattr(layer, by) or 0, reverse=True)[:3]
    decisions = [decision for step in report.steps for decision in step.decisions]
    kept = {decision.node: decision.reason for decision in decisions if decision.action == "kept"}
    parts = [_layer(layer, by) + (f" (kept: {kept[layer.node]})" if layer.node in kept else "") for layer in ranked]
    return f"largest: {', '.join(parts)}" if parts else ""


def _layer(layer: Layer, by: str) -> str:
    amount = getattr(layer, by) or 0
    return f"{layer.node} {words.value(amount, 'size' if by == 'bytes' else 'count')} {layer.dtype}"


def _sensitive(report: Report) -> str:
    """The nodes that lose most, where a step measured it."""
    rows = report.sensitivity
    if rows:
        named = ", ".join(f"{node} ({words.value(sqnr_db, 'decibel')})" for node, sqnr_db, _ in rows[:3])
        return f"most sensitive: {named}; add them to `exclude`"
    steps = {step.step for step in report.steps}
    if "prune.channels" in steps or "prune.weights" in steps:
        return "prune less, or give calibration data so that recovery can repair more"
    return "give more calibration samples, or exclude nodes from quantization" if steps else ""


def _slow(report: Report, scope: Mapping[str, str | int]) -> str:
    """Nodes that ran elsewhere, or the usual reason of a slower quantized model."""
    provider = scope.get("provider")
    for result in report.latency.results if report.latency else ():
        elsewhere = {
            name: count for name, count in result.placement.items() if str(provider).lower() not in name.lower()
        }
        if result.provider == provider and result.variant == report.variants[-1].name and elsewhere:
            listed = ", ".join(f"{words.plural(count, 'node')} on {name}" for name, count in elsewhere.items())
            return f"not all nodes ran on {provider}: {listed}"
    if any(step.step.startswith("quantize") for step in report.steps) and not any(
        "vnni" in name.lower() or "dot" in name.lower() for name in report.environment.instructions
    ):
        return "this CPU has no int8 dot product: prune channels instead, or quantize the weights only"
    return "prune more channels: lepton plan shows which layers hold the work"
