"""Models that parts of a recipe make, to be measured beside its result: what each step bought, and what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from lepton_cli.commands import resume, runner
from lepton_cli.commands.job import Job
from lepton_cli.commands.resume import Kept
from lepton_cli.errors import LeptonError
from lepton_cli.measure.results import Accuracy, LatencyTable
from lepton_cli.model import io
from lepton_cli.report.model import Bought, StepRecord
from lepton_cli.step import Context
from lepton_cli.steps import STEPS

#: Steps that choose what is left for those behind them, and those that decide what computes it: whether the first pays
#: shows only without it.
CHOOSING = ("prune.channels",)
COMPUTING = ("quantize.static", "quantize.dynamic", "convert.fp16")


@dataclasses.dataclass(frozen=True)
class Apart:
    """A model that some of the steps made. `equal`: they promise equal outputs, so that only its speed is looked at."""

    name: str
    steps: tuple[int, ...]
    loaded: io.LoadedModel
    equal: bool = False

    def bought(self, accuracy: Accuracy | None, latency: LatencyTable | None) -> Bought:
        """What was measured of it."""
        return Bought(
            name=self.name,
            steps=self.steps,
            file=self.loaded.bytes,
            latency=next((one for one in latency.changes if one.variant == self.name), None) if latency else None,
            changes=tuple(one for one in accuracy.changes if one.variant == self.name) if accuracy else (),
            fidelity=tuple(one for one in accuracy.fidelity if one.variant == self.name) if accuracy else (),
        )


class Trail:
    """What the steps of a run left behind: what is kept for `--resume`, else files in its scratch folder."""

    def __init__(self, job: Job, context: Context, kept: Kept) -> None:
        self._job, self._context, self._kept = job, context, kept
        self._saved: dict[int, Path] = {}

    def keep(self, index: int, model: ir.Model) -> None:
        """The model after a step that changed something. One too large, or without room on the disk, is not kept."""
        path = self._context.workdir / f"after-{index + 1}.onnx"
        if self._kept.file(index + 1) is None and self._save(model, path):
            self._saved[index] = path

    def _after(self, index: int) -> Path | None:
        return self._saved.get(index) or self._kept.file(index + 1)

    def parts(self, records: Sequence[StepRecord]) -> list[Apart]:
        """The models between the steps, the result excepted, and the result without what chose widths for it."""
        if not self._job.runs:
            return []
        changed = [record.index for record in records if record.changed]
        found = []
        for index in changed[:-1]:
            file = self._after(index)
            if file is not None:
                done = tuple(step for step in changed if step <= index)
                equal = all(STEPS[records[step].step].options.cleaning for step in done)
                name = f"after {index + 1}. {records[index].step}"
                found.append(Apart(name, done, io.load(file), equal))
        without = self._without(records, changed)
        return [*found, without] if without is not None else found

    def _without(self, records: Sequence[StepRecord], changed: Sequence[int]) -> Apart | None:
        """The steps behind the first `prune.channels` on the model before it, where they decide about kernels.

        That is done in full, so that its figures are those of a run of its own: what took longest, the pruning, is not
        done again.
        """
        left_out = [index for index in changed if records[index].step in CHOOSING]
        # Training heals what pruning took: it takes long, and a model that lost nothing has no need of it.
        left_out += [
            index for index in changed if left_out and index > left_out[0] and self._job.spec.steps[index].training
        ]
        if not self._job.spec.evaluate.latency:  # nothing could be said of its speed
            return None
        if self._job.new_outputs(changed):  # without training they would say nothing
            return None
        if not left_out or not any(records[i].step in COMPUTING for i in changed if i > left_out[0]):
            return None
        first = left_out[0]
        before = [index for index in changed if index < first]
        file = self._after(before[-1]) if before else None
        if before and file is None:
            return None
        model = io.load(file).model if file is not None else self._job.loaded.model
        steps = self._job.spec.steps
        name = f"without {records[first].step}"
        path = self._context.workdir / "without.onnx"
        try:
            with self._context.progress.stage(f"{name}, to compare"):
                current = runner.reference(model, self._context)
                done = list(before)
                for index in range(first + 1, len(steps)):
                    if index not in left_out:
                        current, record = runner.run_step(current, steps[index], index, self._context, None)
                        done += [index] if record.changed else []
        except LeptonError:
            return None
        if len(done) == len(before) or not self._save(current.model, path):
            return None
        return Apart(name, tuple(done), io.load(path))

    def _save(self, model: ir.Model, path: Path) -> bool:
        if io.weight_bytes(model) > resume.LARGEST:
            return False
        try:
            io.save(model, path)
        except (OSError, LeptonError):
            return False
        return True


def only(accuracy: Accuracy, names: Mapping[str, object]) -> Accuracy:
    """What belongs to these variants."""
    return accuracy.model_copy(
        update={
            "values": {name: found for name, found in accuracy.values.items() if name in names},
            "changes": tuple(one for one in accuracy.changes if one.variant in names),
            "fidelity": tuple(one for one in accuracy.fidelity if one.variant in names),
        }
    )


def only_timed(table: LatencyTable, names: Mapping[str, object]) -> LatencyTable:
    """The same of a table of times."""
    return table.model_copy(
        update={
            "results": tuple(one for one in table.results if one.variant in names),
            "changes": tuple(one for one in table.changes if one.variant in names),
        }
    )
