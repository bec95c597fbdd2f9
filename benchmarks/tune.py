"""What `lepton tune` finds in a given time, against recipes by hand and against samplers that know nothing of models.

    PYTHONPATH=. python benchmarks/tune.py run    --out FOLDER [--assets DIR] [--problems a,b] [--seeds 0,1,2]
                                                  [--minutes 15] [--threads N]
    PYTHONPATH=. python benchmarks/tune.py hand   --out FOLDER [--assets DIR] [--problems a,b]
    PYTHONPATH=. python benchmarks/tune.py random --out FOLDER [...as `run`] [--samplers random,tpe,gp]
    PYTHONPATH=. python benchmarks/tune.py table  FOLDER...

`run` is the command line, as a user has it. `hand` is the ten recipes of each problem (`tune_problems.py`), `random`
Optuna's samplers over the space in `tune_space.py` (gp needs scipy and torch). Both measure and judge a candidate as a
trial of `tune` does, and have what is best measured in full by `compress`; samplers get the whole time for trials,
recipes by hand as long as they take. mlp, cnn and vit need no assets.

Every run begins with an empty cache, and is a file ARM-PROBLEM-SEED.json in FOLDER; those that are there are not run
again, one that was stopped begins anew. `table` (`tune_table.py`) draws from them what the search is worth.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tune_space
import tune_table
from tune_problems import PROBLEMS, TEN, Problem

from lepton_cli import gates, metrics
from lepton_cli.commands import measuring
from lepton_cli.commands.compress import compress
from lepton_cli.commands.job import prepare
from lepton_cli.commands.trials import Laboratory
from lepton_cli.commands.tune_traits import traits
from lepton_cli.errors import LeptonError
from lepton_cli.measure.environment import environment
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from lepton_cli.recipe.schema import Gate, TuneSection
from lepton_cli.recipe.tuning import Objective
from lepton_cli.report import facts, store
from lepton_cli.report.model import Report
from lepton_cli.report.trial import Band, Trial
from lepton_cli.tune.bench import Bench, Spent
from lepton_cli.tune.candidate import Candidate
from lepton_cli.tune.journal import Journal, work_folder
from lepton_cli.tune.limits import Judge

#: What trials of one folder have in common; every run has a folder of its own.
SEARCH = "benchmark"
#: Of recipes by hand and of samplers: how many are measured in full where the best breaks a limit after all.
FINALISTS = 3
#: Seconds that no recipe by hand reaches, and known points in a row after which a sampler has seen its space.
LONG, IDLE = 86_400.0, 300
#: Room above a floor that is as good as any: equal outputs have infinite decibels, and at 20 more errors are a tenth.
EQUAL = 20.0

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem under a seed, with the folder to work in."""

    problem: Problem
    seed: int
    seconds: float
    folder: Path
    threads: int | None = None

    def recipe(self, steps: Sequence[Json] = ()) -> Json:
        """What `tune` gets; with `steps` what `compress` does, with the limits as gates."""
        plain = {**self.problem.recipe, "name": "made", "seed": self.seed}
        section, measured = plain.pop("tune"), plain["evaluate"]
        if self.threads and measured["latency"]:
            plain["evaluate"] = {**measured, "latency": {**measured["latency"], "threads": self.threads}}
        if steps:
            return {**plain, "steps": steps, "gates": section["limits"]}
        return {**plain, "tune": {**section, "budget": {"time": f"{self.seconds:g} s"}}}

    @property
    def section(self) -> TuneSection:
        """Limits and goal."""
        found = from_dict(self.recipe()).recipe.tune
        assert found is not None
        return found


