"""`lepton tune` end to end on a small network: best on disk, resuming, other limits, what can be wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lepton_cli.commands.compress import compress
from lepton_cli.commands.tune import Tuned, tune
from lepton_cli.errors import LeptonError, OutputError, Place, RecipeError, ReportError
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import load_recipe
from lepton_cli.report import store
from lepton_cli.report.html import render as html
from lepton_cli.report.model import Tune
from lepton_cli.report.trial import Trial
from lepton_cli.report.tune_facts import axis_value
from tests.tune import builders

SMALL = "{limits: [{metric: accuracy.top1, max_drop: 10 pp}], minimize: size.file, budget: {time: 60 s, trials: 4}}"


class Lines:
    """What a watcher is told; can interrupt after some trials."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.trials: list[Trial] = []
        self.interrupt_after = interrupt_after

    def start(self, *_: object) -> None: ...

    def begin(self, name: str) -> None:
        if self.interrupt_after is not None and len(self.trials) >= self.interrupt_after:
            raise KeyboardInterrupt

    def end(self, trial: Trial, trials: Sequence[Trial], best: Trial | None) -> None:
        self.trials.append(trial)

    def note(self, text: str) -> None: ...


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    model = builders.network(tmp_path / "net.onnx")
    builders.data(tmp_path / "data.npz", model)
    return tmp_path


