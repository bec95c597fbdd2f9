"""lepton from Python: every kind of model, data in memory, quiet, leaving nothing, with the command's own results."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lepton_cli as lepton
from lepton_cli.cache import Cache
from lepton_cli.commands.compress import compress as command
from lepton_cli.errors import DataError, ExitCode, LeptonError, ModelError, RecipeError, StepError, UsageError
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.recipe.load import from_dict
from lepton_cli.steps import STEPS as TABLE
from tests.conftest import ROOT, SAMPLES

MLP = SAMPLES / "digits_mlp.onnx"
QUICK: dict[str, Any] = {"latency": False, "memory": False}
STEPS = (
    lepton.Simplify(),
    lepton.QuantizeStatic(
        target="x86-vnni", speed_guard=False, calibration="minmax", equalise=False, bias_correction=False,
        rounding="nearest",
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> lepton.Arrays:
    with np.load(SAMPLES / "digits_test.npz") as file:
        return lepton.Arrays({"pixels": file["images"][:96].reshape(-1, 64)}, file["labels"][:96])


@pytest.fixture(autouse=True)
def quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing here prints."""
    yield
    found = capfd.readouterr()
    assert (found.out, found.err) == ("", "")


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing here writes: neither into the working folder nor into the cache, nor does it leave temporary files."""
    places = [tmp_path / name for name in ("work", "cache", "temporary")]
    for place in places:
        place.mkdir()
    monkeypatch.chdir(places[0])
    monkeypatch.setenv("LEPTON_CACHE", str(places[1]))
    monkeypatch.setattr("tempfile.tempdir", str(places[2]))
    samples = listing(SAMPLES)
    yield
    assert [listing(place) for place in places] == [[], [], []]
    assert listing(SAMPLES) == samples


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


def kinds() -> dict[str, Any]:
    return {"path": MLP, "text": str(MLP), "protobuf": onnx.load(MLP), "onnx-ir": ir.load(MLP)}


def arrays(**feeds: Any) -> lepton.Arrays:
    return lepton.Arrays(feeds)


def misspelt() -> dict[str, Any]:
    return {"version": 1, "steps": [{"step": "simplfy"}]}


def digest(model: Any) -> str:
    data = io.to_bytes(model) if isinstance(model, ir.Model) else model.SerializeToString(deterministic=True)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", kinds())
def test_steps_apply_to_every_kind_of_model_and_leave_it_as_it_is(kind: str, data: lepton.Arrays) -> None:
    model = kinds()[kind]
    before = digest(model) if kind in ("protobuf", "onnx-ir") else ""
    found = lepton.apply(model, *STEPS, data=data)
    assert [step.step for step in found.steps] == ["simplify", "quantize.static"]
    assert found.steps[1].changed > 0
    assert any(node.op_type == "DequantizeLinear" for node in found.model.graph)
    assert digest(found.model) == digest(lepton.apply(MLP, *STEPS, data=data).model)
    if before:
        assert digest(model) == before
        assert found.model is not model


def test_the_result_of_one_call_goes_into_the_next(data: lepton.Arrays) -> None:
    small = lepton.apply(MLP, *STEPS, data=data).model
    accuracy = lepton.evaluate(small, data, "top1")
    assert [value.metric for value in accuracy.values["original"]] == ["top1"]
    assert accuracy.values["original"][0].value > 0.9
    assert accuracy.values["original"][0].n == 96
    table = lepton.bench(MLP, onnx.load(MLP), small, data=data, batch=4, threads=1, time="50 ms", precision="50 %")
    assert [(result.variant, result.batch, result.threads) for result in table.results] == [
        ("digits_mlp#1", 4, 1),
        ("digits_mlp#2", 4, 1),
        ("digits_mlp#3", 4, 1),
    ]
    assert [change.variant for change in table.changes] == ["digits_mlp#2", "digits_mlp#3"]


def test_several_metrics(data: lepton.Arrays) -> None:
    found = lepton.evaluate(MLP, data, ["top1", lepton.AccuracySpec(metric="topk", k=3)], threads=1)
    assert [value.metric for value in found.values["original"]][:2] == ["top1", "top3"]


def written(path: Path, data: lepton.Arrays) -> dict[str, Any]:
    """A recipe with these data in a file."""
    np.savez(path, pixels=data.feeds["pixels"], labels=data.labels["labels"])
    both = {"path": str(path), "labels": "labels"}
    steps = [step.model_dump(mode="json", exclude_defaults=True) for step in STEPS]
    gates = [{"metric": "size.file", "max_ratio": 0.5}]
    return {
        "version": 1,
        "name": "small",
        "data": {"calibration": both, "evaluation": both},
        "steps": steps,
        "evaluate": QUICK,
        "gates": gates,
    }


@pytest.mark.parametrize("form", ["mapping", "recipe", "file"])
def test_a_recipe_makes_the_bytes_of_the_command(form: str, data: lepton.Arrays, tmp_path: Path) -> None:
    plain = written(tmp_path / "data.npz", data)
    recipe: Any = plain
    if form == "recipe":
        recipe = from_dict(plain).recipe
    elif form == "file":
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(from_dict(plain).resolved_yaml())
    of_command = command(MLP, from_dict(plain), tmp_path / "out", Silent(), cache=Cache(None))
    found = lepton.compress(MLP, recipe)
    assert io.to_bytes(found.model) == of_command.files[0].read_bytes()
    assert found.files == ()
    assert found.report.status == of_command.report.status == "ok"
    assert found.report.accuracy == of_command.report.accuracy
    assert [one.size for one in found.report.variants] == [one.size for one in of_command.report.variants]
    assert [gate.verdict for gate in found.report.gates] == ["pass"]


def test_a_folder_receives_what_the_command_writes(data: lepton.Arrays, tmp_path: Path) -> None:
    plain = written(tmp_path / "data.npz", data)
    command(MLP, from_dict(plain), tmp_path / "one", Silent(), cache=Cache(None))
    found = lepton.compress(onnx.load(MLP), plain, output=tmp_path / "two")
    assert sorted(os.listdir(tmp_path / "two")) == sorted(os.listdir(tmp_path / "one"))
    assert [file.name for file in found.files] == ["small.onnx", "report.json", "report.md", "report.html"]
    assert io.to_bytes(found.model) == found.files[0].read_bytes()


def test_data_in_memory_replace_those_of_the_recipe(data: lepton.Arrays, tmp_path: Path) -> None:
    plain = written(tmp_path / "data.npz", data)
    (tmp_path / "data.npz").unlink()
    with pytest.raises(DataError, match="does not exist"):
        lepton.compress(MLP, plain)
    found = lepton.compress(MLP, plain, data, evaluation=data)
    assert [(one.role, one.path, one.labelled) for one in found.report.data] == [
        ("calibration", "memory", True),
        ("evaluation", "memory", True),
    ]
    assert "96 calibration samples are in the evaluation data too" in found.report.warnings[0]
    spec = lepton.DataSpec(path=str(SAMPLES / "digits_test.npz"), inputs={"pixels": "images"}, samples=8,
                           preprocess={"shape": (64,)})  # fmt: skip
    assert lepton.apply(MLP, *STEPS, data=spec).steps[1].changed > 0


def test_a_gate_that_fails_is_a_result(data: lepton.Arrays) -> None:
    recipe = {"version": 1, "steps": [{"step": "simplify"}], "evaluate": QUICK}
    found = lepton.compress(MLP, {**recipe, "gates": [{"metric": "size.file", "max": "1 kB"}]}, evaluation=data)
    assert found.report.status == "gate_failed"


def test_the_cache_is_used_when_asked_for(data: lepton.Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "other"))
    lepton.apply(MLP, *STEPS, data=data, cache=True)
    assert listing(tmp_path / "other")


@pytest.mark.parametrize(
    ("call", "kind", "code"),
    [
        (lambda data: lepton.apply("missing.onnx", *STEPS), ModelError, "model.missing"),
        (lambda data: lepton.apply(onnx.ModelProto(), *STEPS), ModelError, "model.not-onnx"),
        (lambda data: lepton.apply(3, *STEPS), UsageError, "usage.model"),
        (lambda data: lepton.bench(), UsageError, "usage.model"),
        (lambda data: lepton.bench(MLP, time="5"), UsageError, "usage.wrong-value"),
        (lambda data: lepton.bench(MLP, shapes={"x": (1, 2)}), UsageError, "usage.shape"),
        (lambda data: lepton.apply(MLP, *STEPS), DataError, "data.missing"),
        (lambda data: lepton.apply(MLP, *STEPS, data={"pixels": 1}), UsageError, "usage.data"),
        (lambda data: lepton.apply(MLP, *STEPS, data=arrays(a=[1.0], b=[1.0])), DataError, "data.unknown-array"),
        (lambda data: lepton.apply(MLP, *STEPS, data=arrays(pixels=np.ones((2, 9)))), DataError, "data.shape"),
        (lambda data: lepton.apply(MLP, lepton.Simplify(exclude=("n",))), RecipeError, "recipe.glob-matches-nothing"),
        (lambda data: lepton.apply(MLP), RecipeError, "recipe.wrong-value"),
        (lambda data: lepton.QuantizeStatic(target="vax"), RecipeError, "recipe.wrong-value"),
        (lambda data: lepton.QuantizeStatic(taget="arm"), RecipeError, "recipe.unknown-key"),
        (lambda data: lepton.compress(MLP, misspelt()), RecipeError, "recipe.unknown-step"),
        (lambda data: lepton.compress(MLP, "missing.yaml"), RecipeError, "recipe.not-found"),
        (lambda data: lepton.evaluate(MLP, lepton.Arrays(data.feeds)), DataError, "data.no-labels"),
        (lambda data: lepton.evaluate(MLP, lepton.Arrays(data.feeds, [11] * 96)), DataError, "data.labels"),
        (lambda data: lepton.evaluate(MLP, data, "topp1"), RecipeError, "recipe.wrong-value"),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_command_line(call: Any, kind: type[LeptonError], code: str, data: Any) -> None:
    with pytest.raises(kind) as raised:
        call(data)
    assert raised.value.code == code
    assert isinstance(raised.value, lepton.LeptonError)
    assert raised.value.exit_code == ExitCode.CANNOT_START


def test_a_step_that_cannot_be_done_is_a_step_error(data: lepton.Arrays) -> None:
    """And the same from a recipe, where the command would have left a partial report."""
    with pytest.raises(StepError) as raised:
        lepton.apply(MLP, lepton.PruneWeights(sparsity="50 %", exclude=("*",)))
    step = {"step": "prune.weights", "sparsity": "50 %", "exclude": ["*"]}
    with pytest.raises(StepError) as again:
        lepton.compress(MLP, {"version": 1, "steps": [step], "evaluate": QUICK})
    assert raised.value.code == again.value.code == "step.no-effect"
    assert raised.value.exit_code == ExitCode.FAILED


def test_weights_in_files_need_the_folder(tmp_path: Path) -> None:
    proto = onnx.load(MLP)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(ModelError) as raised:
        lepton.apply(onnx.load(tmp_path / "m.onnx", load_external_data=False), lepton.Simplify())
    assert raised.value.code == "model.external-data"
    assert lepton.apply(tmp_path / "m.onnx", lepton.Simplify()).steps
    lazy = ir.load(tmp_path / "m.onnx")
    assert digest(lepton.apply(lazy, lepton.Simplify()).model) == digest(lepton.apply(MLP, lepton.Simplify()).model)


def test_too_large_for_memory_goes_through_a_folder_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result holds its weights: the folder is gone."""
    expected = lepton.apply(MLP, lepton.Simplify()).model
    monkeypatch.setattr(io, "EXTERNAL_ABOVE", 1000)
    found = lepton.apply(ir.load(MLP), lepton.Simplify()).model
    for name, value in expected.graph.initializers.items():
        assert np.array_equal(found.graph.initializers[name].const_value.numpy(), value.const_value.numpy())


