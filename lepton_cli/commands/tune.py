"""`lepton tune`: measure the original, search, verify the winner, write; resumable at every point."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lepton_cli import cache, metrics
from lepton_cli.commands import measuring, workspace
from lepton_cli.commands.job import Job, prepare
from lepton_cli.commands.run import Arguments, Run
from lepton_cli.commands.trials import Built, Laboratory
from lepton_cli.commands.tune_report import RECIPE, About, Publisher
from lepton_cli.commands.tune_traits import check_space, traits
from lepton_cli.errors import LeptonError, RecipeError, ReportError, StepError
from lepton_cli.machine import machine
from lepton_cli.measure.environment import environment
from lepton_cli.model import io
from lepton_cli.progress import Progress, Silent
from lepton_cli.recipe.load import LoadedRecipe
from lepton_cli.recipe.schema import Gate, TuneSection
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report import facts, store, words
from lepton_cli.report.model import Report
from lepton_cli.report.trial import Trial
from lepton_cli.tune import space as spaces
from lepton_cli.tune.bench import Bench
from lepton_cli.tune.candidate import Candidate, beginning, read_steps
from lepton_cli.tune.contradictions import check_contradictions
from lepton_cli.tune.evaluation import Evaluation
from lepton_cli.tune.journal import Journal, Store, lock, work_folder
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.readings import named, stands
from lepton_cli.tune.search import Search
from lepton_cli.tune.yardsticks import COUNTED, yardsticks

#: Candidates that race for the first place at the end; the others stand in where the winner breaks a limit.
FINALISTS = 3


class Watch(Protocol):
    """Who looks on: the live view, or the lines of a log."""

    def start(self, judge: Judge, axes: tuple[Objective, Objective], seconds: float, trials: int | None) -> None:
        """The search begins."""

    def begin(self, name: str) -> None:
        """A candidate is being measured."""

    def end(self, trial: Trial, trials: Sequence[Trial], best: Trial | None) -> None:
        """It has been."""

    def note(self, text: str) -> None:
        """A remark."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a search left: the report, and the files written in order of interest."""

    report: Report
    files: tuple[Path, ...]
    interrupted: bool = False


def tune(
    model: Path,
    recipe: LoadedRecipe,
    output: Path,
    watch: Watch,
    progress: Progress | None = None,
    *,
    earlier: Path | None = None,
    allow_code: bool = False,
    run: Run | None = None,
) -> Tuned:
    """Search for the best model under the recipe's limits. `earlier`: a report whose trials are taken over;
    `run`: how it was asked for, where that is not by these arguments.

    Raises LeptonError (exit code 2) for what cannot be searched; a search without a candidate that holds the limits
    ends in a report whose gates fail.
    """
    if run is None:
        run = Run(Arguments.of("tune", model, recipe, output=output, earlier=earlier, allow_code=allow_code))
    workspace.check(output, model, own=(f"{recipe.name}.onnx", f"{recipe.name}.onnx.data", RECIPE))
    job = prepare(model, recipe, allow_code=allow_code)
    folder = output / workspace.TUNE
    folder.mkdir(parents=True, exist_ok=True)
    with work_folder(folder) as scratch:
        try:
            return _Tuning(job, output, folder, scratch, watch, progress or Silent(), run).execute(earlier)
        except LeptonError as error:
            job.locate(error)
            raise


