"""What `compress --resume` goes on from: the model after the last finished step, kept in the output folder.

`DIR/.lepton-resume` holds `step-N.onnx` (with `step-N.onnx.data` for large models) and `step-N.json` for the last
finished step N, and for those before it whose models are measured in the end or whose answers are learnt. The JSON is
written last, atomically, and names what the step depended on and the hash of the model: what is half-written, of
another recipe, model, data or version, or was touched since, is never used. A run that ends well removes the folder, a
run without `--resume` begins by removing it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from pydantic import ValidationError

from lepton_cli import cache
from lepton_cli.commands import runner, workspace
from lepton_cli.commands.job import Job
from lepton_cli.errors import LeptonError
from lepton_cli.machine import machine
from lepton_cli.model import io
from lepton_cli.report.model import STEP_RECORDS, StepRecord
from lepton_cli.report.store import write_text
from lepton_cli.step import Context

#: Of steps before the last, models with more bytes of weights are not kept.
LARGEST = 500_000_000


class Kept:
    """The last finished step of a run into one output folder; `None`: of a run that leaves nothing."""

    def __init__(self, output: Path | None, job: Job, context: Context) -> None:
        self._folder = (output or context.workdir) / workspace.RESUME
        self._in_memory = output is None
        self._job, self._context = job, context
        self._keeps, self._teachers = True, job.teachers()
        #: Steps that the next run need not do again.
        self.count = 0
        self._between: set[int] = set()
        #: The step behind which the model stands whose answers later steps learn; 0: there is none.
        self._answering = 0

    def latest(self) -> tuple[ir.Model, list[StepRecord]] | None:
        """The model after the last step that an interrupted run finished, and the records of all steps up to it.

        `None` when nothing is there that belongs to this run; what else is there is removed.
        """
        for count in range(len(self._job.spec.steps), 0, -1):
            records = self._records(count)
            answering = 0 if records is None else self._last_answering(records)
            if records is None or (answering and self._records(answering) is None):
                continue
            try:
                model = io.load(self._model(count)).model
            except LeptonError:
                continue
            self.count = count
            self._between = {one for one in range(1, count) if self._records(one) is not None}
            self._note(model, records)
            self._answering = answering
            return model, records
        self.clear()
        return None

    def file(self, count: int) -> Path | None:
        """The model after step `count`, where it was changed, and is there to be measured beside the result."""
        return self._model(count) if count in self._between else None

    def answers(self) -> ir.Model | None:
        """The model whose answers later steps learn, where `latest` found one."""
        return io.load(self._model(self._answering)).model if self._answering else None

    def _last_answering(self, records: Sequence[StepRecord]) -> int:
        steps = self._job.spec.steps
        return max((one.index + 1 for one in records if one.changed and steps[one.index].new_answers), default=0)

    def keep(self, current: runner.Checked, records: Sequence[StepRecord]) -> runner.Checked:
        """Write the model after the last of `records`; returns it as it reads back.

        What follows goes on from the file in every run, so that an interrupted run and an uninterrupted one make the
        same bytes. A disk without room costs the resumption and nothing else; what was kept before stays, as weights
        may still be read from there.
        """
        count = len(records)
        if self._in_memory:  # large models go on as they are: copies of them would fill the disk
            if io.weight_bytes(current.model) > io.STREAMED_ABOVE:
                return current
            return _replaced(current, io.reopened(current.model, self._context.workdir).model)
        if not self._keeps:
            return current
        try:
            self._folder.mkdir(exist_ok=True)
            files = io.save(current.model, self._model(count))
            loaded = io.load(self._model(count))
            document = {
                "key": self._key(count),
                "sha256": io.hash_files(files),
                "records": [json.loads(record.model_dump_json()) for record in records],
            }
            write_text(json.dumps(document, ensure_ascii=False), self._record(count))
        except (OSError, LeptonError) as error:
            self._keeps = False
            reason = error.message if isinstance(error, LeptonError) else error.strerror or str(error)
            self._context.progress.warn(f"the result of step {count} cannot be kept for --resume: {reason}")
            self._remove_others()
            return current
        self.count, self._answering = count, self._last_answering(records)
        self._remove_others()
        self._note(loaded.model, records)
        return _replaced(current, loaded.model)

    def _note(self, model: ir.Model, records: Sequence[StepRecord]) -> None:
        """Let the model after the last of `records` stay when the next step is done, if it is one to measure."""
        if self._job.runs and records[-1].changed and io.weight_bytes(model) <= LARGEST:
            self._between.add(len(records))

    def _remove_others(self) -> None:
        """Remove all but the last step that is kept, and those that stay."""
        stay = tuple(f"step-{count}." for count in (*self._between, self._answering, self.count))
        with contextlib.suppress(OSError):
            for file in self._folder.iterdir():
                if not file.name.startswith(stay):
                    file.unlink()
            if not self.count:
                self._folder.rmdir()

    def clear(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _model(self, count: int) -> Path:
        return self._folder / f"step-{count}.onnx"

    def _record(self, count: int) -> Path:
        return self._folder / f"step-{count}.json"

    def _records(self, count: int) -> list[StepRecord] | None:
        """The records up to step `count`, when they and the model beside them are whole and of this very run."""
        try:
            document = json.loads(self._record(count).read_text(encoding="utf-8"))
            data = self._model(count).with_name(f"step-{count}.onnx.data")
            files = (self._model(count), *([data] if data.exists() else ()))
            if document["key"] != self._key(count) or document["sha256"] != io.hash_files(files):
                return None
            records = list(STEP_RECORDS.validate_json(json.dumps(document["records"])))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError):
            return None
        return records if len(records) == count else None

    def _key(self, count: int) -> str:
        """Hash of all that the result of the first `count` steps depends on."""
        job, context = self._job, self._context
        resolved = job.recipe.resolved()
        return cache.key(
            model=job.loaded.sha256,
            data={role: data.fingerprint for role, data in job.data.items()},
            teachers=self._teachers,
            check=context.check.fingerprint,
            sources=resolved["data"],
            metrics=resolved["evaluate"]["accuracy"],
            steps=resolved["steps"][:count],
            machine=machine(),
            provider=context.provider,
            batch=context.batch,
            threads=context.threads,
            seed=context.seed,
        )


def _replaced(current: runner.Checked, model: ir.Model) -> runner.Checked:
    """The same with its model read back."""
    answers = model if current.answers is current.model else current.answers
    return dataclasses.replace(current, model=model, answers=answers)
