"""`bench deepcod`: what it runs, what it chooses, and the page it writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench import deepcod, pair, points, points_page
from bench.points import METHODS, Config
from common.errors import OffboardError
from common.profile import Profile, load
from profiles.train.photos import IMAGENETTE
from tests.profiles import picture, tiny


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return load(tiny(tmp_path))


def config(rate: int, expected: float | None, method: str = "WebP") -> Config:
    return Config(method, method.lower(), "input", rate, "offload", {}, expected)


def row(method: str, point: str, **changes: Any) -> pair.Row:
    return {
        "method": method, "point": point, "coding": method.lower(), "rate": 1, "link": "loopback",
        "config": f"{point} {method} 1", "n": 100, "accuracy": 0.8, "expected": 0.8,
        "bytes_up": 1000.0, "device_ms": 1.0, "server_ms": 10.0, "chosen": True, "fit": True,
        "p50_ms": 12.0, "p95_ms": 20.0,
    } | changes  # fmt: skip


def test_every_method_is_run_at_every_point_that_has_it(profile: Profile) -> None:
    made = points.configurations(profile.manifest)
    assert len({each.name for each in made}) == len(made)
    assert {each.method for each in made} == set(METHODS) - {"On-Device"}
    at = {(each.method, each.point) for each in made}
    assert ("DeepCOD", "block-1") in at
    assert ("Offload-AE+", "block-1") not in at
    assert ("WebP", "block-1") not in at
    quick = points.configurations(profile.manifest, quick=True)
    assert len(quick) == len({(each.method, each.point) for each in quick}) == len(at)


def test_what_a_codec_loses_counts_on_whichever_frames(profile: Profile) -> None:
    offload = dict(profile.manifest.params("offload")) | {"whole": 0.7}
    codec = {"npz": "a.npz", "bytes": 50.0, "accuracy": 0.6, "whole": 0.9}
    points_ = [{"name": "input", "rates": [codec]}]
    strategies = {"offload": offload, "deepcod": {"points": points_}}
    manifest = replace(profile.manifest, strategies=strategies)
    first = points.configurations(manifest)[0]
    assert first.method == "DeepCOD"
    assert first.expected == pytest.approx(0.4)


def test_the_cheapest_setting_that_loses_a_point_at_most_is_chosen() -> None:
    found = [config(1, 0.70), config(2, 0.791), config(3, 0.80)]
    size = {each.name: 100.0 * each.rate for each in found}
    assert points.chosen(found, 0.80, size) is found[1]
    assert points.chosen(found, 0.90, size) is found[2]
    assert points.chosen([], 0.8, size) is None


def test_latency_is_compute_and_what_the_link_takes() -> None:
    each = row("WebP", "input")
    assert points.latency_ms(each, 8.0) == pytest.approx(1 + 10 + 1 + points.RTT)
    assert points.latency_ms(each, 8.0, device=3.0, server=0.5) == pytest.approx(
        3 + 5 + 1 + points.RTT
    )
    assert points.latency_ms(each | {"bytes_up": 0.0}, 8.0) == 11.0


def test_every_method_may_move_its_point() -> None:
    near = row("DeepCOD", "input", bytes_up=4000.0, device_ms=1.0)
    deep = row("DeepCOD", "block-4", bytes_up=100.0, device_ms=9.0)
    wrong = row("DeepCOD", "block-3", bytes_up=1.0, fit=False)
    unchosen = row("DeepCOD", "block-2", bytes_up=1.0, chosen=False)
    rows = [near, deep, wrong, unchosen]
    assert points.fastest(rows, "DeepCOD", 1.0) is deep
    assert points.fastest(rows, "DeepCOD", 450.0) is near
    assert points.fastest(rows, "WebP", 450.0) is None


def rows_of(profile: Profile) -> list[pair.Row]:
    made = [
        row(c.method, c.point, coding=c.coding, rate=c.rate, config=c.name, bytes_up=900.0 + i)
        for i, c in enumerate(points.configurations(profile.manifest))
    ]
    shaped = row("DeepCOD", "auto", link="4G", n=40, config="auto deepcod 1")
    cost = {"method": "encoding", "point": "input", "rate": 1, "link": "none", "device_ms": 0.3,
            "jpeg_ms": 0.2, "ratio": 1.5, "pillow_ms": 0.3, "pillow_ratio": 1.0}  # fmt: skip
    return [*made, shaped, cost]


def test_the_page_has_every_table_and_keeps_what_is_around(
    profile: Profile, tmp_path: Path
) -> None:
    page = tmp_path / "deepcod-bench.md"
    page.write_text("# Before\n\n<!-- tiny -->\nold\n<!-- /tiny -->\n\nAfter\n")
    points_page.write(rows_of(profile), profile.manifest, tmp_path)
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("<!-- /tiny -->\n\nAfter\n")
    assert "old" not in text
    assert "| input | DeepCOD | deepcod 1 | 900 | 1.83% | 0.02 ms |" not in text
    assert "| block-1 | Offload-Intp | intp 1 |" in text
    assert "| DeepCOD | auto deepcod 1 | 4G | 40 |" in text
    assert "| input | 1 | 0.30 ms | 0.20 ms | 1.50 |" in text
    for suffix in points_page.PLOTS:
        assert (tmp_path / f"deepcod-tiny{suffix}.svg").read_text().startswith("<?xml")


def test_shares_are_of_raw_floats(profile: Profile) -> None:
    assert points_page.raw_bytes(profile.manifest, "input") == 64 * 64 * 3 * 4
    assert points_page.raw_bytes(profile.manifest, "block-1") == 4 * 8 * 8 * 4


def test_equal_accuracy_takes_the_fewest_bytes() -> None:
    rows = [
        row("Offload", "input", coding="lossless", accuracy=0.80, bytes_up=90_000.0, n=1000),
        row("WebP", "input", accuracy=0.79, bytes_up=2000.0, n=1000),
        row("WebP", "input", accuracy=0.80, bytes_up=5000.0, n=1000),
    ]
    table = points_page.equal_accuracy(rows)
    webp = next(line for line in table.splitlines() if line.startswith("| WebP"))
    assert webp.split("|")[2:4] == [" 5,000 (input WebP 1) ", " 2,000 (input WebP 1) "]


def test_a_page_without_its_lines_is_refused(profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(OffboardError, match="<!-- tiny -->"):
        points_page.write(rows_of(profile), profile.manifest, tmp_path)


def test_it_measures_every_row_once(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "val" / next(iter(IMAGENETTE))
    folder.mkdir(parents=True)
    for seed in range(3):
        Image.fromarray(picture(profile, seed)).save(folder / f"{seed}.png")
    asked: list[tuple[str, str, dict[str, Any]]] = []

    @contextlib.contextmanager
    def server(name: str) -> Iterator[str]:
        yield "127.0.0.1:1"

    def stream(address: str, source: Path, strategy: str, settings: Any) -> list[pair.Row]:
        asked.append((address, strategy, dict(settings)))
        one = {"label": "tench", "bytes_up": 100, "bytes_down": 10, "rounds": 1, "latency_ms": 5.0,
               "device_ms": 1.0, "server_ms": 2.0, "deadline_met": True, "error": None,
               "degraded": "server refused" if "broken" in address else None}  # fmt: skip
        return [one] * len(pair.pictures(source))

    monkeypatch.setattr(pair, "server", server)
    monkeypatch.setattr(pair, "stream", stream)
    rows: list[pair.Row] = []
    configs = points.configurations(profile.manifest, quick=True)
    deepcod.measure(profile, tmp_path / "val", configs, rows, tmp_path / "rows.json")
    looped = [each for each in rows if each["link"] == "loopback"]
    assert [each["config"] for each in looped] == [each.name for each in configs]
    assert {each["link"] for each in rows} == {"loopback", *deepcod.LINKS}
    assert all(each["accuracy"] == 1.0 and set(pair.COLUMNS) <= set(each) for each in rows)
    before = len(asked)
    deepcod.measure(profile, tmp_path / "val", configs, rows, None)
    assert len(asked) == before
    with pytest.raises(OffboardError, match="server refused"):
        deepcod.run("broken", tmp_path / "val", configs[0], ["tench"] * 3)
    costs = deepcod.encoding(profile, pair.pictures(tmp_path / "val"), rounds=1)
    assert [(cost["point"], cost["rate"]) for cost in costs] == [
        ("input", 1), ("input", 2), ("block-1", 1)
    ]  # fmt: skip
    assert all(cost["ratio"] > 0 and cost["pillow_ratio"] > 0 for cost in costs)


def test_sounds_are_told_by_their_names(tmp_path: Path) -> None:
    for name in ("3_jackson_0.wav", "7_theo_4.wav", "7_theo_5.wav", "noise.wav"):
        (tmp_path / name).touch()
    profile = load("digits")
    (tmp_path / "out").mkdir()
    folder = deepcod.test_set(tmp_path, profile, tmp_path / "out")
    files, truths = deepcod.frames_of(folder, profile)
    assert [path.name for path in files] == ["3_jackson_0.wav", "7_theo_4.wav"]
    assert truths == ["three", "seven"]
    (tmp_path / "few").mkdir()
    few = deepcod.subset(folder, profile, 1, tmp_path / "few")
    assert [path.name for path in few.iterdir()] == ["3_jackson_0.wav"]
