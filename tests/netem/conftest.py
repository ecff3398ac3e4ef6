"""The ground, one server for all cases, and the tables at the end."""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from profiles.train import signs
from tests.netem import ground, net, world
from tests.served import OFFERED, PROFILES, SERVED

ALONE = {"dimec": "route=mobile", "dimee": "route=mobile"}
"""Strategies that have an answer of their own where no server is, beside the local model's, and how
to get it."""
Rows = list[dict[str, Any]]
Reference = dict[str, Rows]
Alone = dict[str, Reference]
COUNT = 32
"""Frames: as many as the longest case sends, since a sample of patches depends on the number."""
USUAL = 14
"""Frames of a case over a link that does not change."""
DEADLINE = 8000.0
TABLES: defaultdict[str, list[str]] = defaultdict(list)
"""Lines to print when all is over, by title."""
HEADS: dict[str, str] = {}
"""The first line of a table that has one, by title."""


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
    """Servers behind a link, and the frames to send them."""
    if (trouble := ground.native()) is not None:
        pytest.skip(f"{trouble}; {ground.user_mode() or 'use ./run netem'}")
    with tempfile.TemporaryDirectory(prefix="offboard-netem-") as text, net.joined() as joined:
        own = Path(text)
        first = signs.EVALUATION.start
        frames = signs.write(own / "frames", range(first, first + COUNT))
        logs = [own / "device.log", *(own / f"{name}.log" for name in PROFILES)]
        with contextlib.ExitStack() as stack:
            at = {
                name: stack.enter_context(world.server(joined, name, world.PORT + index, log))
                for index, (name, log) in enumerate(zip(PROFILES, logs[1:], strict=True))
            }
            servers = {strategy: at[name] for strategy, name in SERVED.items()}
            try:
                yield world.World(joined, frames, own / "cache", logs[0], servers)
            finally:
                for log in logs:
                    if "Traceback" in (said := log.read_text()):
                        TABLES[f"a traceback in {log.name}"] = said.splitlines()[-60:]


@pytest.fixture(scope="session")
def open_link(here: world.World) -> Reference:
    """What each strategy answers to every frame over a link that is not shaped."""
    here.net.shape(None)
    return {name: here.stored(name, COUNT, deadline_ms=60_000) for name in OFFERED}


@pytest.fixture(scope="session")
def alone(here: world.World, open_link: Reference) -> Alone:
    """What the device of each strategy answers to every frame where no server does."""
    here.net.shape(None)
    local = {
        server: here.stored("local", COUNT, deadline_ms=60_000, server=server)
        for server in dict.fromkeys(here.servers.values())
    }
    found = {name: {"local": local[here.servers[name]]} for name in OFFERED}
    for name, setting in ALONE.items():
        found[name][name] = here.stored(name, COUNT, "--set", setting, deadline_ms=60_000)
    return found
