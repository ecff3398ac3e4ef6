"""The front door: accept, limit, drain. Authentication itself is the session's first act."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time

from common import channel
from common.channel import Channel
from common.errors import ConfigError, Refused
from common.protocol import Timing
from server.service import Service
from server.session import Session

log = logging.getLogger("offboard.listener")
SWEEP = 1.0
"""Seconds between looks for memories that expired."""


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT" or "[V6]:PORT". Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def show_address(host: str, port: int) -> str:
    """The opposite of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_exposure(host: str, *, token: str, insecure: bool) -> None:
    """Raises ConfigError if anybody on the network could use a server bound to `host`."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not (loopback or token or insecure):
        raise ConfigError(
            f"--listen {host}: other machines could use this server; set OFFBOARD_TOKEN or "
            "--token-file, or say --insecure"
        )


class Listener:
    """A service at an address. Made by `Listener.open`."""

    def __init__(self, service: Service, timing: Timing | None = None) -> None:
        self._service = service
        self._timing = timing or Timing()
        self._sweeper: asyncio.TimerHandle | None = None
        self._listener: channel.Listener

    @classmethod
    async def open(
        cls,
        service: Service,
        host: str,
        port: int,
        *,
        timing: Timing | None = None,
    ) -> Listener:
        """Listen on `host`:`port` (0: any free port). Raises ConfigError if that cannot be."""
        self = cls(service, timing)
        try:
            self._listener = await channel.serve(
                host, port, self._attach, limits=service.wire, timing=self._timing
            )
        except OSError as error:
            where = show_address(host, port)
            raise ConfigError(
                f"--listen {where}: {error.strerror or error}; if another server has that port, "
                "choose another (0: any free one)"
            ) from None
        self._sweep()
        return self

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._listener.port

    async def close(self, reason: str, grace: float) -> None:
        """Stop accepting, let every device have what it waits for, close; `grace` seconds."""
        self._service.draining = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._listener.close(reason, grace)

    def _attach(self, channel: Channel) -> Session:
        """A session for a new connection. Raises Refused, which the peer is told."""
        service = self._service
        if len(service.strangers) >= service.limits.strangers:
            raise Refused("busy", "too many connections have not authenticated yet")
        if len(service.sessions) >= service.limits.sessions:
            raise Refused("busy", f"{len(service.sessions)} devices are connected already")
        session = Session(service, channel)
        service.strangers.add(session)
        return session

    def _sweep(self) -> None:
        now = time.monotonic()
        for session in self._service.sessions:
            session.memory.expire(now)
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP, self._sweep)
