"""sd_notify: what goes over the socket, and when the watchdog is not fed."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.notify import interval, notify, watch


class Manager:
    """Stands in for systemd: a datagram socket and the environment that names it."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.environ = {"NOTIFY_SOCKET": name}

    def heard(self) -> list[str]:
        said = []
        with contextlib.suppress(BlockingIOError):
            while True:
                said.append(self._socket.recv(4096).decode())
        return said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify")
    made = Manager(name if request.param == "path" else f"@offboard-{os.getpid()}")
    yield made
    made.close()


def test_the_manager_hears_what_is_said(manager: Manager) -> None:
    assert notify("READY=1", manager.environ)
    assert notify("STOPPING=1", manager.environ)
    assert manager.heard() == ["READY=1", "STOPPING=1"]


def test_without_a_manager_nothing_is_said(tmp_path: Path) -> None:
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": ""})
    assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "20000000"}, 5.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_signs_of_life_come_four_times_as_often_as_needed(
    environ: dict[str, str], expected: float | None
) -> None:
    assert interval(environ) == expected


def test_the_watchdog_is_fed_only_while_healthy(manager: Manager) -> None:
    healthy = [True, False, False, True]
    environ = {**manager.environ, "WATCHDOG_USEC": "4000"}
    heard = []

    async def run() -> None:
        def ask() -> bool:
            heard.append(manager.heard())
            if not healthy:
                raise asyncio.CancelledError
            return healthy.pop(0)

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(watch(ask, environ), 5)

    asyncio.run(run())
    assert heard == [[], ["WATCHDOG=1"], [], [], ["WATCHDOG=1"]]


def test_nobody_watches_nothing_to_feed() -> None:
    asyncio.run(asyncio.wait_for(watch(lambda: pytest.fail("asked"), {}), 5))
