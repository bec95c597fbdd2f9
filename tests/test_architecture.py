"""The rules that keep the code simple: imports go one way, start-up is light, files stay short."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from lepton_cli.step import Context, Outcome
from lepton_cli.steps import STEPS

PACKAGE = Path(__file__).parent.parent / "lepton_cli"

#: Every part may import from parts further down the list, and from itself. Nothing is exempt.
LAYERS = (
    ("__init__",),
    ("__main__",),
    ("cli", "library"),
    ("commands",),
    ("schema",),
    ("tune",),
    ("gates",),
    ("report",),
    ("recipe",),
    ("measure",),
    ("steps",),
    ("prune",),
    ("quantize",),
    ("train",),
    ("timing",),
    ("simplify",),
    ("probe",),
    ("coupling",),
    ("graph",),
    ("model",),
    ("runtime",),
    ("step",),
    ("data",),
    ("cache", "garbage", "interrupt", "machine", "metrics", "plugin", "progress", "scratch", "tensors", "values"),
    ("units",),
    ("errors", "version"),
)
HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "PIL", "pyarrow", "optuna", "torch"}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    """`prune/cost.py` -> `prune.cost`; a folder's `__init__.py` -> the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it: inside functions and for types only as well."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: relative imports hide where they lead"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return {_module(name) for name in found if name.split(".")[0] == PACKAGE.name}


def _module(imported: str) -> str:
    """The module that an imported name is or stands in."""
    name = imported.removeprefix(PACKAGE.name).lstrip(".")
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or "__init__"


MODULES = {_name(path): path for path in _modules()}
GRAPH = {name: _imports(path) - {name} for name, path in MODULES.items()}
#: Modules that the step table names; they are imported when a step runs.
GRAPH["steps"] |= {step.function.partition(":")[0] for step in STEPS.values()}


def _rank(module: str) -> int:
    part = module.split(".")[0]
    return next(index for index, layer in enumerate(LAYERS) if part in layer)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    part = module.split(".")[0]
    for other in GRAPH[module]:
        assert other.split(".")[0] == part or _rank(module) < _rank(other), f"{module} imports {other}"


def test_there_are_no_circles() -> None:
    """Not between folders and not inside one."""
    graphlib.TopologicalSorter(GRAPH).prepare()


def test_every_layer_is_there() -> None:
    assert {part for layer in LAYERS for part in layer} == {name.split(".")[0] for name in MODULES}


def _defined(body: list[ast.stmt]) -> set[str]:
    """Public classes and capitalised aliases of a module, those under `if` too; constants in capitals are neither."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.If):
            found |= _defined(node.body) | _defined(node.orelse)
    return {name for name in found if name[0].isupper() and not name.isupper()}


def test_a_name_has_one_meaning() -> None:
    """No two modules define a public class, or an alias that looks like one, of the same name."""
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for name in _defined(ast.parse(path.read_text()).body):
            places.setdefault(name, []).append(module)
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


@pytest.mark.parametrize("name", STEPS)
def test_the_step_table_names_functions_that_take_its_options(name: str) -> None:
    step = STEPS[name]
    module, _, function = step.function.partition(":")
    parameters = typing.get_type_hints(getattr(importlib.import_module(f"lepton_cli.{module}"), function))
    assert parameters["options"] is step.options
    assert parameters["context"] is Context
    assert parameters["return"] is Outcome
    assert typing.get_args(step.options.model_fields["step"].annotation) == (name,)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_terminal_libraries_stay_in_the_command_line(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] == "cli":
        return
    text = path.read_text()
    assert "import typer" not in text
    assert "from rich" not in text
    assert "import rich" not in text


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)) or path.name == "__init__.py"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["schema"],
        ["schema", "budget"],
        ["schema", "report"],
        ["schema", "--metrics"],
        ["steps"],
        ["steps", "prune.channels"],
        ["compress", "--help"],
    ],
    ids=" ".join,
)
def test_start_up_is_light(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['lepton', *{arguments!r}]\n"
        "from lepton_cli.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_recipe_errors_are_light(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nsteps:\n  - step: simplfy\n")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from lepton_cli.errors import RecipeError\n"
        "from lepton_cli.recipe.load import load_recipe\n"
        f"try:\n    load_recipe(Path({str(recipe)!r}))\n"
        "except RecipeError as error:\n    assert 'simplify' in error.hint\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
