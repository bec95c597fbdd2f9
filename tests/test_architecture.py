"""The rules that keep the code simple: imports go one way, start-up is light, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lepton_cli"

#: Every part may import from parts further down the list, and from itself.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("pipeline",),
    ("tune",),
    ("gates",),
    ("report",),
    ("recipe",),
    ("measure",),
    ("steps",),
    ("prune", "quantize"),
    ("graph", "data"),
    ("runtime",),
    ("progress", "tensors", "values"),
    ("units",),
    ("errors", "__init__"),
)
#: What crosses the layers on purpose: types without behaviour, that both sides are written in.
SHARED = {
    "steps.base": "the types of a step: prune and quantize return them",
    "report.model": "the report's types: JSON Schema of the recipe package describes them",
}
HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "PIL", "pyarrow", "optuna", "torch"}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _part(module: str) -> str:
    return module.split(".")[0]


def _rank(part: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if part in layer)


def _imports(path: Path) -> list[str]:
    """Modules of the package that a file imports at run time, without the package's name."""
    found = []
    tree = ast.parse(path.read_text())
    guarded = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lepton_cli"):
            base = node.module.removeprefix("lepton_cli").lstrip(".")
            names = [alias.name for alias in node.names]
            found += [f"{base}.{name}" if base else name for name in names]
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in _imports(path):
        if module == "__version__" or any(module.startswith(shared) for shared in SHARED):
            continue
        if module.startswith("steps.") and module.endswith(".Params"):
            continue  # the options of a step are a type too: the algorithms behind the step read them
        other = _part(module)
        assert other == here or _rank(here) < _rank(other), f"{path.name} ({here}) imports {module}"


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


def test_the_step_table_matches_the_files() -> None:
    from lepton_cli.steps import STEPS

    files = {path.stem for path in (PACKAGE / "steps").glob("*.py")} - {"__init__", "base"}
    assert files == {name.replace(".", "_") for name in STEPS}
