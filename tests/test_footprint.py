"""The footprint bench runs, and the device is a fraction of what imports torch."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench import footprint
from common import profile as profiles
from tests.profiles import tiny


def test_the_device_stays_small(tmp_path: Path) -> None:
    rows = asyncio.run(footprint.measure(profiles.load(tiny(tmp_path)), 1, {"torch": "torch"}))
    by_config = {row["config"]: row for row in rows}
    assert by_config["device, amot"]["ratio"] == 1.0
    assert by_config["torch"]["ratio"] > 3.0
    assert by_config["device, local"]["rss_mib"] > by_config["device, raw"]["rss_mib"]
    for row in rows:
        assert row["bench"] == "footprint"
        assert not any(isinstance(value, list | dict) for value in row.values())
    for strategy in ("amot", "jpeg", "raw"):
        row = by_config[f"device, {strategy}"]
        assert row["rss_mib"] < 60
        assert row["start_ms"] < by_config["torch"]["start_ms"]
