"""The device program: settings, one stream, exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import journal, registry
from common.errors import ConfigError, OffboardError
from common.notify import notify, watch
from common.settings import load, setting
from device.connect import PATIENCE, Offboard, offboard_connect
from device.output import Printer, Summary
from device.planner import STRATEGIES
from device.source import Source, open_source

PROG = "offboard-device"
IN_FLIGHT, IN_FLIGHT_LIVE = 4, 2
LEVELS = ("debug", "info", "warning", "error")
INTERRUPTED = 130
COMPLETE = 3.0
"""Seconds that the rest of the bundle may still take when the stream has ended."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the device program can be told."""

    server: str = setting("where the server listens", required=True, metavar="HOST:PORT")
    source: str = setting(
        "pictures or wav sounds: a folder, a file, a quoted pattern; of pictures also a video, "
        "camera:N, or - for JPEG or PNG pictures one after another on standard input; sentences, "
        "one a line: a .txt or .tsv file, or - for standard input; clips: clips:DIR",
        required=True,
        metavar="SOURCE",
    )
    profile: str | None = setting(
        "the profile that the server must serve (default: any)", default=None, metavar="NAME"
    )
    strategy: str | None = setting(
        f"one of {', '.join(registry.names(STRATEGIES))} (default: the profile's)", default=None
    )
    set: str = setting(
        "the strategy's parameters, such as r1=0.2,quality=60; may be repeated",
        default="",
        metavar="KEY=VALUE",
    )
    budget: str = setting(
        "mean cost of a frame by A-MOT: 40% of its patches, 3kB, or auto: what the link carries "
        "before the deadline",
        default="",
        metavar="SHARE|BYTES|auto",
    )
    deadline: float = setting("milliseconds a frame may take; 0: no deadline", default=0.0)
    patience: float = setting(
        "seconds to wait for a server where nothing else can answer", default=PATIENCE
    )
    in_flight: int = setting(
        f"frames under way at once; 0: {IN_FLIGHT}, or {IN_FLIGHT_LIVE} for a live source",
        default=0,
    )
    live: bool = setting(
        "keep only the newest picture, as for a camera: for a camera's stream on standard input",
        default=False,
    )
    json: bool = setting("print one JSON object per line", default=False)
    cache: str = setting("directory for what the server hands out", default="", metavar="DIR")
    token: str = setting("shared secret", default="", flag=False)
    token_file: str = setting("file that holds the shared secret", default="", metavar="FILE")
    log: str = setting("least severity logged to standard error", default="info", choices=LEVELS)


def run(argv: Sequence[str] | None = None) -> int:
    """The whole program. 0: every frame has a label; 1: some have none; 2: wrong arguments."""
    try:
        settings = load(
            Settings,
            _joined(sys.argv[1:] if argv is None else argv),
            prog=PROG,
            table="device",
            description="Answer what is in pictures, sounds or sentences, with an Offboard server.",
        )
        journal.configure(settings.log, f"%(asctime)s {PROG} %(levelname)s %(message)s")
        offboard, source = _prepared(settings)
        return _run(_stream(settings, offboard, source))
    except OffboardError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the answers has enough of them; the interpreter must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _prepared(settings: Settings) -> tuple[Offboard, Source]:
    """Everything that can be checked without a server. Raises ConfigError."""
    if not settings.patience >= 0:
        raise ConfigError("--patience: give seconds, zero or more")
    if settings.in_flight < 0:
        raise ConfigError("--in-flight: give a number of frames, zero or more")
    params = parameters(settings.set)
    if settings.budget:
        params["budget"] = settings.budget
    source = open_source(settings.source)
    if settings.live:
        source = Source(source.shots, source.length, live=True)
    offboard = offboard_connect(
        settings.server,
        strategy=settings.strategy,
        params=params,
        deadline_ms=settings.deadline or None,
        profile=settings.profile,
        token=_token(settings),
        cache=Path(settings.cache) if settings.cache else None,
        patience=settings.patience,
    )
    return offboard, source


def parameters(text: str) -> dict[str, str]:
    """KEY=VALUE pairs, separated by commas. Raises ConfigError."""
    found = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not re.fullmatch(r"\w+", name):
            raise ConfigError(f"--set {part!r}: give KEY=VALUE, such as quality=60")
        found[name] = value
    return found


def _joined(argv: Sequence[str]) -> list[str]:
    """Every --set together, since a setting has one value."""
    rest: list[str] = []
    given: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--set":
            given.append(next(words, ""))
        elif word.startswith("--set="):
            given.append(word.removeprefix("--set="))
        else:
            rest.append(word)
    return [*rest, "--set", ",".join(given)] if given else rest


def _token(settings: Settings) -> str:
    if not settings.token_file:
        return settings.token
    try:
        return Path(settings.token_file).read_text().strip()
    except OSError as error:
        raise ConfigError(f"--token-file {settings.token_file}: {error.strerror}") from None


def _run(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


async def _stream(settings: Settings, offboard: Offboard, source: Source) -> int:
    """Answer the whole source, or until a signal; print as it goes."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    signals: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        signals.append(number)
        notify("STOPPING=1")
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    in_flight = settings.in_flight or (IN_FLIGHT_LIVE if source.live else IN_FLIGHT)
    summary = Summary()
    printer = Printer(as_json=settings.json, total=source.length)
    for handler in logging.getLogger().handlers:
        handler.addFilter(printer.make_room)
    watching = asyncio.create_task(watch(lambda: True))
    try:
        async with offboard, aclosing(offboard.stream(source, in_flight)) as answers:
            notify("READY=1")
            async for answer in answers:
                summary.add(answer)
                printer.answer(answer, summary.frames)
            await offboard.complete(COMPLETE)
    except asyncio.CancelledError:
        if not signals:
            raise
    finally:
        watching.cancel()
    printer.summary(summary, offboard.dropped)
    if signals and signals[0] == signal.SIGINT:
        return INTERRUPTED
    if not summary.frames and not signals:
        raise ConfigError(f"--source {settings.source!r} gave no picture, sound or sentence")
    return 1 if summary.unanswered else 0