class Scribe:
    """Writes trials down as the judge of `tune` sees them."""

    def __init__(self, task: Task, judge: Judge) -> None:
        self.judge = judge
        self.cost = task.section.minimize or Objective(metric="latency.median")
        self.floor = Gate.model_validate(task.problem.floor)

    def row(self, trial: Trial) -> Json:
        """`cost`: the goal that is made small (without one the time), as a share of the original's. `spare`: how far
        the quality is above the floor, in its own unit. Both as far as they were measured."""
        report = self.judge.report(trial)
        costs = facts.find(report, self.cost.metric, **self.cost.scope)
        above = [
            (float(self.floor.limit) - found.value) * (1 if self.floor.comparison in ("max", "max_drop") else -1)
            for fact in facts.find(report, self.floor.metric, **self.floor.scope)
            if (found := gates.compared(self.floor.comparison, fact)) is not None
        ]
        whole = trial.reached in ("accuracy", "latency")
        return {
            "name": trial.name,
            "origin": trial.origin,
            "point": trial.point,
            "steps": list(trial.steps),
            "reached": trial.reached,
            "begun": trial.begun,
            "reason": trial.reason,
            "seconds": round(trial.seconds, 3),
            "elapsed": round(trial.elapsed, 3),
            "held": self.judge.feasible(trial),
            "breaches": [
                {"metric": breach.metric, "excess": breach.excess, "source": metrics.of(breach.metric).source}
                for breach in self.judge.breaches(trial)
            ],
            "goal": self.judge.value(trial) if whole else None,
            "cost": costs[0].ratio.value if costs and costs[0].ratio and whole else None,
            "spare": min((*above, EQUAL)) if whole and above else None,
            # What tells models apart: two trials with the same of it made the same model.
            "made": [trial.size.file, trial.size.macs, *_answers(trial)] if trial.size else None,
            "code": trial.code,
            "why": trial.why,
            "chance": trial.forecast.chance if trial.forecast else None,
            "foretold": [list(one) for one in self._foretold(trial)],
        }

    def _foretold(self, trial: Trial) -> Iterator[tuple[str, float, float, float]]:
        """Of goal and limits what they are measured by, what was found, and the ends that it was expected between."""
        if trial.forecast is None:
            return
        goal, value, report = self.judge.goal, self.judge.value(trial), self.judge.report(trial)
        if trial.forecast.goal is not None and value is not None and trial.complete:
            fact = facts.find(report, goal.metric, **goal.scope)[0]
            seen = fact.ratio if fact.about.varies and fact.ratio else fact.value
            found = Band(value=value, low=value - (seen.high - seen.low) / 2, high=value + (seen.high - seen.low) / 2)
            yield fact.about.source, *between(trial.forecast.goal, found)
        margins = self.judge.margins(trial)
        for index, (gate, band) in enumerate(zip(self.judge.limits, trial.forecast.limits, strict=False)):
            of_it = [margin.found for margin in margins if margin.limit == index]
            if band is not None and len(of_it) == 1:
                yield metrics.of(gate.metric).source, *between(band, of_it[0])

    def result(self, report: Report) -> Json | None:
        """The row of what was measured in full; held where no gate of the report failed."""
        if not report.complete or len(report.variants) < 2:
            return None
        made = report.variants[-1]
        trial = Trial(
            key="result",
            name="result",
            reached="latency" if report.latency else "accuracy",
            size=made.size,
            accuracy=report.accuracy,
            latency=report.latency,
            memory=made.memory,
            cost=report.cost,
        )
        verdicts = {gate.metric: gate.verdict for gate in report.gates}
        return {**self.row(trial), "held": report.status == "ok", "verdicts": verdicts}


def between(expected: Band, found: Band) -> tuple[float, float, float]:
    """What was found, and the ends between which it should be in 95 of 100 cases: `expected` is of the true value, and
    the squares of independent errors add."""
    error = (found.high - found.low) / 2
    below = math.hypot(expected.value - expected.low, error)
    return found.value, expected.value - below, expected.value + math.hypot(expected.high - expected.value, error)


def _answers(trial: Trial) -> list[float]:
    found = trial.accuracy
    if found is None:
        return []
    values = [value.value for value in found.values.get("compressed", ())]
    return [*values, *(close.sqnr_db for close in found.fidelity if close.sqnr_db is not None)]


def searched(task: Task) -> Json:
    """`lepton tune`, by its command line."""
    file, output = task.folder / "tune.yaml", task.folder / "out"
    file.write_text(json.dumps(task.recipe(), indent=1))
    command = [sys.executable, "-m", "lepton_cli", "tune", str(task.problem.model), "-r", str(file), "-o", str(output)]
    with (task.folder / "log.txt").open("w") as log:
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if not (output / "report.json").exists():
        return {"exit": ended.returncode, "ended": _last_line(task.folder / "log.txt"), "trials": [], "result": None}
    report = store.read(output / "report.json")
    assert report.tune is not None
    original = report.variants[0]
    judge = Judge(task.section.limits, task.section.goal, original.size, report.environment, original.memory)
    scribe = Scribe(task, judge)
    return {
        "exit": ended.returncode,
        "ended": report.tune.ended,
        "overhead": report.tune.overhead,
        "trials": [scribe.row(trial) for trial in report.tune.records],
        "result": scribe.result(report),
    }


