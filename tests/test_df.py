"""DF: what the filter learns, what is chosen by it, and what the server makes of the choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import patches
from common import profile as profiles_of
from common.codec import decode, encode
from common.errors import Refused
from common.messages import Query
from device import inference
from device.bundle import Bundle
from device.strategies import df as device_df
from device.strategy import Frame, Plan
from profiles.export import CRUCIAL, INPUT, filter_onnx
from profiles.train import filter
from profiles.train.local import halve
from profiles.train.loop import Budget
from server.memory import NOTHING
from server.serving import Serving
from server.strategies import df as server_df
from server.strategies import raw as server_raw
from tests.profiles import picture, tiny


def test_it_chooses_the_likeliest_not_below_the_floor() -> None:
    crucial = np.array([0.1, 0.9, 0.2, 0.7, 0.6, 0.0, 0.05, 0.3], np.float32)
    assert device_df.choose(crucial, 0.5, 0.0).tolist() == [1, 3, 4, 7]
    assert device_df.choose(crucial, 0.5, 0.5).tolist() == [1, 3, 4]
    assert device_df.choose(crucial, 0.5, 1.0).tolist() == [1]
    assert device_df.choose(crucial, 0.01, 0.0).tolist() == [1]
    assert device_df.choose(crucial, 1.0, 0.0).tolist() == list(range(8))


def marked(count: int = 64) -> filter.Marked:
    """Grey frames with one bright square of 2 x 2 patches each."""
    rng = np.random.default_rng(0)
    frames = rng.integers(40, 90, (count, 64, 64, 3), dtype=np.uint8)
    crucial = np.zeros((count, 4, 4), bool)
    for frame, cells in zip(frames, crucial, strict=True):
        top, left = rng.integers(0, 3, 2)
        frame[16 * top : 16 * top + 32, 16 * left : 16 * left + 32] += 120
        cells[top : top + 2, left : left + 2] = True
    return filter.Marked(frames, crucial.reshape(count, 16))


def test_the_filter_learns_where_the_object_is_and_the_device_sees_the_same(
    tmp_path: Path,
) -> None:
    data = marked()
    model, _ = filter.train(
        filter.batches_of(data), len(data.frames), tmp_path / "df.ckpt", Budget(steps=40), 0, False
    )
    assert filter.overlap(model, data) > 0.9
    assert filter.overlap(filter.Filter().eval(), data) < 0.7
    macs = filter_onnx(model, tmp_path / "df.onnx", 64)
    assert macs == 16**2 * 16 * 27 + 8**2 * 32 * 144 + 4**2 * (64 * 288 + 4 * 64 * 576 + 64)
    find = inference.load(tmp_path / "df.onnx", INPUT, CRUCIAL)
    with torch.no_grad():
        expected = model(halve(data.frames[:4])).sigmoid().numpy()
    for frame, row in zip(data.frames[:4], expected, strict=True):
        np.testing.assert_allclose(find(frame), row, atol=1e-4)


def test_scores_mark_their_highest_share() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.3, 0.2], [4.0, 3.0, 2.0, 1.0]])
    expected = [[False, True, True, False], [True, True, False, False]]
    assert filter.highest(scores, 0.5).tolist() == expected


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Serving, device_df.Df]:
    profile = profiles_of.load(tiny(tmp_path_factory.mktemp("profile")))
    present = {file.path for file in profile.manifest.files}
    return Serving(profile), device_df.create(Bundle(profile.manifest, profile.directory, present))


def asked(pair: tuple[Serving, device_df.Df], **params: Any) -> Query:
    frame = Frame(0, "0", picture(pair[0].profile), 0.0)
    return next(pair[1].infer(frame, Plan("df", params)))


def answer(pair: tuple[Serving, device_df.Df], query: Query) -> Any:
    served = server_df.create(pair[0])
    return served.forward([served.prepare(query, NOTHING)])[0].probabilities


def test_it_sends_the_patches_the_filter_finds(pair: tuple[Serving, device_df.Df]) -> None:
    query = asked(pair, r=0.25, codec="raw")
    frame = picture(pair[0].profile)
    chosen = patches.unpack(bytes(query.tensors["bitmap"].data), 16)
    assert chosen.tolist() == np.sort(np.argsort(-pair[1].find(frame))[:4]).tolist()
    sent = decode(query.tensors["patches"])
    np.testing.assert_array_equal(sent, patches.take(frame, chosen, 16))


def test_recovery_is_what_the_query_says(pair: tuple[Serving, device_df.Df]) -> None:
    recovered, alone = (
        answer(pair, asked(pair, codec="raw", recovery=how)) for how in ("mae", "none")
    )
    assert np.abs(recovered - alone).max() > 1e-4
    query = asked(pair, codec="raw", recovery="none")
    served = server_df.create(pair[0])
    work = served.prepare(query, NOTHING)
    pixels = torch.from_numpy(np.array(work.arrays["patches"]))[None].float() / 255
    places = torch.from_numpy(work.arrays["indices"])[None]
    with torch.inference_mode():
        expected = pair[0].classifier(pixels, places).logits.softmax(-1)[0].numpy()
    np.testing.assert_allclose(alone, expected, atol=1e-6)


@pytest.mark.parametrize("recovery", ["mae", "none"])
def test_all_patches_answer_as_the_raw_frame_does(
    pair: tuple[Serving, device_df.Df], recovery: str
) -> None:
    raw = server_raw.create(pair[0])
    whole = Query("raw", "whole", tensors={"frame": encode(picture(pair[0].profile))})
    (expected,) = raw.forward([raw.prepare(whole, NOTHING)])
    got = answer(pair, asked(pair, r=1.0, codec="raw", recovery=recovery))
    np.testing.assert_allclose(got, expected.probabilities, atol=1e-5)


@pytest.mark.parametrize("recovery", ["", "MAE", 1, None, ["mae"]])
def test_another_recovery_is_refused(pair: tuple[Serving, device_df.Df], recovery: Any) -> None:
    query = asked(pair)
    spoiled = Query("df", "area", params={"recovery": recovery}, tensors=query.tensors)
    with pytest.raises(Refused, match="recovery"):
        server_df.create(pair[0]).prepare(spoiled, NOTHING)