def test_progress_is_told_to_whoever_listens(data: lepton.Arrays) -> None:
    class Told(Silent):
        stages: list[str] = []

        def stage(self, name: str, total: int | None = None) -> Any:
            self.stages.append(name)
            return super().stage(name, total)

    lepton.evaluate(MLP, data, progress=Told())
    assert Told.stages == ["accuracy"]


def test_ctrl_c_comes_through(data: lepton.Arrays) -> None:
    class Interrupting(Silent):
        def stage(self, name: str, total: int | None = None) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lepton.evaluate(MLP, data, progress=Interrupting())


def test_importing_loads_nothing_heavy() -> None:
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "pydantic", "typer", "rich", "yaml"}
    code = (
        "import sys, lepton_cli\n"
        f"assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)\n"
        "assert 'compress' in dir(lepton_cli) and lepton_cli.__version__\n"
        "lepton_cli.QuantizeStatic(), lepton_cli.Recipe, lepton_cli.LeptonError\n"
        "assert not {'numpy', 'onnx', 'onnxruntime', 'typer', 'rich'} & set(sys.modules)\n"
        "lepton_cli.compress\n"
        "assert not {'typer', 'rich', 'onnxruntime'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_known_to_type_checkers() -> None:
    source = (ROOT / "lepton_cli/__init__.py").read_text()
    for name, module in lepton._PUBLIC.items():
        assert getattr(lepton, name) is not None
        assert f"from lepton_cli.{module} import {name} as {name}\n" in source
    assert "from lepton_cli.steps import *  # noqa: F403\n" in source
    steps = {step.options.__name__: step.options for step in TABLE.values()}
    assert {name: getattr(lepton, name) for name in lepton.__all__ if name not in lepton._PUBLIC} == steps
    assert dir(lepton) == sorted(lepton.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        lepton.nothing  # noqa: B018
