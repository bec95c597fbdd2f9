"""Collecting garbage is put off, and goes on afterwards as before."""

from __future__ import annotations

import gc

import pytest

from lepton_cli.garbage import uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_as_before_afterwards_also_behind_an_error(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with uncollected(), uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(KeyError), uncollected():
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