def _last_line(path: Path) -> str:
    return next((line for line in reversed(path.read_text().splitlines()) if line.strip()), "")


@contextlib.contextmanager
def _laboratory(task: Task, seconds: float) -> Iterator[tuple[Laboratory, Bench]]:
    """Where `tune` measures its candidates, with the original measured."""
    job, here = prepare(task.problem.model, from_dict(task.recipe())), environment()
    judge = Judge(task.section.limits, task.section.goal, measuring.structure(job.loaded, job), here)
    with work_folder(task.folder) as scratch:
        lab = Laboratory(job, judge, SEARCH, task.folder, scratch, Silent())
        lab.judge = dataclasses.replace(judge, memory=lab.original(()).memory)
        bench = Bench(
            Journal(task.folder, SEARCH), lab.judge, SEARCH, lab.measure, seconds, None, here.cpu, finished=_say
        )
        lab.until = bench.end
        yield lab, bench


def _say(trial: Trial) -> None:
    print(f"  {trial.elapsed:7.1f} s  {trial.name}  {trial.reason}", flush=True)


def by_hand(task: Task) -> Json:
    """The problem's ten recipes, each a trial."""
    candidates = []
    for steps in task.problem.by_hand:
        words = " + ".join(" ".join([step["step"], *map(_word, list(step.items())[1:])]) for step in steps[1:])
        candidates.append(Candidate(words, from_dict(task.recipe(steps)).recipe.steps, {}, "hand"))
    with _laboratory(task, LONG) as (lab, bench):
        bench.run(candidates)
        return _concluded(task, lab.judge, bench, "all recipes are measured")


def _word(option: tuple[str, Any]) -> str:
    name, value = option
    return " ".join(f"{key} {share}" for key, share in value.items()) if isinstance(value, dict) else f"{name} {value}"


def sampled(sampler: str) -> Callable[[Task], Json]:
    """A space of targets in the hands of one of Optuna's samplers, which is told of limits by its own constraints."""

    def run(task: Task) -> Json:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _laboratory(task, task.seconds) as (lab, bench):
            job, judge = lab.job, lab.judge
            sized = any(metrics.of(gate.metric).sized for gate in judge.limits)
            space = tune_space.derive(task.section.space, traits(job, judge.limits, judge.goal, ()), sized)
            study = optuna.create_study(sampler=_sampler(optuna, sampler, task.seed))
            ended = "the budget is spent"
            with contextlib.suppress(Spent):
                _sample(optuna, study, space, bench, sampler)
                ended = f"{IDLE} points in a row were known"
            return _concluded(task, judge, bench, ended)

    return run


def _sampler(optuna: Any, name: str, seed: int) -> Any:
    def excess(trial: Any) -> Sequence[float]:
        found: Sequence[float] = trial.user_attrs.get("excess", ())
        return found

    match name:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, constraints_func=excess)
        case _:
            return optuna.samplers.GPSampler(seed=seed, constraints_func=excess)


def _sample(optuna: Any, study: Any, space: tune_space.Targets, bench: Bench, origin: str) -> None:
    """Until the bench is spent, or every new point is a known one. What has no goal is told as the original's."""
    kinds = optuna.distributions
    choices = {
        name: kinds.IntDistribution(0, len(values) - 1)
        if name in tune_space.LADDERS
        else kinds.CategoricalDistribution(range(len(values)))
        for name, values in space.dimensions.items()
    }
    idle = 0
    while idle < IDLE:
        asked = study.ask(choices)
        point = space.point({name: space.dimensions[name][asked.params[name]] for name in choices})
        before = len(bench.trials())
        (trial,) = bench.run([space.candidate(point, origin)])
        idle = idle + 1 if len(bench.trials()) == before else 0
        if trial.reached == "failed":
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            continue
        asked.set_user_attr("excess", signed(bench.judge, trial))
        value = bench.judge.value(trial)
        study.tell(asked, value if value is not None and math.isfinite(value) else 1.0)


def signed(judge: Judge, trial: Trial) -> list[float]:
    """How far beyond each limit, relative to it; below 0 within. 0 for what was not measured."""
    report, found = judge.report(trial), []
    for gate in judge.limits:
        beyond = [
            (observed.value - float(gate.limit)) * (-1 if gate.comparison.startswith("min") else 1)
            for fact in facts.find(report, gate.metric, **gate.scope)
            if (observed := gates.compared(gate.comparison, fact)) is not None and math.isfinite(observed.value)
        ]
        found.append(max(beyond, default=0.0) / max(abs(float(gate.limit)), 0.01))
    return found