class _Tuning:
    """One process of a search."""

    def __init__(
        self, job: Job, output: Path, folder: Path, scratch: Path, watch: Watch, progress: Progress, run: Run
    ) -> None:
        self.job, self.output, self.folder, self.watch, self.progress = job, output, folder, watch, progress
        self.section = job.spec.tune or TuneSection()
        self.limits = self.section.limits or job.spec.gates
        self.limits_at = "tune.limits" if self.section.limits else "gates"
        self.environment = environment()
        evaluation, calibration = job.evaluation, job.calibration
        self.search = cache.key(
            model=job.loaded.sha256,
            evaluation=evaluation.fingerprint if evaluation else None,
            groups=tuple(evaluation.groups) if evaluation else (),
            calibration=calibration.fingerprint if calibration else None,
            training=job.training.fingerprint if job.training else None,
            teachers=job.teachers(),
            evaluate=job.spec.evaluate,
            threads=job.threads,
            seed=job.spec.seed,
        )
        self.judge = Judge(self.limits, self.section.goal, measuring.structure(job.loaded, job), self.environment)
        self.lab = Laboratory(job, self.judge, self.search, folder, scratch, progress)
        first = beginning(job.spec.steps)
        check_space(job, self.section.space, first)
        known = traits(job, self.limits, self.section.goal, first)
        self.space = spaces.derive(self.section.space, known, first)
        self.store: Store = self._open_store()
        self.run = run
        self.run.warnings += job.warnings

    def _open_store(self) -> Store:
        if self.section.storage is None:
            return Journal(self.folder, self.search)
        from lepton_cli.tune.shared import SharedStore

        return SharedStore(self.section.storage, self.search, self.job.recipe.base)

    def execute(self, earlier: Path | None) -> Tuned:
        """All of it. Ctrl-C ends with the report of the best so far."""
        original = self._original()
        if earlier is not None:
            self._take_over(earlier)
        self.publisher = Publisher(
            self.job,
            self.judge,
            self.output,
            self.run,
            self.limits_at,
            self._about(),
            self._axes(original),
        )
        bench = self._bench(original)
        self.watch.start(self.judge, self.publisher.axes, bench.seconds, bench.most)
        try:
            search = Search(
                self.space,
                bench,
                self.lab.foresight(self.space, self.watch.note),
                yardsticks(self.judge, original),
                self._start(),
            )
            self._check_floors(search, original)
            search.run()
            return self._finish(bench, search.ended)
        except KeyboardInterrupt:
            return self._interrupted(bench)

    def _check_floors(self, search: Search, original: Trial) -> None:
        """Raise RecipeError for a limit that not even the least widths hold."""
        metric = {figure: name for name, figure in COUNTED.items()}
        size = self.judge.original
        whole = {"bytes": size.file, "parameters": size.parameters, "macs": size.macs}
        floors = {metric[name]: share * (whole[name] or 0) for name, share in search.floors().items()}
        if floors:
            check_contradictions(self.limits, self.judge, original, floors, at=tuple(self.limits_at.split(".")))

    def _original(self) -> Trial:
        """The original, measured once a search; everything the limits and the goal name must be in it."""
        known = {trial.key: trial for trial in self.store.trials()}
        needed = {source: self.judge.needs(source) for source in ("latency", "memory")}
        key = cache.key(search=self.search, needed=needed, machine=machine(), first=self.space.first)
        original = known.get(key)
        if original is None:
            with self.progress.stage("original"):
                original = self.lab.original(self.space.first).model_copy(update={"key": key})
            self.store.add(original)
        self.judge = self.lab.judge = dataclasses.replace(self.judge, memory=original.memory)
        report = self.judge.report(original)
        for index, gate in enumerate(self.limits):
            if not facts.find(report, gate.metric, **gate.scope):
                if facts.skipped(report, gate.metric, gate.provider, gate.batch):
                    continue
                raise _not_measured(gate, (*self.limits_at.split("."), index), report)
        goal_at = ("tune", "minimize" if self.section.minimize else "maximize")
        if self.judge.value(original) is None:
            raise _not_measured(self.judge.goal, goal_at, report)
        at = tuple(self.limits_at.split("."))
        check_contradictions(self.limits, self.judge, original, at=at)
        job = self.job
        told = Evaluation(job.evaluation or job.check, self.lab.reference, job.spec.evaluate.accuracy, job.threads)
        self.run.warnings += told.check(self.judge, original, at=at, goal_at=goal_at)
        return original

    def _take_over(self, earlier: Path) -> None:
        """Trials of an earlier report, which the present limits judge anew."""
        tuned = store.read(earlier).tune
        if tuned is None:
            raise ReportError("tune.not-tuned", f"{earlier} is not the report of a `lepton tune`", where=str(earlier))
        if tuned.search != self.search:
            raise ReportError(
                "tune.other-search",
                f"{earlier} is about another model, other data, or another machine setting",
                where=str(earlier),
                hint="limits, goal, space and budget may differ; model, data, `evaluate` and seed must be the same",
            )
        known = {trial.key for trial in self.store.trials()}
        for trial in tuned.records:
            if trial.key not in known:
                self.store.add(trial.model_copy(update={"elapsed": 0.0}))

    def _bench(self, original: Trial) -> Bench:
        budget = self.section.budget
        spec = self.job.spec.evaluate.latency
        last = original.seconds + (float(spec.time) * len(spec.providers) * len(spec.batch) if spec else 0.0)
        if original.seconds > float(budget.time):
            raise _too_small(
                f"a trial of this model takes at least {original.seconds:.1f} s, and the budget is {budget.time}"
            )
        bench = Bench(
            self.store,
            self.judge,
            self.search,
            self.lab.measure,
            max(float(budget.time) - last, 0.5 * float(budget.time)),
            budget.trials,
            self.environment.cpu,
            usual=2 * original.seconds,
            finished=self._finished,
            beginning=lambda candidate: self.watch.begin(candidate.name),
        )
        self.lab.until = bench.end
        return bench

    def _start(self) -> list[Candidate]:
        """The recipe's own steps, where there is more to them than cleaning up."""
        spec = self.job.spec
        return [] if spec.only_tunes else [Candidate("recipe", tuple(spec.steps), {}, "recipe")]

    def _axes(self, original: Trial) -> tuple[Objective, Objective]:
        """The two sides of the trade-off: what is made small and what is kept."""
        section, report = self.section, self.judge.report(original)
        names = facts.names(report)
        accuracy = [name for name in names if metrics.of(name).source == "accuracy"]
        limited = [gate.metric for gate in self.limits if gate.metric in accuracy]
        quality = section.maximize or Objective(
            metric=(
                limited
                or accuracy
                or [name for name in ("agreement", "fidelity.sqnr") if name in names]
                or ["agreement"]
            )[0]
        )
        timed = "latency.median" if "latency.median" in names else "size.file"
        return section.minimize or Objective(metric=timed), quality

    def _about(self) -> About:
        return About(
            search=self.search,
            seed=self.job.spec.seed,
            space=dict(self.space.dimensions),
            dropped=self.space.dropped,
        )

    def _own(self, trials: Sequence[Trial]) -> list[Trial]:
        """Without the original."""
        return [trial for trial in trials if trial.steps]

    def _finished(self, trial: Trial) -> None:
        """Tell, and write when it is the best so far of all processes."""
        trials = self._own(self.store.trials())
        best = self.judge.best(trials)
        self.watch.end(trial, trials, best)
        if best is not None and best.key == trial.key:
            with lock(self.folder / "locks" / "best"):
                built = self.lab.build(_candidate(trial))
                self.publisher.provisional(trial, built, trials)

    def _finish(self, bench: Bench, ended: str) -> Tuned:
        """Verify: the closest race, all measurements, and the next one when the first breaks a limit after all."""
        trials = self._own(bench.trials())
        ranked = self._ranked(trials)
        if not trials:
            raise _too_small(f"no trial was finished within {self.section.budget.time}")
        if not ranked:
            reasons = "; ".join(sorted({trial.reason for trial in trials if trial.reason})[:2])
            raise StepError("tune.all-failed", "no candidate could be measured", cause=reasons or None)
        self.publisher.about = dataclasses.replace(
            self.publisher.about,
            seconds=round(bench.own_seconds, 2),
            overhead=round(1 - bench.measuring / max(bench.own_seconds, 1e-9), 4) if bench.measuring else 0.0,
        )
        with lock(self.folder / "locks" / "best"):
            fallback: tuple[Report, Trial, Built, measuring.Measured] | None = None
            for trial in self._raced(ranked):
                self.watch.note(f"verifying {trial.name}")
                built = self.lab.build(_candidate(trial))
                with self.lab.quiet.measuring():
                    measured = measuring.measure(
                        {"original": self.job.loaded, "compressed": io.load(built.path)},
                        self.job,
                        self.progress,
                        seed=self.job.spec.seed,
                        new=self.lab.new,
                    )
                report = self.publisher.judged(trial, trials, built.records, measured, ended)
                if all(map(stands, report.gates)):
                    return Tuned(self.publisher.final(trial, built, trials, measured, ended), self.publisher.files())
                if fallback is None or (report.status, fallback[0].status) == ("ok", "gate_failed"):
                    fallback = (report, trial, built, measured)
            assert fallback is not None
            _, trial, built, measured = fallback
            built = self.lab.build(_candidate(trial))
            return Tuned(self.publisher.final(trial, built, trials, measured, ended), self.publisher.files())

    def _ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The best and those next to it; without any within the limits the nearest to them."""
        best = self.judge.best(trials)
        if best is None:
            nearest = self.judge.nearest(trials)
            return [nearest] if nearest else []
        ranked = [best]
        while len(ranked) < FINALISTS:
            keys = {trial.key for trial in ranked}
            following = self.judge.best(trial for trial in trials if trial.key not in keys)
            if following is None:
                break
            ranked.append(following)
        return ranked

    def _raced(self, ranked: list[Trial]) -> list[Trial]:
        """Finalists in the order of a race against each other, where the goal is a time."""
        spec = self.lab.spec
        if len(ranked) < 2 or spec is None or not metrics.of(self.judge.goal.metric).varies:
            return ranked
        self.watch.note(f"{len(ranked)} finalists race")
        goal, full = self.judge.goal, self.job.spec.evaluate.latency
        assert full
        paths = {trial.key: self.lab.build(_candidate(trial), trial.key).path for trial in ranked}
        spec = spec.model_copy(update={"time": full.time, "precision": full.precision})
        table = self.lab.race(paths, spec)
        first = {"provider": spec.providers[0].name, "batch": spec.batch[0], "threads": table.changes[0].threads}
        asked = {**first, **goal.scope}
        ratio = {c.variant: c.ratio for c in table.changes if all(getattr(c, key) == asked[key] for key in first)}
        return sorted(ranked, key=lambda trial: ratio.get(trial.key, float("inf")))

    def _interrupted(self, bench: Bench) -> Tuned:
        """What is known, from the trials alone."""
        trials = self._own(bench.trials())
        ranked = self._ranked(trials)
        if not ranked or ranked[0].size is None:
            raise KeyboardInterrupt
        with lock(self.folder / "locks" / "best"):
            built = self.lab.build(_candidate(ranked[0]))
            report = self.publisher.provisional(ranked[0], built, trials, interrupted=True)
        return Tuned(report, self.publisher.files(), interrupted=True)


def _candidate(trial: Trial) -> Candidate:
    return Candidate(trial.name, read_steps(trial.steps), trial.point, trial.origin)


def _not_measured(asked: Gate | Objective, path: tuple[str | int, ...], report: Report) -> RecipeError:
    others = ", ".join(words.scope(fact.scope) for fact in facts.find(report, asked.metric))
    return RecipeError(
        "tune.not-measured",
        f"{named(asked.metric, asked.scope)} cannot be measured with this model and recipe",
        cause=None if others else facts.absent(report, asked.metric) or None,
        hint=f"it is measured for: {others}" if others else f"measured: {', '.join(facts.names(report))}",
        option=path,
    )


def _too_small(message: str) -> RecipeError:
    return RecipeError(
        "tune.budget-too-small",
        message,
        hint="raise `tune.budget.time`, or measure less: fewer `samples` to evaluate, `evaluate.latency.time`",
        option=("tune", "budget", "time"),
    )
