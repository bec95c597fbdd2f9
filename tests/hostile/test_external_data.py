"""Weights in external files: legal layouts round-trip, and nothing outside the model's folder is ever opened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from lepton_cli import runtime
from lepton_cli.errors import ModelError
from lepton_cli.model import io
from tests.hostile.models import mlp

SECRET = "secret.bin"


def _external(path: Path, **entries: str) -> Path:
    """The MLP with its first weight in an external file as `entries` say."""
    proto = mlp()
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with its data, next to a file that is none of its business."""
    (tmp_path / SECRET).write_bytes(bytes(512))
    inside = tmp_path / "models"
    inside.mkdir()
    (inside / "w.bin").write_bytes(mlp().graph.initializer[0].raw_data)
    return inside


ATTACKS = {
    "no location": ({}, "names no file"),
    "missing": ({"location": "gone.bin"}, "missing"),
    "absolute": ({"location": "/etc/passwd"}, "outside"),
    "absolute into the folder": ({"location": "{folder}/w.bin"}, "outside"),
    "parent": ({"location": f"../{SECRET}"}, "outside"),
    "hidden parent": ({"location": f"sub/../../{SECRET}"}, "outside"),
    "backslashes": ({"location": f"..\\{SECRET}"}, "outside"),
    "symlink": ({"location": "link.bin"}, "outside"),
    "folder symlink": ({"location": f"up/{SECRET}"}, "outside"),
    "symlink loop": ({"location": "loop.bin"}, "cannot be read"),
    "hard link": ({"location": "hard.bin"}, "hard-linked"),
    "device": ({"location": "device"}, "outside"),
    "fifo": ({"location": "fifo"}, "not a regular file"),
    "folder": ({"location": "sub"}, "not a regular file"),
    "the model itself": ({"location": "model.onnx"}, "model file itself"),
    "short": ({"location": "short.bin"}, "ends at"),
    "offset past the end": ({"location": "w.bin", "offset": "512"}, "ends at"),
    "huge offset": ({"location": "w.bin", "offset": str(2**63)}, "ends at"),
    "negative offset": ({"location": "w.bin", "offset": "-4"}, "bytes at -4"),
    "wrong length": ({"location": "w.bin", "length": "4"}, "has 4 bytes"),
    "length is no number": ({"location": "w.bin", "length": "many"}, "not a number"),
    "null character": ({"location": "w.bin\0.png"}, "names no file"),
    "name too long": ({"location": "w" * 5000}, "cannot be read"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused(name: str, folder: Path) -> None:
    entries, words = ATTACKS[name]
    (folder / "sub").mkdir()
    (folder / "link.bin").symlink_to(folder.parent / SECRET)
    (folder / "up").symlink_to(folder.parent)
    (folder / "loop.bin").symlink_to("loop.bin")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "short.bin").write_bytes(b"abc")
    os.link(folder.parent / SECRET, folder / "hard.bin")
    os.mkfifo(folder / "fifo")
    path = _external(folder / "model.onnx", **{key: value.format(folder=folder) for key, value in entries.items()})
    with pytest.raises(ModelError) as caught:
        io.load(path)
    assert caught.value.code == "model.external-data"
    assert words in str(caught.value.cause)


def _feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((2, 8), np.float32)}


LAYOUTS = {
    "one file": {"all_tensors_to_one_file": True, "location": "model.bin"},
    "many files": {"all_tensors_to_one_file": False},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_legal_layouts_round_trip(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, size_threshold=0, **LAYOUTS[name])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    loaded = io.load(path)
    assert {file.name for file in loaded.files} == set(before)
    assert loaded.bytes == sum(map(len, before.values()))
    (written,) = io.save(loaded.model, tmp_path / "copy.onnx")
    original = runtime.Session(mlp().SerializeToString(), threads=1).run(_feeds())
    copied = runtime.Session(written.read_bytes(), threads=1).run(_feeds())
    np.testing.assert_array_equal(original["y"], copied["y"])
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_data_in_a_subfolder(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "w.bin").rename(folder / "sub" / "w.bin")
    loaded = io.load(_external(folder / "model.onnx", location="sub/w.bin", offset="0", length="512"))
    weight = loaded.model.graph.initializers["w1"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), onnx.numpy_helper.to_array(mlp().graph.initializer[0]))


def test_models_above_the_limit_get_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "EXTERNAL_ABOVE", 100)
    source = tmp_path / "model.onnx"
    source.write_bytes(mlp().SerializeToString())
    target = tmp_path / "out"
    target.mkdir()
    files = io.save(io.load(source).model, target / "big.onnx")
    assert [file.name for file in files] == ["big.onnx", "big.onnx.data"]
    again = io.load(target / "big.onnx")
    assert sorted(os.listdir(target)) == ["big.onnx", "big.onnx.data"]
    original = runtime.Session(source, threads=1).run(_feeds())
    np.testing.assert_array_equal(original["y"], runtime.Session(target / "big.onnx", threads=1).run(_feeds())["y"])
    assert io.to_bytes(again.model)


_WATCHED = """
import os, sys
from pathlib import Path
model = Path(sys.argv[1]).resolve()
opened, sockets = [], []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        opened.append(os.path.realpath(os.fsdecode(arguments[0])))
    elif event.startswith("socket.") and event != "socket.gethostname":
        sockets.append(event)
sys.addaudithook(watch)
from lepton_cli.commands.inspect import inspect
from lepton_cli.errors import LeptonError
try:
    inspect(model)
    print("inspected")
except LeptonError as error:
    print(error.code)
own = [model.parent, os.environ["TMPDIR"], sys.prefix, sys.base_prefix, os.getcwd()]
system = ("/proc/", "/sys/", "/dev/", "/usr/", "/lib", "/etc/ld")
known = (*map(os.path.realpath, own), *system)
print([name for name in opened if not name.startswith(known)], sockets)
"""


@pytest.mark.parametrize("location", ["w.bin", f"../{SECRET}", "link.bin"])
def test_nothing_outside_the_folder_is_opened(folder: Path, location: str, tmp_path: Path) -> None:
    """An audit hook sees every file that Python opens and every socket, while `inspect` looks at the model."""
    (folder / "link.bin").symlink_to(folder.parent / SECRET)
    path = _external(folder / "model.onnx", location=location)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WATCHED, str(path)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    verdict = "inspected" if location == "w.bin" else "model.external-data"
    assert done.stdout.splitlines() == [verdict, "[] []"], done.stderr
