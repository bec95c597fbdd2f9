"""One trial of `lepton tune`: build the candidate, reusing what others began with; measure as far as it is worth it."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from lepton_cli import metrics, units
from lepton_cli.commands import measuring, runner, workspace
from lepton_cli.commands.job import Job
from lepton_cli.errors import LeptonError, disk_full
from lepton_cli.measure import accuracy, cost, latency, memory, size
from lepton_cli.measure.remembered import Remembered
from lepton_cli.measure.results import Accuracy, LatencyTable, Memory
from lepton_cli.measure.spec import LatencySpec
from lepton_cli.model import io
from lepton_cli.probe import parts
from lepton_cli.progress import Progress
from lepton_cli.report.model import STEP_RECORDS, StepRecord
from lepton_cli.report.trial import Trial, slim_accuracy, slim_latency, slim_size
from lepton_cli.runtime import Session
from lepton_cli.step import Context, Options
from lepton_cli.tune.candidate import Candidate, prefix_key, read_steps
from lepton_cli.tune.journal import Quiet, lock
from lepton_cli.tune.known import Foresight
from lepton_cli.tune.limits import Judge
from lepton_cli.tune.space import SearchSpace
from lepton_cli.version import __version__

#: Steps that took longer than this since the last kept model are kept for other candidates, up to so many bytes.
KEEP_SECONDS, KEEP_BYTES = 1.0, 4_000_000_000
#: Samples that a candidate is judged on before all of them, where there are at least twice as many.
PROXY_SAMPLES = 400
#: Trials are timed more coarsely than the result.
TRIAL_SECONDS, TRIAL_PRECISION = 3.0, 0.03
#: Times that a surprising time is measured again; the middle one counts.
AGAIN = 2


@dataclasses.dataclass(frozen=True)
class Built:
    """A candidate as a file in the work folder, and what its steps did."""

    path: Path
    model: ir.Model
    records: tuple[StepRecord, ...]


class Laboratory:
    """Builds and measures candidates of one search. `folder` is shared by all its processes."""

    #: Moment of `time.monotonic()` by which a trial has to be over.
    until = math.inf

    def __init__(self, job: Job, judge: Judge, search: str, folder: Path, scratch: Path, progress: Progress) -> None:
        self.job, self.judge, self.search, self.scratch = job, judge, search, scratch
        self.models = folder / "models"
        self.models.mkdir(parents=True, exist_ok=True)
        self.quiet = Quiet(folder)
        self.progress = progress
        self.context: Context = measuring.context(job, scratch, progress)
        self.spec = _trial_spec(job, judge)
        self._original: runner.Checked | None = None
        #: What was built last, by key and name: the best is built, measured and written.
        self._last: tuple[tuple[str, str], Built] | None = None
        #: Outputs that every candidate has and the original has not.
        self.new = {"compressed": job.new_outputs()}
        self.ways = parts.segments(job.loaded.model)
        payload = io.payload(job.loaded.model, scratch)
        self.reference: Session | Path = (
            Remembered(payload, threads=job.threads) if isinstance(payload, bytes) else payload
        )

    def original(self, first: tuple[Options, ...]) -> Trial:
        """The original against itself: what a trial costs at least, and what can be measured at all.

        `first`: what every candidate begins with; the accuracy is that of what these steps make.
        """
        loaded = self.job.loaded
        with self.quiet.working():
            judged = self.build(Candidate("original", first)).path if first else loaded.path
            started = time.monotonic()
            facts = slim_size(measuring.structure(loaded, self.job))
            found = self._accuracy(judged, None)
            peak = self._memory(loaded.path)
        trial = Trial(key="original", name="original", reached="accuracy", size=facts, accuracy=found, memory=peak)
        trial = self._timed(trial, loaded.path)
        return trial.model_copy(update={"seconds": time.monotonic() - started})

    def measure(self, candidate: Candidate) -> Trial:
        """A trial: structure, some samples, all samples where those leave hope, time for what holds the limits."""
        started = time.monotonic()
        trial = self._measured(candidate)
        return trial.model_copy(update={"seconds": time.monotonic() - started})

    def _measured(self, candidate: Candidate) -> Trial:
        trial = Trial(
            key="",
            name=candidate.name,
            origin=candidate.origin,
            point=dict(candidate.point),
            steps=tuple(candidate.plain_steps()),
            reached="failed",
            why=candidate.why,
            forecast=candidate.forecast,
        )
        try:
            with self.quiet.working():
                built = self.build(candidate, until=self.until)
                trial = self._quality(self._structure(trial, built), built)
            if not trial.reason:
                trial = self._timed(trial, built.path)
        except LeptonError as error:
            # A disk without room says nothing about the candidate.
            if (full := disk_full(error, self.scratch, None)) is not None:
                raise full from error
            reason = error.message + (f": {error.cause}" if error.cause else "")
            begun = error.code != "train.no-time"
            return trial.model_copy(update={"reached": "failed", "reason": reason, "code": error.code, "begun": begun})
        return trial

    def _structure(self, trial: Trial, built: Built) -> Trial:
        compress = "size.gzip" in self.judge.named  # seconds for every 30 MB
        found = size.measure(built.path, built.model, macs=self.job.macs(built.model), compress=compress)
        return trial.model_copy(update={"reached": "size", "size": slim_size(found)})

    def _quality(self, trial: Trial, built: Built) -> Trial:
        data = self.job.evaluation or self.job.check
        if data.count >= 2 * PROXY_SAMPLES:
            some = self._accuracy(built.path, PROXY_SAMPLES)
            trial = self._judged(trial.model_copy(update={"reached": "proxy", "accuracy": some}))
            if any(breach.quality for breach in self.judge.breaches(trial)):
                return trial
        trial = trial.model_copy(update={"reached": "accuracy", "accuracy": self._accuracy(built.path, None)})
        return self._judged(trial.model_copy(update={"memory": self._memory(built.path)}))

    def _judged(self, trial: Trial) -> Trial:
        breaches = self.judge.breaches(trial)
        return trial.model_copy(update={"reason": breaches[0].text if breaches else ""})

    def _accuracy(self, path: Path, limit: int | None) -> Accuracy:
        job = self.job
        found = accuracy.evaluate(
            {"original": self.reference, "compressed": path},
            job.evaluation or job.check,
            job.spec.evaluate.accuracy,
            threads=job.threads,
            progress=self.progress,
            allow_code=job.allow_code,
            base=job.recipe.base,
            limit=limit,
            ways=self.ways,
            new=self.new,
            groups=job.evaluation.groups if job.evaluation else None,
        )
        return slim_accuracy(found)

    def _memory(self, path: Path) -> Memory | None:
        """Peak memory where a limit or the goal asks for it."""
        if not self.judge.needs("memory"):
            return None
        return memory.measure(path, self.job.feeds(1), threads=self.job.threads)

    def _timed(self, trial: Trial, path: Path) -> Trial:
        """Interleaved with the original, while no other process of the search works; what surprises is timed again."""
        if self.spec is None:
            return trial
        found = self._seen(trial, self.race({"compressed": path}, self.spec))
        if self._surprising(found):
            again = [self._seen(trial, self.race({"compressed": path}, self.spec)) for _ in range(AGAIN)]
            found = sorted((found, *again), key=lambda one: self.judge.value(one) or 0.0)[len(again) // 2]
        return found

    def _seen(self, trial: Trial, table: LatencyTable) -> Trial:
        costs = cost.cost(table, self.job.spec.evaluate.cost) if self.job.spec.evaluate.cost else None
        return self._judged(
            trial.model_copy(update={"reached": "latency", "latency": slim_latency(table), "cost": costs})
        )

    def _surprising(self, trial: Trial) -> bool:
        """Whether a goal that is a time lies outside what was expected: other work on the machine does that, and one
        such figure would end a search that nothing can better."""
        band, value = trial.forecast.goal if trial.forecast else None, self.judge.value(trial)
        timed = metrics.of(self.judge.goal.metric).source == "latency"
        return timed and band is not None and value is not None and not band.low <= value <= band.high

    def race(self, paths: dict[str, Path], spec: LatencySpec) -> LatencyTable:
        """Several models interleaved with the original."""
        arms: dict[str, bytes | Path] = {"original": self.job.loaded.payload, **paths}
        with self.quiet.measuring():
            return latency.compare(arms, self.job.timed, spec, progress=self.progress, seed=self.job.spec.seed)

    def build(self, candidate: Candidate, name: str = "candidate", *, until: float = math.inf) -> Built:
        """Run the steps, from the longest beginning that is kept. Raises LeptonError of the step that fails.

        `until`: see `Context.until`.
        """
        context = dataclasses.replace(self.context, until=until)
        keys = [prefix_key(self.search, candidate.steps[: index + 1]) for index in range(len(candidate.steps))]
        if self._last is not None and self._last[0] == (keys[-1], name):
            return self._last[1]
        self._last = None
        current, records = self._begun(keys, candidate.steps)
        done = len(records)
        spent = 0.0
        for index in range(done, len(keys)):
            current, record = runner.run_step(current, candidate.steps[index], index, context, None)
            records.append(record)
            spent += record.seconds
            if spent > KEEP_SECONDS or candidate.steps[index].new_answers:
                self._keep(keys[index], current.model, records)
                spent = 0.0
        path = self.scratch / f"{name}.onnx"
        save(current.model, path, self.job, recipe_sha256=keys[-1] * 2)
        built = Built(path, current.model, tuple(records))
        self._last = ((keys[-1], name), built)
        return built

    def foresight(self, space: SearchSpace, note: Callable[[str], None]) -> Foresight:
        """What can be told of candidates before they are tried; `note` is told what takes long."""
        cleaned = (*space.first, *read_steps([{"step": "simplify"}]))

        def begun() -> ir.Model:
            return self.build(Candidate("cleaned up", cleaned), "cleaned").model

        return Foresight(
            functools.cache(begun),
            space,
            self.context,
            self.judge.original,
            metadata=signature(self.job),
            timed=self.judge.needs("latency"),
            macs=self.job.macs,
            alone=self.quiet.measuring,
            note=note,
        )

    def _reference(self) -> runner.Checked:
        if self._original is None:
            self._original = runner.reference(self.job.loaded.model, self.context)
        return self._original

    def _kept(self, key: str) -> bool:
        return (self.models / f"{key}.json").exists() and (self.models / f"{key}.onnx").exists()

    def _begun(self, keys: Sequence[str], steps: Sequence[Options]) -> tuple[runner.Checked, list[StepRecord]]:
        """What the longest beginning that is kept made, with the model whose answers the steps behind it learn."""
        answering = [index for index, options in enumerate(steps) if options.new_answers]
        for done in range(len(keys), 0, -1):
            needed = [done - 1, *(index for index in answering if index < done)]
            if not all(self._kept(keys[index]) for index in needed):
                continue
            model, records = self._load(keys[done - 1])
            changed = [index for index in answering if index < done and records[index].changed]
            answers = self._load(keys[changed[-1]])[0] if changed else None
            return dataclasses.replace(runner.reference(model, self.context), answers=answers), records
        return self._reference(), []

    def _load(self, key: str) -> tuple[ir.Model, list[StepRecord]]:
        path = self.models / f"{key}.onnx"
        os.utime(path)
        records = list(STEP_RECORDS.validate_json((self.models / f"{key}.json").read_bytes()))
        return io.load(path).model, records

    def _keep(self, key: str, model: ir.Model, records: Sequence[StepRecord]) -> None:
        """The model first: what has a record is whole. The longest unused go when the folder gets too large."""
        io.save(model, self.models / f"{key}.onnx")
        text = json.dumps([json.loads(record.model_dump_json()) for record in records])
        temporary = self.models / f".{key}.{os.getpid()}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.models / f"{key}.json")
        with lock(self.models / ".lock"):
            self._trim()

    def _trim(self) -> None:
        """One process at a time: others must not remove what this one looks at."""
        files = sorted(self.models.glob("[!.]*.onnx"), key=lambda file: file.stat().st_mtime)
        total = sum(file.stat().st_size for file in files)
        while total > KEEP_BYTES and len(files) > 1:
            oldest = files.pop(0)
            total -= oldest.stat().st_size
            oldest.with_suffix(".json").unlink(missing_ok=True)
            oldest.unlink(missing_ok=True)


def save(model: ir.Model, path: Path, job: Job, *, recipe_sha256: str) -> tuple[Path, ...]:
    """Write a model as `compress` does: the same metadata, so the same size."""
    return io.save(model, path, metadata=signature(job, recipe_sha256))


def signature(job: Job, recipe_sha256: str = 64 * "0") -> dict[str, str]:
    """The metadata of what is written; as long for one recipe as for another."""
    return {
        "lepton.version": __version__,
        "lepton.recipe_sha256": recipe_sha256,
        workspace.PROVENANCE: job.loaded.sha256,
    }


def _trial_spec(job: Job, judge: Judge) -> LatencySpec | None:
    """Coarser, and of providers, batch sizes and threads what limits and goal name; `None` when nothing is timed."""
    spec = job.spec.evaluate.latency
    if not spec or not judge.needs("latency"):
        return None
    timed = [gate for gate in judge.limits if metrics.of(gate.metric).source == "latency"]

    def named(key: str, measured: Sequence[str | int]) -> set[str | int]:
        every = [value for gate in timed for value in ([gate.scope[key]] if key in gate.scope else measured)]
        return {*every, judge.goal.scope.get(key, measured[0])} if measured else set()

    names = named("provider", [provider.name for provider in spec.providers])
    batches, threads = named("batch", spec.batch), named("threads", spec.threads)
    return spec.model_copy(
        update={
            "batch": tuple(batch for batch in spec.batch if batch in batches),
            "threads": tuple(count for count in spec.threads if count in threads),
            "providers": tuple(provider for provider in spec.providers if provider.name in names),
            "time": units.Seconds(min(float(spec.time), TRIAL_SECONDS)),
            "precision": units.Share(max(float(spec.precision), TRIAL_PRECISION)),
        }
    )
