"""Arrays that are kept read back as they were: from the file's own bytes, and where only sizes count, by size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.quantize.store import WeightStore

PAGE = 4096
#: Of many types and sizes, also none, a whole page, and one byte more.
ARRAYS = (
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(PAGE, dtype=np.uint32).astype(np.uint8),
    np.arange(PAGE + 1, dtype=np.int32).astype(np.int8),
    np.zeros((0, 4), np.float32),
    np.array(3, np.int64),
    np.linspace(-1, 1, 5000, dtype=np.float16).reshape(50, 1, 100),
)


def kept_in_a_file(folder: Path) -> list[ir.ExternalTensor]:
    store = WeightStore(folder)
    made = [store.keep(array) for array in ARRAYS]
    assert all(isinstance(one, ir.ExternalTensor) for one in made)
    return [one for one in made if isinstance(one, ir.ExternalTensor)]


def test_the_file_holds_the_arrays_bytes_each_from_a_page_of_its_own(tmp_path: Path) -> None:
    made = kept_in_a_file(tmp_path)
    # 24 bytes, a page, a page and a byte, nothing, 8 bytes, 10000 bytes.
    assert [one.offset for one in made] == [0, PAGE, 2 * PAGE, 4 * PAGE, 4 * PAGE, 5 * PAGE]
    (file,) = {Path(one.path) for one in made}
    data = file.read_bytes()
    assert len(data) == 5 * PAGE + 10000
    wanted = bytearray(len(data))  # with zeros between
    for one, array in zip(made, ARRAYS, strict=True):
        assert one.length == array.nbytes
        wanted[one.offset or 0 : (one.offset or 0) + array.nbytes] = array.tobytes()
    assert data == bytes(wanted)


def test_references_read_back_as_the_arrays_and_have_no_name(tmp_path: Path) -> None:
    for one, array in zip(kept_in_a_file(tmp_path), ARRAYS, strict=True):
        assert one.numpy().dtype == array.dtype
        np.testing.assert_array_equal(one.numpy(), array)
        assert tuple(one.shape) == array.shape
        assert one.name == ""


def test_every_store_has_a_file_of_its_own_below_the_folder(tmp_path: Path) -> None:
    stores = [WeightStore(tmp_path) for _ in range(2)]
    made = [store.keep(np.full(3, value, np.int8)) for value, store in enumerate(stores)]
    assert [one.numpy().tolist() for one in made] == [[0] * 3, [1] * 3]
    paths = [store.path for store in stores]
    assert len({*paths}) == 2
    assert all(path is not None and path.parent.parent == tmp_path and path.stat().st_size == 3 for path in paths)


def test_without_a_folder_arrays_stay_in_memory() -> None:
    store = WeightStore(None)
    assert store.path is None
    for array in ARRAYS:
        made = store.keep(array.copy())
        assert isinstance(made, ir.Tensor)
        assert made.numpy().dtype == array.dtype
        np.testing.assert_array_equal(made.numpy(), array)
        assert made.name is None


@pytest.mark.parametrize("folder", [True, False])
def test_where_only_sizes_count_arrays_are_told_apart_by_a_number_and_nothing_is_written(
    folder: bool, tmp_path: Path
) -> None:
    """The number is as many bytes as there are, eight at most: what is behind them stays as it is."""
    store = WeightStore(tmp_path if folder else None, empty=True)
    assert store.path is None
    made = [store.keep(np.full(shape, 7, np.uint8)).numpy() for shape in ((3, 4), (5,), (0,), ())]
    assert made[0].tobytes() == bytes([1, 0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7])
    assert made[1].tobytes() == bytes([2, 0, 0, 0, 0])
    assert made[2].tobytes() == b""
    assert made[3].tobytes() == bytes([4])
    assert [one.shape for one in made] == [(3, 4), (5,), (0,), ()]
    wide = store.keep(np.full((2, 2), -1, np.float32)).numpy()
    assert wide.tobytes() == bytes([5, *[0] * 7]) + np.full(2, -1, np.float32).tobytes()
    assert not list(tmp_path.iterdir())


def test_more_than_255_empty_arrays_are_still_told_apart() -> None:
    store = WeightStore(None, empty=True)
    assert len({store.keep(np.empty(4, np.int16)).tobytes() for _ in range(600)}) == 600


def test_by_default_arrays_are_filled() -> None:
    assert WeightStore(None).keep(np.full(9, 7, np.int8)).numpy().tolist() == [7] * 9
