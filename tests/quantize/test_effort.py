"""Each effort does all that a smaller one does."""

import itertools

from lepton_cli.quantize.effort import EFFORTS


def test_more_effort_is_more_of_everything() -> None:
    ordered = [EFFORTS[name] for name in ("quick", "normal", "thorough")]
    for less, more in itertools.pairwise(ordered):
        assert less.groups < more.groups
        assert less.few < more.few
        assert less.second_tries < more.second_tries
        assert set(less.prefixes) < set(more.prefixes)
        assert less.clips <= more.clips
    assert [effort.clips for effort in ordered] == [False, True, True]
    assert EFFORTS["normal"].groups == 48
