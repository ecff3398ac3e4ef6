"""Offboard on plain asyncio: the same code where uvloop is not installed."""

from __future__ import annotations

import asyncio

from bench.rivals.offboard import CallbackDrive, serve_on

LABEL = "offboard, plain asyncio, callbacks"


def serve() -> None:
    """See the package."""
    serve_on(asyncio.new_event_loop())


def drive(port: int) -> CallbackDrive:
    """See the package."""
    return CallbackDrive(port, asyncio.new_event_loop())
