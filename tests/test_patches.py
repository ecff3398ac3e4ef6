import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import patches
from common.errors import ConfigError


def picture(height: int = 224, width: int = 224, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_patch_is_row_column_channel_with_channel_fastest() -> None:
    frame = picture()
    taken = patches.take(frame, np.array([0, 15, 195]), 16)
    assert taken.shape == (3, 768)
    assert np.array_equal(taken[0], frame[:16, :16].reshape(-1))
    assert np.array_equal(taken[1], frame[16:32, 16:32].reshape(-1))
    assert np.array_equal(taken[2], frame[208:, 208:].reshape(-1))


def test_take_reads_a_frame_that_is_not_contiguous() -> None:
    frame = picture(224, 448)[:, ::2]
    assert np.array_equal(
        patches.take(frame, np.array([17]), 16)[0], frame[16:32, 48:64].reshape(-1)
    )


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 4, 16]))
def test_unpatchify_undoes_patchify(rows: int, columns: int, patch: int) -> None:
    frame = picture(rows * patch, columns * patch)
    back = patches.unpatchify(patches.patchify(frame, patch), *frame.shape[:2], patch)
    assert np.array_equal(back, frame)


@given(st.integers(1, 400), st.data())
def test_unpack_undoes_pack(total: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, total - 1)))
    indices = np.array(sorted(chosen), dtype=np.intp)
    bitmap = patches.pack(indices, total)
    assert len(bitmap) == (total + 7) // 8
    assert np.array_equal(patches.unpack(bitmap, total), indices)


def test_a_bitmap_of_196_patches_is_25_bytes_and_nothing_beyond_them() -> None:
    bitmap = bytearray(patches.pack(np.array([195]), 196))
    assert len(bitmap) == 25
    bitmap[24] |= 0x80
    with pytest.raises(ValueError, match="beyond 196"):
        patches.unpack(bitmap, 196)
    with pytest.raises(ValueError, match="25 bytes"):
        patches.unpack(b"\0" * 24, 196)


@given(st.integers(1, 196))
def test_unmosaic_undoes_mosaic(count: int) -> None:
    taken = patches.patchify(picture(), 16)[:count]
    assert np.array_equal(patches.unmosaic(patches.mosaic(taken, 16), count, 16), taken)


def test_a_mosaic_of_another_size_or_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="mosaic of 5"):
        patches.unmosaic(picture(32, 32), 5, 16)
    with pytest.raises(ValueError, match="at least one"):
        patches.mosaic(np.zeros((0, 768), np.uint8), 16)


def test_sample_draws_distinct_patches_and_depends_on_its_seed_only() -> None:
    first = patches.sample(49, 196, np.random.default_rng(7))
    again = patches.sample(49, 196, np.random.default_rng(7))
    other = patches.sample(49, 196, np.random.default_rng(8))
    assert len(np.unique(first)) == 49
    assert first.min() >= 0
    assert first.max() < 196
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("height", "width", "patch"), [(225, 224, 16), (224, 0, 16), (16, 16, 0)])
def test_a_frame_that_is_no_whole_grid_is_a_config_error(
    height: int, width: int, patch: int
) -> None:
    with pytest.raises(ConfigError, match="no whole grid"):
        patches.grid(height, width, patch)