@dataclasses.dataclass(frozen=True)
class Found:
    """A finished search in a folder of its own, and what it said."""

    folder: Path
    result: Tuned


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("made")
    builders.data(folder / "data.npz", builders.network(folder / "net.onnx"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEPTON_CACHE", str(folder / "cache"))
        return Found(folder, run(folder))


@pytest.fixture(name="found")
def _found(made: Found, tmp_path: Path) -> Found:
    """To be changed."""
    shutil.copytree(made.folder, tmp_path / "copy")
    return dataclasses.replace(made, folder=tmp_path / "copy")


def run(
    folder: Path, section: str = SMALL, *, watch: Lines | None = None, output: str = "out", **options: Any
) -> Tuned:
    steps = options.pop("steps", "")
    measured = {key: options.pop(key, "false") for key in ("latency", "memory")}
    path = builders.recipe(folder / f"{output}.yaml", section, steps=steps, **measured)
    return tune(folder / "net.onnx", load_recipe(path), folder / output, watch or Lines(), **options)


def search(result: Tuned) -> Tune:
    found = result.report.tune
    assert found is not None
    return found


def test_the_best_is_complete_on_disk(made: Found) -> None:
    result, folder = made.result, made.folder
    out = folder / "out"
    assert result.report.status == "ok"
    assert result.report.complete
    assert [gate.verdict for gate in result.report.gates] == ["pass"]
    assert {p.name for p in result.files} == {
        "net.onnx", "recipe.best.yaml", "report.json", "report.md", "report.html",
    }  # fmt: skip
    onnx.checker.check_model(onnx.load(out / "net.onnx"))
    assert (out / "net.onnx").stat().st_size < (folder / "net.onnx").stat().st_size
    assert store.read(out / "report.json").tune == search(result)
    rows = search(result).trials
    assert len(rows) == 4
    assert any(row.front for row in rows)
    chosen = next(row for row in rows if row.key == search(result).best)
    assert chosen.file == (out / "net.onnx").stat().st_size
    assert chosen.file == min(row.file for row in rows if row.feasible)


def test_sizes_are_known_to_the_byte_before_anything_is_made(made: Found) -> None:
    """Of what was drafted, with all that is written beside the graph."""
    for trial in search(made.result).records:
        assert trial.forecast is not None
        assert trial.forecast.goal is not None
        assert trial.size is not None
        assert trial.forecast.goal.value == pytest.approx(trial.size.file, abs=0.01)
        assert trial.point["macs"] == pytest.approx((trial.size.macs or 0) / 2048, rel=1e-4)


def test_channels_are_ranked_once(made: Found) -> None:
    """For the tables before a trial and for the trials' own steps alike."""
    pruned = [trial.point["importance"] for trial in search(made.result).records if "keep" in trial.name]
    assert pruned
    assert len(list((made.folder / "cache").glob("ranking-*"))) == len(set(pruned))


def test_memory_is_limited_by_the_originals(folder: Path) -> None:
    section = "{limits: [{metric: memory.peak, max_ratio: 3}], minimize: memory.peak, budget: {time: 60 s, trials: 2}}"
    result = run(folder, section, memory="true")
    assert [gate.verdict for gate in result.report.gates] == ["pass"]
    assert search(result).axes.cost.kind == "ratio"
    assert all(0 < row.cost < 3 for row in search(result).trials)
    assert "%" in axis_value(search(result).trials[0].cost, search(result).axes.cost)


def test_a_limit_on_the_worst_class_is_held_by_the_best(folder: Path) -> None:
    """About thirty samples of each class: the gate stays open, and the value decides."""
    section = (
        "{limits: [{metric: accuracy.worst_class, max_drop: 7 pp}], minimize: size.file, "
        "budget: {time: 60 s, trials: 1}}"
    )
    result = run(folder, section)
    assert [gate.verdict for gate in result.report.gates] == ["inconclusive"]
    rows = search(result).trials
    chosen = next(row for row in rows if row.key == search(result).best)
    assert chosen.file == min(row.file for row in rows if row.feasible)
    assert result.report.accuracy is not None
    (spread,) = result.report.accuracy.spread
    assert spread.worst is not None
    assert spread.worst.n >= 30
    assert spread.worst.change >= -0.07
    for trial in search(result).records:
        assert trial.accuracy is not None
        assert trial.accuracy.spread
        assert not trial.accuracy.classes


def test_the_recipe_of_the_best_makes_the_same_model(made: Found, tmp_path: Path) -> None:
    out = made.folder / "out"
    recipe = load_recipe(out / "recipe.best.yaml")
    assert recipe.recipe.gates
    again = compress(made.folder / "net.onnx", recipe, tmp_path, Silent())
    assert again.report.status == "ok"
    assert (tmp_path / "net.onnx").read_bytes() == (out / "net.onnx").read_bytes()


def test_the_same_seed_finds_the_same(made: Found, folder: Path) -> None:
    first, second = made.result, run(folder)
    assert [row.key for row in search(first).trials] == [row.key for row in search(second).trials]
    assert search(first).best == search(second).best


def test_the_page_shows_every_trial(made: Found) -> None:
    page = html(made.result.report)
    assert 'id="trial-4"' in page
    assert "Trade-offs tried" in page
    assert len(page.encode()) < 300_000


def test_an_interrupted_search_leaves_the_best_and_goes_on(made: Found, folder: Path) -> None:
    watch = Lines(interrupt_after=2)
    stopped = run(folder, watch=watch)
    assert stopped.interrupted
    assert stopped.report.status == "interrupted"
    assert not stopped.report.complete
    onnx.checker.check_model(onnx.load(folder / "out" / "net.onnx"))
    assert load_recipe(folder / "out" / "recipe.best.yaml")
    rest = Lines()
    done = run(folder, watch=rest)
    assert len(rest.trials) == 2
    assert not {t.key for t in rest.trials} & {t.key for t in watch.trials}
    assert search(done).best == search(made.result).best


def test_interrupted_before_anything_was_measured(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, watch=Lines(interrupt_after=0))


def test_a_killed_search_reads_what_is_whole(found: Found) -> None:
    journal = found.folder / "out" / ".lepton-tune" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    watch = Lines()
    run(found.folder, watch=watch)
    assert len(watch.trials) == 4 - 3  # one of the five lines is the header, one the original


def test_tighter_limits_begin_with_the_trials_of_a_report(made: Found, folder: Path) -> None:
    watch = Lines()
    result = run(folder, SMALL.replace("10 pp", "4 pp"), watch=watch, earlier=made.folder / "out" / "report.json")
    earlier = {row.key for row in search(made.result).trials}
    assert {row.key for row in search(result).trials} == earlier | {t.key for t in watch.trials}
    assert not {t.key for t in watch.trials} & earlier
    assert result.report.status == "ok"


def test_the_recipes_own_steps_are_tried_first(folder: Path) -> None:
    watch = Lines()
    run(folder, steps="steps:\n  - step: simplify\n  - step: quantize.dynamic\n    if_possible: true\n", watch=watch)
    assert watch.trials[0].name == "recipe"


def test_no_candidate_meets_the_limits(folder: Path) -> None:
    """Each can be held alone: a file of 900 bytes has lost nearly everything."""
    limits = "{metric: size.file, max: 900 B}, {metric: accuracy.top1, max_drop: 10 pp}"
    result = run(folder, f"{{limits: [{limits}], minimize: size.file, budget: {{time: 60 s, trials: 4}}}}")
    assert result.report.status == "gate_failed"
    assert "fail" in {gate.verdict for gate in result.report.gates}
    said = " ".join(result.report.warnings)
    assert "no candidate meets the limits; the nearest" in said
    assert not search(result).met
    assert "failed" not in {row.reached for row in search(result).trials}, "what cannot be made is not tried"


def test_a_limit_that_only_some_kinds_of_widths_hold(folder: Path) -> None:
    """Multiples of the machine's blocks, which are tried first, leave more than 2 kB."""
    limits = "[{metric: size.file, max: 900 B}]"
    result = run(folder, f"{{limits: {limits}, maximize: accuracy.top1, budget: {{time: 60 s, trials: 1}}}}")
    assert [row.feasible for row in search(result).trials] == [True]


def test_latency_is_measured_against_the_original(folder: Path) -> None:
    goal = "minimize: {metric: latency.median, batch: 4}, space: {precision: [float, dynamic]}"
    section = f"{{{goal}, budget: {{time: 60 s, trials: 4}}}}"
    result = run(folder, section, latency="{time: 60 ms, batch: [1, 4], threads: 1}")
    rows = [row for row in search(result).trials if not row.reason]
    assert rows
    assert all(0 < row.cost < 100 for row in rows)
    assert result.report.latency is not None
    assert {change.batch for change in result.report.latency.changes} == {1, 4}


def error_of(folder: Path, section: str, **options: Any) -> LeptonError:
    with pytest.raises(LeptonError) as found:
        run(folder, section, **options)
    assert found.value.exit_code == 2
    return found.value


@pytest.mark.parametrize(
    ("section", "code"),
    [
        (
            "{limits: [{metric: accuracy.top1, min: 99 %}, {metric: accuracy.top1, max: 50 %}], minimize: size.file}",
            "tune.limits-contradict",
        ),
        ("{minimize: size.file, space: {precision: [float], keep: [100 %]}}", "tune.space-empty"),
        ("{minimize: size.file, budget: {time: 1 ms}}", "tune.budget-too-small"),
        ("{minimize: latency.median}", "tune.not-measured"),
        ("{minimize: accuracy.mae}", "tune.not-measured"),
        ("{minimize: size.file, limits: [{metric: accuracy.f1, min: 50 %}]}", "recipe.gate-not-measured"),
        ("{minimize: size.file, limits: [{metric: accuracy.top1, max_drop: 0.5 pp}]}", "tune.too-few-samples"),
        ("{minimize: size.file, limits: [{metric: accuracy.top1, output: z, min: 1 %}]}", "tune.not-measured"),
        ("{minimize: size.file, limits: [{metric: accuracy.worst_class, max_drop: 1 pp}]}", "tune.too-few-samples"),
        ("{minimize: size.file, limits: [{metric: agreement, max_drop: 5 pp}]}", "tune.no-reference"),
        ("{minimize: size.file, limits: [{metric: size.file, max_ratio: 0.5, against: baseline}]}", "tune.no-baseline"),
        ("{minimize: size.file, limits: [{metric: accuracy.top1, min_ratio: 1.1}]}", "tune.limit-impossible"),
        ("{minimize: size.file, limits: [{metric: size.file, max: 100 B}]}", "tune.limit-impossible"),
    ],
)
def test_what_cannot_be_searched(folder: Path, section: str, code: str) -> None:
    error = error_of(folder, section)
    assert error.code == code
    assert error.where is not None


def test_labels_that_are_all_the_same(folder: Path) -> None:
    with np.load(folder / "data.npz") as stored:
        np.savez(folder / "data.npz", x=stored["x"], labels=np.full(builders.SAMPLES, 3))
    error = error_of(folder, SMALL)
    assert error.code == "tune.metric-constant"
    assert "all 120 labels are 3" in error.message
    assert isinstance(error.where, Place)
    assert "limits:" in error.where.source


def test_the_gate_at_fault_is_named(folder: Path) -> None:
    """Where the limits are the recipe's gates."""
    path = builders.recipe(folder / "r.yaml", "{minimize: size.file}")
    path.write_text(
        path.read_text() + "gates:\n  - {metric: size.file, max: 1 MB}\n  - {metric: size.file, min: 2 MB}\n"
    )
    with pytest.raises(RecipeError) as found:
        tune(folder / "net.onnx", load_recipe(path), folder / "out", Lines())
    assert isinstance(found.value.where, Place)
    assert "max: 1 MB" in found.value.where.source


def test_few_samples_are_warned_of(folder: Path) -> None:
    result = run(folder, SMALL.replace("10 pp", "1 pp").replace("trials: 4", "trials: 2"))
    assert any("with 120 samples" in text and "765 samples would tell" in text for text in result.report.warnings)


def stored(folder: Path) -> dict[str, bytes]:
    """What the user has of a search."""
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.is_file()}


def one_line(error: LeptonError) -> bool:
    return "\n" not in error.message and len(error.message) < 200


def test_another_versions_storage(found: Found) -> None:
    """The best so far stays as it is."""
    folder = found.folder
    best = stored(folder)
    assert "net.onnx" in best
    journal = folder / "out" / ".lepton-tune" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([json.dumps({"lepton-tune": "0.0.0"}).encode() + b"\n", *lines[1:]]))
    with pytest.raises(OutputError, match=r"lepton 0\.0\.0") as caught:
        run(folder)
    assert one_line(caught.value)
    assert stored(folder) == best


