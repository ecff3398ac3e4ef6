import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common import codec, patches
from common.messages import Tensor


@pytest.mark.parametrize("name", ["raw", "lz4", "zstd", "lzw"])
@given(
    shape=st.lists(st.integers(0, 6), min_size=0, max_size=4),
    dtype=st.sampled_from(["uint8", "int32", "float32", "float16"]),
)
def test_lossless_codecs_give_the_array_back(name: str, shape: list[int], dtype: str) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    tensor = codec.encode(array, name)
    back = codec.decode(tensor)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)


def test_raw_copies_nothing_on_either_side() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = codec.encode(array)
    assert np.shares_memory(codec.decode(tensor), array)


def smooth() -> np.ndarray:
    ramp = np.linspace(0, 255, 224, dtype=np.float32)
    channels = [ramp[None, :] + 0 * ramp[:, None], ramp[:, None] + 0 * ramp[None, :]]
    return np.stack([*channels, np.full((224, 224), 90.0)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_a_picture_is_close_and_higher_quality_is_closer_and_larger(name: str) -> None:
    frame = smooth()
    low, high = (codec.encode(frame, name, quality=q) for q in (30, 95))
    error = [np.abs(codec.decode(t).astype(int) - frame).mean() for t in (low, high)]
    assert error[1] < error[0] < 6
    assert len(low.data) < len(high.data) < frame.nbytes / 10


def test_patches_in_a_mosaic_do_not_leak_into_each_other() -> None:
    """A 16x16 patch is one MCU of a 4:2:0 JPEG: black beside white stays black."""
    tiles = np.zeros((9, 768), np.uint8)
    tiles[::2] = 255
    tensor = codec.encode(patches.mosaic(tiles, 16), "jpeg", quality=50)
    back = patches.unmosaic(codec.decode(tensor), 9, 16)
    assert np.abs(back.astype(int) - tiles).max() <= 2


@pytest.mark.parametrize("name", ["raw", "lz4", "zstd", "lzw", "jpeg", "webp"])
@given(junk=st.binary(max_size=200))
def test_junk_is_a_value_error(name: str, junk: bytes) -> None:
    with pytest.raises(ValueError, match=name if name != "raw" else "do not hold"):
        codec.decode(Tensor(junk, "uint8", (64, 64, 3), name))


def test_a_small_packet_cannot_ask_for_gigabytes() -> None:
    small = codec.encode(np.zeros(1000, np.uint8), "zstd")
    for shape in [(1 << 40,), (999,)]:
        with pytest.raises(ValueError, match="zstd"):
            codec.decode(Tensor(small.data, "uint8", shape, "zstd"))
    for name in ("jpeg", "webp"):
        picture = codec.encode(np.zeros((64, 64, 3), np.uint8), name)
        with pytest.raises(ValueError, match="is not of shape"):
            codec.decode(Tensor(picture.data, "uint8", (32, 32, 3), name))


@settings(max_examples=200)
@given(at=st.integers(0, 400), value=st.integers(0, 255), end=st.integers(1, 400))
def test_a_webp_that_was_spoiled_is_a_picture_or_a_value_error(
    at: int, value: int, end: int
) -> None:
    whole = bytearray(codec.encode(smooth()[:64, :64], "webp").data)
    whole[at % len(whole)] = value
    for data in (bytes(whole), bytes(whole[:end])):
        try:
            assert codec.decode(Tensor(data, "uint8", (64, 64, 3), "webp")).shape == (64, 64, 3)
        except ValueError as error:
            assert str(error).startswith("webp")  # noqa: PT017 - one or the other


def test_other_kinds_of_webp_are_not_opened() -> None:
    """One without loss, or of several pictures, says its size elsewhere."""
    frame = Image.fromarray(smooth())
    for options in ({"lossless": True}, {"save_all": True, "append_images": [frame.rotate(90)]}):
        stream = io.BytesIO()
        frame.save(stream, "WEBP", **options)
        with pytest.raises(ValueError, match="simple"):
            codec.decode(Tensor(stream.getvalue(), "uint8", (224, 224, 3), "webp"))


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(ValueError, match="lzma"):
        codec.decode(Tensor(b"", "uint8", (0,), "lzma"))
