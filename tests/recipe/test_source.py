"""Places by path."""

import pytest

from lepton_cli.recipe.source import SourceMap
from lepton_cli.recipe.yaml import read

TEXT = """\
steps:
  - step: simplify
  - step: prune.channels
    target: {macs: 60 %}
    exclude:
      - first
      - second
gates:
"""


@pytest.mark.parametrize(
    ("path", "place", "key_place"),
    [
        ((), "r:1:1", "r:1:1"),
        (("steps",), "r:1:1", "r:1:1"),
        (("steps", 1), "r:3:5", "r:3:5"),
        (("steps", 1, "step"), "r:3:11", "r:3:5"),
        (("steps", 1, "target", "macs"), "r:4:20", "r:4:14"),
        (("steps", 1, "target", "latency"), "r:4:13", "r:4:13"),
        (("steps", 1, "target", "macs", "more"), "r:4:20", "r:4:20"),
        (("steps", 1, "exclude"), "r:5:5", "r:5:5"),
        (("steps", 1, "exclude", 1), "r:7:9", "r:7:9"),
        (("steps", 1, "exclude", 5), "r:5:5", "r:5:5"),
        (("steps", 1, "exclude", -1), "r:5:5", "r:5:5"),
        (("steps", 7, "exclude"), "r:1:1", "r:1:1"),
        (("gates",), "r:8:1", "r:8:1"),
        (("nothing", 0), "r:1:1", "r:1:1"),
        ((0,), "r:1:1", "r:1:1"),
    ],
)
def test_the_place_of_a_path_or_of_its_nearest_parent(path, place, key_place):
    source = SourceMap(read(TEXT, "r"))
    assert str(source.place(path)) == place
    assert str(source.key_place(path)) == key_place


def test_a_recipe_made_in_code_has_no_places():
    assert SourceMap().place(("steps", 0)) is None
    assert SourceMap().key_place(()) is None
