"""Keys of named parts, and entries that survive everything but being read wrongly."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_cli import cache
from lepton_cli.cache import Cache
from lepton_cli.prune.spec import PruneChannels

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
PARTS = st.dictionaries(st.sampled_from(["model", "data", "seed", "machine"]), VALUES, min_size=1)


@settings(max_examples=100)
@given(PARTS, VALUES, st.data())
def test_another_value_of_any_part_is_another_key(parts: dict[str, Any], value: Any, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(parts)))
    changed = parts | {name: value}
    assert (cache.key(**changed) == cache.key(**parts)) == (_typed(changed) == _typed(parts))


def _typed(value: Any) -> Any:
    """The value with its types: True is not 1."""
    if isinstance(value, dict):
        return {name: _typed(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_typed(child) for child in value]
    return type(value).__name__, value


@given(PARTS)
def test_the_order_of_the_parts_does_not_matter_and_their_names_do(parts: dict[str, Any]) -> None:
    assert cache.key(**dict(reversed(parts.items()))) == cache.key(**parts)
    assert cache.key(**{f"{name}_": value for name, value in parts.items()}) != cache.key(**parts)


@dataclasses.dataclass(frozen=True)
class Shape:
    width: int
    depth: int


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (Shape(1, 2), Shape(2, 1)),
        (PruneChannels(step="prune.channels"), PruneChannels(step="prune.channels", round_to=2)),
        (frozenset("ab"), frozenset("ac")),
        (np.arange(4), np.array([0, 1, 2, 4])),
        (np.arange(4), np.arange(4).reshape(2, 2)),
        (np.arange(4, dtype=np.int64), np.arange(4, dtype=np.uint64)),
        (Path("a"), Path("b")),
        ([Shape(1, 2)], [Shape(1, 3)]),
        (1, 1.5),
        (1, True),
        ("1", 1),
    ],
)
def test_other_things_give_other_keys(one: object, two: object) -> None:
    assert cache.key(part=one) != cache.key(part=two)
    assert cache.key(part=one) == cache.key(part=one)


def test_sets_have_no_order() -> None:
    names = [f"node{i}" for i in range(50)]
    assert cache.key(part=frozenset(names)) == cache.key(part=frozenset(reversed(names)))


def test_what_has_no_lasting_text_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot contain a object"):
        cache.key(part=object())


@pytest.mark.parametrize("changed", ["lepton", "cache", "numpy", "onnx", "onnx-ir", "onnxruntime"])
def test_every_version_is_part_of_every_key(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, versions = cache.key(part=1), cache.versions()
    assert changed in versions
    monkeypatch.setattr(cache, "versions", lambda: versions | {changed: "0"})
    assert cache.key(part=1) != before


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    array = np.random.default_rng(0).normal(size=(3, 2))
    assert store.get("times", "k") is None
    store.put("times", "k", {"ratios": array, "names": ["a", "b"], "none": None})
    found = store.get("times", "k", "ratios", "names")
    assert found is not None
    np.testing.assert_array_equal(found["ratios"], array)
    assert (found["names"], found["none"]) == (["a", "b"], None)
    assert store.get("times", "other") is None
    assert store.get("losses", "k") is None
    assert store.get("times", "k", "missing") is None
    assert [path.name for path in tmp_path.iterdir()] == ["times-k.npz"]


@pytest.mark.parametrize("damage", [b"", b"PK", b"not a zip file", None])
def test_damaged_entries_are_not_there(tmp_path: Path, damage: bytes | None) -> None:
    store = Cache(tmp_path)
    store.put("times", "k", {"ratios": np.arange(1000)})
    path = tmp_path / "times-k.npz"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert store.get("times", "k") is None


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "times-k.npz", json=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert Cache(tmp_path).get("times", "k") is None


def test_nothing_is_kept_without_a_folder_and_an_unwritable_one_is_no_error(tmp_path: Path) -> None:
    Cache(None).put("times", "k", {"a": 1})
    assert Cache(None).get("times", "k") is None
    (tmp_path / "file").write_text("")
    broken = Cache(tmp_path / "file")
    broken.put("times", "k", {"a": 1})
    assert broken.get("times", "k") is None


def test_the_entries_not_used_for_longest_go_first(tmp_path: Path) -> None:
    store = Cache(tmp_path, limit=11_500)
    data = np.random.default_rng(0).integers(0, 256, 3000, np.uint8)
    for age, name in ((300, "a"), (200, "b"), (100, "c")):
        store.put("ranges", name, {"data": data})
        stamp = os.stat(tmp_path / f"ranges-{name}.npz").st_mtime - age
        os.utime(tmp_path / f"ranges-{name}.npz", (stamp, stamp))
    assert store.get("ranges", "a") is not None  # used: now the newest
    store.put("ranges", "d", {"data": data})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranges-a.npz", "ranges-c.npz", "ranges-d.npz"]


def test_the_folder_is_the_users_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "mine"))
    assert Cache.usual().folder == tmp_path / "mine"
    assert (tmp_path / "mine").is_dir()
    monkeypatch.setenv("LEPTON_CACHE", "")
    assert Cache.usual().folder is None
    monkeypatch.delenv("LEPTON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache.usual().folder == tmp_path / "lepton"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "file" / "below"))
    assert Cache.usual().folder is None
