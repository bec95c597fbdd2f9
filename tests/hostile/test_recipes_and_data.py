"""Recipes, tables, arrays and images made to break a command: one message and exit code 2, or a right result."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from lepton_cli.data import images, rows
from lepton_cli.errors import ExitCode
from tests.conftest import Invoke
from tests.hostile.models import FLOAT, mlp, model, tensor, weights

STEPS = "version: 1\nsteps: [{step: simplify, if_possible: true}]\nevaluate: {latency: false, memory: false}\n"
LABELLED = STEPS + "data: {evaluation: {path: %s, labels: labels}}\n"
_CELL = "version: 1\nsteps: [{step: prune.weights, sparsity: %s}]\n"
_GLOB = 'version: 1\nsteps: [{step: prune.weights, sparsity: 50 %%, include: ["%s"]}]\n'
_LATENCY = "version: 1\nsteps: [{step: simplify}]\nevaluate: {latency: {%s}}\n"
_MERGES = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 20)}]}}\n" for i in range(1, 12))

#: Recipe -> a part of the error's code.
RECIPES: dict[str, tuple[str, str]] = {
    "a million threads": (_LATENCY % "threads: 1000000", "wrong-value"),
    "a batch of 10^12": (_LATENCY % "batch: [1000000000000]", "batch"),
    "labels shifted by 10^23": (
        STEPS + "data: {evaluation: {path: d.csv, labels: labels, label_offset: 99999999999999999999999}}\n",
        "wrong-value",
    ),
    "merge bomb": ("version: 1\na0: &a0 {q: 1}\n" + _MERGES, "recipe."),
    "merge of itself": ("version: 1\nsteps: [&a {step: simplify, <<: *a}]\n", "alias"),
    "nested a million deep": ("[" * 1_000_000, "nesting"),
    "10 MB": ("version: 1\nsteps:\n" + "- {step: simplify}\n" * 500_000, "too-large"),
    "tag that runs code": ("a: !<tag:yaml.org,2002:python/object/apply:os.system> [id]\n", "tag"),
    "1e400": (STEPS + "seed: 1e400\n", "wrong-value"),
    "arabic digits": (_CELL % '"٥٠ %"', "wrong-value"),
    "no-break space": (_CELL % '"50\u00a0%"', "wrong-value"),
    "exponent of a billion": (_CELL % '"1e999999999 %"', "wrong-value"),
    "glob of stars": (_GLOB % ("*a" * 500 + "b"), "glob-matches-nothing"),
    "glob of classes": (_GLOB % ("[a-z]*" * 60 + "Z"), "glob-matches-nothing"),
    "glob of 100,000 letters": (_GLOB % ("a" * 100_000), "glob-matches-nothing"),
}


@pytest.fixture(name="run")
def _run(invoke: Invoke, tmp_path: Path) -> Callable[..., str]:
    """Write a recipe, run a command with it, and give the code of its error: `""` when it did its job."""

    def run(recipe: str, command: str = "compress") -> str:
        (tmp_path / "recipe.yaml").write_text(recipe)
        output = ("-o", "out") if command == "compress" else ()
        result = invoke(command, "in/model.onnx", "-r", "recipe.yaml", *output)
        if result.exit_code == ExitCode.OK:
            return ""
        assert result.exit_code == ExitCode.CANNOT_START, result.output
        first, *others = [line for line in result.output.splitlines() if line.startswith("error[")]
        assert not others
        assert len(first) < 1100
        assert not (tmp_path / "out").exists()
        return first.removeprefix("error[").partition("]")[0]

    return run


@pytest.fixture(name="table_model")
def _table_model(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.onnx").write_bytes(mlp().SerializeToString())


@pytest.mark.usefixtures("table_model")
@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, run: Callable[..., str]) -> None:
    recipe, code = RECIPES[name]
    for command in ("compress", "plan"):
        assert code in run(recipe, command)


def _rows(*cells: str) -> bytes:
    header = ",".join([f"c{i}" for i in range(8)] + ["labels"])
    return "\n".join([header, *cells]).encode()


_ROW = ",".join(["1"] * 8)


def _line(x: object, labels: object = 1) -> bytes:
    return (json.dumps({"x": x, "labels": labels}) + "\n").encode()


def _saved(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


#: File name, content, a part of the error's code.
TABLES: dict[str, tuple[str, bytes, str]] = {
    "good": ("d.csv", _rows(f"{_ROW},1", f"{_ROW},0"), ""),
    "ragged": ("d.csv", _rows(f"{_ROW},1", "1,2"), "format"),
    "NUL": ("d.csv", _rows(f"1,\0,{_ROW}"), "data."),
    "UTF-16": ("d.csv", _rows(f"{_ROW},1").decode().encode("utf-16"), "format"),
    "huge cell": ("d.csv", _rows("1" * 200_000 + ",1,1,1,1,1,1,1,1"), "format"),
    "missing columns": ("d.csv", b"a,b\n1,2\n", "unknown-column"),
    "nested 900 deep": ("d.jsonl", b'{"x": ' + b"[" * 900 + b"1" + b"]" * 900 + b', "labels": 1}\n', "nesting"),
    "label of 400 digits": ("d.jsonl", _line([1] * 8, 10**400), "labels"),
    "label of bytes": ("d.npz", _saved(x=weights(2, 8), labels=np.array([b"\xff", b"a"])), "labels"),
    "labels beyond int64": ("d.npz", _saved(x=weights(2, 8), labels=np.full(2, 2**64 - 1, np.uint64)), "labels"),
}


@pytest.mark.usefixtures("table_model")
@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, run: Callable[..., str], tmp_path: Path) -> None:
    file, content, code = TABLES[name]
    (tmp_path / file).write_bytes(content)
    for command in ("evaluate", "plan"):
        found = run(LABELLED % file, command)
        assert code in found
        assert bool(code) == bool(found)


@pytest.mark.usefixtures("table_model")
def test_a_line_without_end(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE", 1000)
    (tmp_path / "d.csv").write_bytes(b"1," * 10_000)
    assert run(LABELLED % "d.csv", "plan") == "data.format"


@pytest.mark.usefixtures("table_model")
def test_a_text_repeated_in_a_small_parquet_file(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(rows, "_PARQUET_BYTES", 1 << 20)
    table = pyarrow.table({"x": ["1" * 100_000] * 1000, "labels": [0] * 1000})
    parquet.write_table(table, tmp_path / "d.parquet", compression="zstd")
    assert (tmp_path / "d.parquet").stat().st_size < 10_000
    assert run(LABELLED % "d.parquet", "plan") == "data.format"


def _png(width: int, height: int, data: bytes, extra: bytes = b"") -> bytes:
    """A PNG of 8-bit RGB that declares any size."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    middle = chunk(extra[:4], extra[4:]) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + head + middle + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3)).astype(np.uint8)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


