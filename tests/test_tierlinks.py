"""The tiers' bench over links: three real processes, and whose answers and bytes are whose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import pair, tierlinks
from common.errors import OffboardError
from common.profile import Profile, load
from tests.profiles import picture, tiny

WAYS = {name: tierlinks.WAYS[name] for name in ("device alone", "edge alone", "cloud alone")}


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return load(tiny(tmp_path_factory.mktemp("tiers")))


@pytest.fixture(scope="module")
def pictures(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(5):
        Image.fromarray(np.asarray(picture(profile, seed))).save(folder / f"{seed}.png")
    return folder


def test_samples_of_a_table_keep_their_order(profile: Profile, tmp_path: Path) -> None:
    table = tmp_path / "some.tsv"
    table.write_text("sentence\tlabel\n" + "".join(f"words {i}\t{i % 4}\n" for i in range(8)))
    few = tierlinks.samples(profile, table, 4, tmp_path / "few")
    assert few.source.read_text().splitlines() == [
        "sentence\tlabel", "words 0\t0", "words 2\t2", "words 4\t0", "words 6\t2",
    ]  # fmt: skip
    assert few.truths == ("ant", "cat", "ant", "cat")
    assert len(tierlinks.samples(profile, table, None, tmp_path / "all").truths) == 8
    assert len(tierlinks.samples(profile, table, 99, tmp_path / "more").truths) == 8


def test_samples_of_a_folder_are_linked(profile: Profile, pictures: Path, tmp_path: Path) -> None:
    few = tierlinks.samples(profile, pictures, 2, tmp_path / "few")
    names = [path.name for path in pair.pictures(few.source)]
    assert sorted(names) == ["0.png", "2.png"]
    again = tierlinks.samples(profile, pictures, 2, tmp_path / "again")
    assert [path.name for path in pair.pictures(again.source)] == names
    assert few.truths == (None, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OffboardError, match="no samples below"):
        tierlinks.samples(profile, tmp_path / "empty", 2, tmp_path / "none")


def test_every_tier_answers_over_a_shaped_link(
    profile: Profile, pictures: Path, tmp_path: Path
) -> None:
    given = tierlinks.samples(profile, pictures, 3, tmp_path / "given")
    rows = list(tierlinks.measure(profile, given, "wifi", WAYS, ["dimee"]))
    assert [(row["strategy"], row["way"]) for row in rows] == [("dimee", way) for way in WAYS]
    near, far = tierlinks.LINKS["wifi"] or (None, None)
    assert near is not None
    assert far is not None
    for row in rows:
        device, edge, cloud = (row[f"{source}_share"] for source in tierlinks.SOURCES)
        assert (row["n"], row["unanswered"], row["degraded"]) == (3, 0, 0)
        assert row["link"] == "wifi"
        if row["way"] == "device alone":
            assert (device, edge, cloud) == (1, 0, 0)
            assert row["bytes_up"] == row["cloud_bytes_up"] == 0
        elif row["way"] == "edge alone":
            assert (device, edge, cloud) == (0, 1, 0)
            assert row["bytes_up"] > 0
            assert row["cloud_bytes_up"] == row["cloud_bytes_down"] == 0
            assert row["p50_ms"] >= near.rtt
        else:
            assert (device, edge, cloud) == (0, 0, 1)
            assert row["cloud_bytes_up"] > row["bytes_up"] > 0  # the name of who passed it on
            assert row["p50_ms"] >= near.rtt + far.rtt
            assert row["cloud_p50_ms"] == row["p50_ms"]
    shown = tierlinks.table(rows)
    assert shown.count("| way |") == 1
    assert "| cloud alone | - | 0% / 0% / 100% |" in shown