def test_a_budget_below_one_trial(found: Found) -> None:
    """Also where there is a best already."""
    folder = found.folder
    best = stored(folder)
    error = error_of(folder, SMALL.replace("60 s", "1 ms"), output="out")
    assert error.code == "tune.budget-too-small"
    assert one_line(error)
    assert isinstance(error.where, Place)
    assert "1 ms" in error.where.source
    assert stored(folder) == best


def test_reports_that_cannot_be_taken_over(found: Found) -> None:
    folder = found.folder
    report = folder / "out" / "report.json"
    other = folder / "other.json"
    document = json.loads(report.read_text())
    document["tune"]["search"] = "another"
    other.write_text(json.dumps(document))
    with pytest.raises(ReportError) as caught:
        run(folder, output="b", earlier=other)
    assert caught.value.code == "tune.other-search"
    document["tune"] = None
    other.write_text(json.dumps(document))
    with pytest.raises(ReportError) as caught:
        run(folder, output="c", earlier=other)
    assert caught.value.code == "tune.not-tuned"


def test_limits_are_the_recipes_gates_where_none_are_given(folder: Path) -> None:
    path = builders.recipe(folder / "r.yaml", "{minimize: size.file, budget: {trials: 3}}")
    path.write_text(path.read_text() + "gates: [{metric: size.file, max_ratio: 0.9}]\n")
    result = tune(folder / "net.onnx", load_recipe(path), folder / "out", Lines())
    assert result.report.gates[0].where.startswith(f"{path}:")


def test_recipes_need_steps_or_a_search(folder: Path) -> None:
    path = folder / "none.yaml"
    path.write_text("version: 1\n")
    with pytest.raises(RecipeError, match="no `steps`"):
        load_recipe(path)


def test_compress_does_not_pretend_to_run_a_search(folder: Path) -> None:
    recipe = load_recipe(builders.recipe(folder / "r.yaml", SMALL))
    with pytest.raises(RecipeError) as found:
        compress(folder / "net.onnx", recipe, folder / "out", Silent())
    assert found.value.code == "recipe.only-tunes"
