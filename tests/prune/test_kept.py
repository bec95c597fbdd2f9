"""Rankings and facts on disk: found again under the same key, and under no other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_cli.graph import cut, io
from lepton_cli.prune import kept
from lepton_cli.prune.hessian import Ranking
from tests.graph.networks import Network
from tests.prune.context import redundant


@dataclasses.dataclass(frozen=True)
class Named:
    """Everything that a ranking follows from."""

    model: ir.Model
    kind: str = "hessian"
    recover: bool = True
    names: tuple[str, ...] = ("a", "b")
    low: tuple[int, ...] = (2, 3)
    data: tuple[str, int] | None = ("f", 64)
    seed: int = 0

    @property
    def key(self) -> str:
        return kept.key(self.model, self.kind, self.recover, list(self.names), list(self.low), self.data, self.seed)


def other_weight(model: ir.Model) -> ir.Model:
    copy = io.clone(model)
    array = copy.graph.initializers["w0"].const_value.numpy().copy()
    array.flat[3] += 1e-6
    cut.replace_weight(copy, "w0", array)
    return copy


def other_attribute(model: ir.Model) -> ir.Model:
    copy = io.clone(model)
    node = next(node for node in copy.graph if node.op_type == "Conv")
    node.attributes["pads"] = ir.AttrInt64s("pads", [2, 2, 0, 0])
    return copy


CHANGES: dict[str, Callable[[Named], Named]] = {
    "weights": lambda one: dataclasses.replace(one, model=other_weight(one.model)),
    "graph": lambda one: dataclasses.replace(one, model=other_attribute(one.model)),
    "kind": lambda one: dataclasses.replace(one, kind="l2"),
    "recover": lambda one: dataclasses.replace(one, recover=False),
    "names": lambda one: dataclasses.replace(one, names=("a", "c")),
    "least widths": lambda one: dataclasses.replace(one, low=(2, 4)),
    "data": lambda one: dataclasses.replace(one, data=("g", 64)),
    "samples": lambda one: dataclasses.replace(one, data=("f", 65)),
    "no data": lambda one: dataclasses.replace(one, data=None),
    "seed": lambda one: dataclasses.replace(one, seed=1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_part_decides_the_key(change: str) -> None:
    one = Named(redundant())
    other = CHANGES[change](one)
    assert one.key != other.key
    assert dataclasses.replace(other, model=io.clone(other.model)).key == other.key


@given(
    st.sets(st.sampled_from(sorted(set(CHANGES) - {"no data"})), min_size=1), st.sets(st.sampled_from(sorted(CHANGES)))
)
@settings(max_examples=25)
def test_different_changes_have_different_keys(first: set[str], second: set[str]) -> None:
    if "no data" in second:
        second -= {"data", "samples"}
    keys = []
    for changes in (first, second):
        one = Named(redundant())
        for change in sorted(changes):
            one = CHANGES[change](one)
        keys.append(one.key)
    assert (keys[0] == keys[1]) == (first == second)


def test_another_version_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Named(redundant()).key
    monkeypatch.setattr(kept, "__version__", "0.0.0")
    assert Named(redundant()).key != before


def test_keys_are_short_names_of_files() -> None:
    key = Named(redundant()).key
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")


@pytest.mark.parametrize("limit", [io.EXTERNAL_ABOVE, 0])
def test_every_weight_decides_the_key(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "EXTERNAL_ABOVE", limit)
    n = Network()
    model = n.model(n.linear(n.input("x", "batch", 64), 64, 64))
    before = kept.key(model)
    assert kept.key(model.clone()) == before
    value = max(model.graph.initializers.values(), key=lambda value: value.const_value.size)
    changed = value.const_value.numpy().copy()
    changed.flat[changed.size // 2] += 1
    value.const_value = ir.tensor(changed, name=value.name)
    assert kept.key(model) != before


def ranked() -> kept.Ranked:
    random = np.random.default_rng(0)
    return {
        name: (Ranking(random.permutation(size), random.uniform(size=size - 1)), random.uniform(size=size))
        for name, size in (("a", 4), ("b", 6))
    }


def test_rankings_come_back_as_they_were(tmp_path: Path) -> None:
    saved = ranked()
    kept.save(tmp_path, "k", saved)
    assert [path.name for path in tmp_path.iterdir()] == ["ranking-k.npz"]
    found = kept.load(tmp_path, "k", ["a", "b"])
    assert list(found) == ["a", "b"]
    for name, (ranking, curve) in saved.items():
        np.testing.assert_array_equal(found[name][0].order, ranking.order)
        np.testing.assert_array_equal(found[name][0].loss, ranking.loss)
        np.testing.assert_array_equal(found[name][1], curve)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"nonsense", None])
def test_a_damaged_file_is_no_ranking(content: bytes | None, tmp_path: Path) -> None:
    kept.save(tmp_path, "k", ranked())
    file = tmp_path / "ranking-k.npz"
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    assert kept.load(tmp_path, "k", ["a", "b"]) == {}
    kept.save(tmp_path, "k", ranked())
    assert set(kept.load(tmp_path, "k", ["a", "b"])) == {"a", "b"}


def test_what_is_not_there_is_no_ranking(tmp_path: Path) -> None:
    assert kept.load(tmp_path, "k", ["a"]) == {}
    assert kept.load(None, "k", ["a"]) == {}
    kept.save(None, "k", ranked())
    kept.save(tmp_path, "k", ranked())
    assert kept.load(tmp_path, "k", ["a", "b", "c"]) == {}


def test_facts_come_back_when_they_have_the_fields(tmp_path: Path) -> None:
    assert kept.load_facts(tmp_path, "x", "losses") is None
    assert kept.load_facts(None, "x") is None
    kept.save_facts(None, "x", {"losses": [0.5]})
    kept.save_facts(tmp_path, "x", {"losses": [0.5], "more": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert kept.load_facts(tmp_path, "x", "losses") == {"losses": [0.5], "more": 1}
    assert kept.load_facts(tmp_path, "x", "losses", "widths") is None


@pytest.mark.parametrize("content", ["[", "", json.dumps(["losses"]), json.dumps("losses"), "null"])
def test_damaged_facts_are_no_facts(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    assert kept.load_facts(tmp_path, "x", "losses") is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    for name in ("ranking-k.npz", "x.json"):
        (tmp_path / name / "inside").mkdir(parents=True)
    kept.save(tmp_path, "k", ranked())
    kept.save_facts(tmp_path, "x", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranking-k.npz", "x.json"]
    assert kept.load(tmp_path, "k", ["a"]) == {}
    assert kept.load_facts(tmp_path, "x") is None
    kept.save(tmp_path / "nowhere", "k", ranked())
    kept.save_facts(tmp_path / "nowhere", "x", {})
