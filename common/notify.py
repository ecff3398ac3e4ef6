"""Says to systemd "ready", "stopping" and "alive" (sd_notify). Does nothing anywhere else.

    notify("READY=1")                      # once warmed up: whoever waits for this unit goes on
    task = create_task(watch(healthy))     # feeds WatchdogSec= while the loop runs and healthy()
    notify("STOPPING=1")                   # draining

See sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send `state` to the service manager; False where there is none that listens."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), address)
    except OSError:
        return False  # the manager went away: no reason for the service to go, too
    return True


def interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two signs of life: a quarter of WatchdogSec=. None if nobody watches."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for our parent
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 4e6 if text.isdecimal() and int(text) > 0 else None


async def watch(healthy: Callable[[], bool], environ: Mapping[str, str] = os.environ) -> None:
    """Feed the watchdog until cancelled, but not while `healthy()` is false.

    Runs on the event loop on purpose: a loop that hangs feeds nothing.
    """
    every = interval(environ)
    while every is not None:
        if healthy():
            notify("WATCHDOG=1", environ)
        await asyncio.sleep(every)
