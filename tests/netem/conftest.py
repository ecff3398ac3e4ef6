"""The ground, one server for all cases, and the tables at the end."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common import profile, registry
from profiles.train import signs
from tests.netem import ground, net, world

PROFILE = "signs"
COUNT = 32
"""Frames: as many as the longest case sends, since a sample of patches depends on the number."""
TABLES: defaultdict[str, list[str]] = defaultdict(list)
"""Lines to print when all is over, by title."""
HEADS: dict[str, str] = {}
"""The first line of a table that has one, by title."""
OFFERED = tuple(
    name
    for name in registry.names("device.strategies")
    if name in profile.load(PROFILE).manifest.strategies
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "strategy" in metafunc.fixturenames:
        metafunc.parametrize("strategy", OFFERED)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for title, lines in TABLES.items():
        terminalreporter.section(title)
        for line in [HEADS[title], *lines] if title in HEADS else lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def here() -> Iterator[world.World]:
    """A server behind a link, and the frames to send it."""
    if (trouble := ground.native()) is not None:
        pytest.skip(f"{trouble}; {ground.user_mode() or 'use ./run netem'}")
    with tempfile.TemporaryDirectory(prefix="offboard-netem-") as text, net.joined() as joined:
        own = Path(text)
        first = signs.EVALUATION.start
        frames = signs.write(own / "frames", range(first, first + COUNT))
        found = world.World(joined, frames, own / "cache", own / "device.log")
        with world.server(joined, PROFILE, own / "server.log"):
            try:
                yield found
            finally:
                for log in (own / "server.log", own / "device.log"):
                    if "Traceback" in (said := log.read_text()):
                        TABLES[f"a traceback in {log.name}"] = said.splitlines()[-60:]


@pytest.fixture(scope="session")
def open_link(here: world.World) -> dict[str, list[dict[str, Any]]]:
    """What each strategy answers to every frame over a link that is not shaped."""
    here.net.shape(None)
    return {name: here.stored(name, COUNT, deadline_ms=60_000) for name in OFFERED}
