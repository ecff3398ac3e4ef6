"""Running the device in tests: the program as a process, the library against a clock."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from device.source import Shot, Source
from tests.device_stub import Stub, shade

ROOT = Path(__file__).resolve().parent.parent


async def start(*arguments: str, **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "device"),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        **options,
    )


async def ended(process: asyncio.subprocess.Process, data: bytes = b"") -> tuple[int, str, str]:
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate(data)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def program(stub: Stub, *arguments: str, data: bytes = b"") -> tuple[int, str, str]:
    """Run the program against `stub`: its status and what it printed."""

    async def main() -> tuple[int, str, str]:
        async with stub:
            return await ended(await start("--server", stub.address, *arguments), data)

    return asyncio.run(main())


def offline(*arguments: str) -> tuple[int, str, str]:
    async def main() -> tuple[int, str, str]:
        return await ended(await start(*arguments))

    return asyncio.run(main())


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(bounded())


def slowly(labels: list[int], gap: float, live: bool = False) -> Source:
    def shots() -> Iterator[Shot]:
        for index, label in enumerate(labels):
            yield Shot(index, str(index), shade(label), time.monotonic() if live else None)
            time.sleep(gap)

    return Source(shots, live=live)