_SMALL = (b"\0" + bytes(12)) * 4
IMAGES: dict[str, tuple[bytes, str]] = {
    "declares 50000 x 50000": (_png(50_000, 50_000, b""), "data.image"),
    "cut off": (_encoded("JPEG")[:400], "data.image"),
    "text of 100 MB": (_png(4, 4, _SMALL, b"zTXta\0\0" + zlib.compress(bytes(100_000_000))), "data.image"),
    "colour profile of 100 MB": (_png(4, 4, _SMALL, b"iCCPa\0\0" + zlib.compress(bytes(100_000_000))), "data.image"),
    "too much data": (_png(16, 16, bytes(10_000_000)), ""),
    "moving": (
        _encoded("GIF", save_all=True, append_images=[Image.new("RGB", (20, 16), (n, 0, 0)) for n in range(9)]),
        "",
    ),
    "empty": (b"", "data.image"),
}
IMAGE_RECIPE = STEPS + "data: {evaluation: {path: set, preprocess: {resize: [16, 16], layout: nchw}}}\n"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """Two classes of images, and a model that takes them."""
    nodes = [helper.make_node("Conv", ["image", "w"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["y"])]
    proto = model(nodes, {"image": (FLOAT, ["n", 3, 16, 16])}, {"y": (FLOAT, None)}, [tensor("w", weights(4, 3, 3, 3))])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.onnx").write_bytes(proto.SerializeToString())
    for name in ("set/a/1.png", "set/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(_encoded("PNG"))
    return tmp_path / "set"


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, run: Callable[..., str], folder: Path) -> None:
    content, code = IMAGES[name]
    (folder / "a" / "0.png").write_bytes(content)
    assert run(IMAGE_RECIPE) == code


def test_images_that_are_no_files(run: Callable[..., str], folder: Path) -> None:
    (folder / "a" / "folder.png").mkdir()
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "device.png").symlink_to("/dev/zero")
    (folder / "a" / "loop.png").symlink_to("loop.png")
    (folder / "a" / "nowhere.png").symlink_to("/nowhere")
    assert run(IMAGE_RECIPE, "evaluate") == ""
    (folder / "a" / "0.png").symlink_to("/etc/passwd")
    assert run(IMAGE_RECIPE, "plan") == "data.image"


def test_a_batch_of_images_too_large(run: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BATCH_BYTES", 1500)
    assert run(IMAGE_RECIPE) == "data.too-large"


def test_file_names_that_are_no_text(run: Callable[..., str], folder: Path) -> None:
    with open(os.fsencode(folder) + b"/a/\xff.png", "wb") as stream:
        stream.write(_encoded("PNG"))
    assert run(IMAGE_RECIPE) == "data.name"
