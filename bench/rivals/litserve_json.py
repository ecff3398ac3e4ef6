# mypy: ignore-errors
# (what it drives is an extra that need not be installed, and is not typed)
"""LitServe, a trivial model: JSON with the payload in base64, the least it takes."""

# No annotations as text here: LitServe reads them.
import asyncio
import base64
import contextlib
import socket
from typing import Any

import aiohttp
import litserve

from bench.rivals.harness import REPLY, Ask, AsyncDrive, ready, uvloop_loop

LABEL = "LitServe: JSON with base64, one worker, aiohttp client"


class Api(litserve.LitAPI):
    """Decodes what came and computes nothing."""

    def setup(self, device: str) -> None:
        """See litserve.LitAPI."""

    def decode_request(self, request: dict[str, Any]) -> bytes:
        """See litserve.LitAPI."""
        return base64.b64decode(request["payload"])

    def predict(self, payload: bytes) -> list[float]:
        """See litserve.LitAPI."""
        return [0.02] * (REPLY // 4)

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        """See litserve.LitAPI."""
        return {"probabilities": output}


def serve() -> None:
    """See the package."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    ready(port)
    server.run(
        host="127.0.0.1", port=port, generate_client_file=False, log_level="error",
        num_api_servers=1,
    )  # fmt: skip


async def _connect(port: int) -> Ask:
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    url = f"http://127.0.0.1:{port}/predict"
    for _ in range(600):  # its workers take a while to start
        with contextlib.suppress(aiohttp.ClientError):
            async with session.post(url, json={"payload": ""}) as response:
                if response.ok:
                    break
        await asyncio.sleep(0.2)

    async def ask(payload: bytes) -> None:
        text = base64.b64encode(payload).decode()
        async with session.post(url, json={"payload": text}) as response:
            await response.json()
            response.raise_for_status()

    return ask


def drive(port: int) -> AsyncDrive:
    """See the package."""
    return AsyncDrive(port, _connect, uvloop_loop(), shared=True)