def _concluded(task: Task, judge: Judge, bench: Bench, ended: str) -> Json:
    """The trials in order, and the best measured in full: the first of the three best that holds the limits."""
    scribe, result = Scribe(task, judge), None
    trials = bench.trials()
    left = list(trials)
    for place in range(FINALISTS):
        best = judge.best(left)
        if best is None:
            break
        left.remove(best)
        made = from_dict(task.recipe(best.steps))
        report = compress(task.problem.model, made, task.folder / f"made-{place}", Silent()).report
        found = scribe.result(report)
        result = result or found
        if found and found["held"]:
            result = found
            break
    held = bool(result and result["held"])
    overhead = 1 - bench.measuring / max(bench.own_seconds, 1e-9)
    rows = [scribe.row(trial) for trial in trials]
    return {"exit": 0 if held else 1, "ended": ended, "overhead": overhead, "trials": rows, "result": result}


ARMS: dict[str, Callable[[Task], Json]] = {
    "tune": searched,
    "hand": by_hand,
    **{name: sampled(name) for name in ("random", "tpe", "gp")},
}


def measure(arms: Sequence[str], names: Sequence[str], seeds: Sequence[int], given: argparse.Namespace) -> None:
    """One file for each arm, problem and seed that has none yet."""
    here = environment()
    for arm, name, seed in ((arm, name, seed) for name in names for seed in seeds for arm in arms):
        file = given.out / f"{arm}-{name}-{seed}.json"
        if file.exists():
            continue
        print(f"{arm}, {name}, seed {seed}", flush=True)
        folder = given.out.resolve() / "work" / file.stem
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        task = Task(PROBLEMS[name](given.assets.resolve()), seed, 60 * given.minutes, folder, given.threads)
        started, spent = time.monotonic(), _cpu()
        try:
            with patch.dict(os.environ, LEPTON_CACHE=str(folder / "cache")):  # no run finds what another measured
                found = ARMS[arm](task)
        except LeptonError as error:  # one that cannot be measured costs no other
            found = {"exit": int(error.exit_code), "ended": error.message, "trials": [], "result": None}
        except ImportError as missing:  # what a sampler needs: installed, it runs
            print(f"  {missing}", flush=True)
            continue
        about = {"arm": arm, "problem": name, "seed": seed, "minutes": given.minutes, "threads": given.threads}
        machine = {"cpu": here.cpu, "cores": here.usable_cores, "lepton": here.lepton, "onnxruntime": here.onnxruntime}
        times = {"wall": time.monotonic() - started, "cpu": _cpu() - spent}
        made = {**about, "machine": machine, **times, **found}
        store.write_text(json.dumps(made, indent=1) + "\n", file)
        for kept in (folder / "cache", *folder.rglob("models")):  # what several candidates begin with: gigabytes
            shutil.rmtree(kept, ignore_errors=True)


def _cpu() -> float:
    """CPU seconds of this process and those it waited for: far below the wall's, the machine was not quiet."""
    return sum(os.times()[:4])


def main(arguments: Sequence[str] | None = None) -> None:
    """One of the four parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("run", "hand", "random"):
        part = parts.add_parser(name)
        part.add_argument("--out", type=Path, required=True)
        part.add_argument("--assets", type=Path, default=Path(), help="other people's models and data")
        part.add_argument("--problems", default=",".join(TEN), help=f"of {', '.join(PROBLEMS)}")
        part.add_argument("--threads", type=int, help="of onnxruntime where time is measured; default: all cores")
        part.add_argument("--seeds", default="0" if name == "hand" else "0,1,2")
        part.add_argument("--minutes", type=float, default=15.0)
    parts.choices["random"].add_argument("--samplers", default="random,tpe,gp")
    parts.add_parser("table").add_argument("folders", type=Path, nargs="+")
    given = parser.parse_args(arguments)
    if given.part == "table":
        files = [file for folder in given.folders for file in folder.glob("*.json")]
        print(tune_table.table([json.loads(file.read_text()) for file in files]))
        return
    arms = {"run": ["tune"], "hand": ["hand"], "random": getattr(given, "samplers", "").split(",")}[given.part]
    problems = given.problems.split(",")
    if unknown := [*{*arms} - {*ARMS}, *{*problems} - {*PROBLEMS}]:
        parser.error(f"there is no {', '.join(unknown)}")
    measure(arms, problems, [int(seed) for seed in given.seeds.split(",")], given)


if __name__ == "__main__":
    main()
