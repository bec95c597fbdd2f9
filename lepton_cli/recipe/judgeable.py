"""Checks across a recipe's gates: none repeated, and each one answered by something that the recipe measures."""

from __future__ import annotations

from lepton_cli import metrics
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import RecipeError
from lepton_cli.machine import usable_threads
from lepton_cli.measure.spec import EvaluateSpec
from lepton_cli.recipe.scalars import printable
from lepton_cli.recipe.schema import Gate, Recipe, TuneSection
from lepton_cli.recipe.source import Path, SourceMap

_GATES: Path = ("gates",)


def check_repeated(gates: tuple[Gate, ...], source: SourceMap, at: Path = _GATES) -> None:
    """Two gates that compare the same thing are a mistake in one of them. Raises RecipeError.

    `at`: where in the recipe the gates stand.
    """
    seen: dict[tuple[object, ...], int] = {}
    for index, gate in enumerate(gates):
        key = (gate.metric, gate.comparison, gate.against, *gate.scope.items(), gate.level)
        if key in seen:
            first = source.place((*at, seen[key]))
            raise RecipeError(
                "recipe.duplicate-gate",
                f"two gates limit `{gate.comparison}` of `{gate.metric}` in the same place",
                where=source.place((*at, index)),
                note=f"first at {first}" if first else None,
                hint="keep the stricter one",
                option=(*at, index),
            )
        seen[key] = index


def check_measured(gates: tuple[Gate, ...], recipe: Recipe, source: SourceMap, at: Path = _GATES) -> None:
    """A gate on what `evaluate:` leaves out could never fail, so it is an error now. Raises RecipeError."""
    for index, gate in enumerate(gates):
        if found := _unmeasured(gate, recipe.evaluate, recipe.data.evaluation):
            key, reason, hint = found
            path = (*at, index, key)
            raise RecipeError(
                "recipe.gate-not-measured",
                f"the gate on `{gate.metric}` can never be judged: {printable(reason, 200)}",
                where=source.place(path),
                hint=hint,
                option=path,
            )


def check_directions(gates: tuple[Gate, ...], evaluate: EvaluateSpec, source: SourceMap, at: Path = _GATES) -> None:
    """A drop of what should be low, or an increase of what should be high, would limit what gets better.

    Of most metrics a gate alone tells; this is for the recipe's own functions. Raises RecipeError.
    """
    for index, gate in enumerate(gates):
        found = evaluate.directions(gate.metric, gate.output)
        for comparison, wrong, right in (("max_drop", "lower", "max_increase"), ("max_increase", "higher", "max_drop")):
            if gate.comparison == comparison and wrong in found:
                path = (*at, index, comparison)
                raise RecipeError(
                    "recipe.wrong-value",
                    f"`evaluate` says that {wrong} is better for `{gate.metric}`, so write `{right}`",
                    where=source.place(path),
                    hint="name the `output` of the gate" if len(found) > 1 else None,
                    option=path,
                )


def check_goal(tune: TuneSection, evaluate: EvaluateSpec, source: SourceMap) -> None:
    """The same of what a search makes small or large. Raises RecipeError."""
    for key, better in (("minimize", "lower"), ("maximize", "higher")):
        goal = getattr(tune, key)
        if goal is not None and evaluate.directions(goal.metric, goal.output) != {better}:
            other = "maximize" if key == "minimize" else "minimize"
            path: Path = ("tune", key)
            raise RecipeError(
                "recipe.wrong-value",
                f"`evaluate` does not say that {better} is better for `{goal.metric}`: write `{other}`",
                where=source.place(path),
                hint=f"or `better: {better}` at the metric",
                option=path,
            )


def _unmeasured(gate: Gate, evaluate: EvaluateSpec, data: DataSpec | None) -> tuple[str, str, str] | None:
    """The key at fault, why nothing answers the gate, and what to write; `None` when something does."""
    latency, metric = evaluate.latency, metrics.of(gate.metric)
    if metric.source == "latency":
        if latency is False:
            return "metric", "`evaluate.latency` is false", "remove `latency: false` or the gate"
        providers = [provider.name for provider in latency.providers]
        if gate.provider is not None and _short(gate.provider) not in map(_short, providers):
            listed = ", ".join(providers)
            return (
                "provider",
                f"latency is measured on {listed} only",
                "add the provider to `evaluate.latency.providers`",
            )
        if gate.batch is not None and gate.batch not in latency.batch:
            listed = ", ".join(map(str, latency.batch))
            return "batch", f"latency is measured at batch {listed} only", "add the size to `evaluate.latency.batch`"
        counts = latency.threads or (usable_threads(),)
        if gate.threads is not None and gate.threads not in counts:
            listed = ", ".join(map(str, counts))
            return (
                "threads",
                f"latency is measured with {listed} threads only",
                "add the number to `evaluate.latency.threads`",
            )
    if metric.kind == "money" and evaluate.cost is None:
        return "metric", "no price is given", "add `evaluate: {cost: {per_hour: 0.40 USD}}`"
    if metric.source == "energy" and not (evaluate.energy and evaluate.latency):
        return "metric", "`evaluate.energy` or `evaluate.latency` is false", "remove `energy: false` or the gate"
    if metric.source == "memory" and not evaluate.memory:
        return "metric", "`evaluate.memory` is false", "remove `memory: false` or the gate"
    names = [spec.about.name for spec in evaluate.accuracy]
    several = (
        len({spec.output for spec in evaluate.accuracy}) > 1 or len({spec.weight for spec in evaluate.accuracy}) > 1
    )
    names += ["accuracy.score"] if several else []
    if metric.name == "accuracy.worst_group" and data is not None and not data.groups:
        return "metric", "the evaluation data has no groups", "add `groups: [column]` to `data.evaluation`"
    if metric.by_class and any(spec.metric in metrics.CLASSIFYING for spec in evaluate.accuracy):
        return None
    if metric.source == "accuracy" and names and gate.metric not in names:
        return "metric", f"accuracy is measured as {', '.join(names)} only", "add the metric to `evaluate.accuracy`"
    return None


def _short(provider: str) -> str:
    """`CPUExecutionProvider` and `cpu` are the same provider."""
    return provider.lower().removesuffix("executionprovider")
