"""The figures of the main job: bundled recipes on the sample models, recipes on other real models, start-up time.

    python benchmarks/compress.py                    bundled recipes and start-up
    python benchmarks/compress.py --assets DIR       the models of benchmarks/recipes too (not part of the repository)

Run it on a quiet machine. Every figure of the README comes from here.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUNDLED = {
    "mlp-prune-int8": "digits_mlp",
    "cnn-prune-int8": "digits_cnn",
    "cnn-int8": "digits_cnn",
    "transformer-prune-int8": "digits_vit",
}
ASSETS = {
    "resnet20": ("resnet20_cifar10.onnx", "cifar10_train.npz", "cifar10_test.npz"),
    "squeezenet": ("squeezenet_v1.1.onnx", "imagenet_600", "imagenet_600"),
    "mobilenet": ("mobilenet_v1_0.25_128.onnx", "imagenet_600", "imagenet_600"),
    "sst2_minilm": ("sst2_minilm.onnx", "sst2_calib.npz", "sst2_dev.npz"),
}


def compress(model: Path, recipe: Path, *settings: str) -> dict[str, object]:
    """Run `lepton compress` in a process of its own and return the figures of its report."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(model), "-r", str(recipe), "-o", f"{folder}/out", "--json"]
        for setting in settings:
            arguments += ["--set", setting]
        done = subprocess.run(
            [sys.executable, "-m", "lepton_cli", "compress", *arguments], capture_output=True, text=True
        )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    report = json.loads(done.stdout)
    original, compressed = (variant["size"] for variant in report["variants"])
    (change,) = report["accuracy"]["changes"]
    return {
        "smaller file": f"{100 * (1 - compressed['file'] / original['file']):.1f} %",
        "fewer parameters": f"{100 * (1 - compressed['parameters'] / original['parameters']):.1f} %",
        "top-1 before": f"{100 * change['original']:.2f} %",
        "top-1 after": f"{100 * change['compressed']:.2f} % (n = {change['n']})",
        "SQNR": f"{report['accuracy']['fidelity'][0]['sqnr_db']:.1f} dB",
        **{
            f"faster, batch {row['batch']}": f"{1 / row['ratio']:.2f}x [{1 / row['high']:.2f}, {1 / row['low']:.2f}]"
            for row in report["latency"]["changes"]
        },
        "gates": report["status"],
    }


def cpu_seconds(command: list[str], runs: int = 15) -> float:
    """Median user and system time of a command."""
    times = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(times)


def start_up() -> dict[str, object]:
    """`lepton --help` against importing what its command line is made of."""
    lepton = cpu_seconds([str(Path(sys.executable).parent / "lepton"), "--help"])
    imports = cpu_seconds([sys.executable, "-c", "import typer, rich"])
    return {
        "lepton --help": f"{lepton:.3f} s",
        "import typer, rich": f"{imports:.3f} s",
        "ratio": f"{lepton / imports:.2f}",
    }


def main() -> None:
    """Print every figure as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, help="folder with the models and data of benchmarks/recipes")
    parser.add_argument("--only", help="one name of the tables above, or `start-up`")
    chosen = parser.parse_args()

    def show(name: str, figures: dict[str, object]) -> None:
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)

    if chosen.only in (None, "start-up"):
        show("start-up", start_up())
    for recipe, model in BUNDLED.items():
        if chosen.only in (None, recipe):
            show(recipe, compress(ROOT / f"sample_models/{model}.onnx", ROOT / f"configs/{recipe}.yaml"))
    for name, (model, calibration, evaluation) in ASSETS.items() if chosen.assets else ():
        if chosen.only in (None, name):
            folder = chosen.assets.resolve()
            paths = (f"data.calibration.path={folder / calibration}", f"data.evaluation.path={folder / evaluation}")
            show(name, compress(folder / model, ROOT / f"benchmarks/recipes/{name}.yaml", *paths))


if __name__ == "__main__":
    main()
