# mypy: ignore-errors
# (what it drives is an extra that need not be installed, and is not typed)
"""Ray Serve, a trivial model: one replica behind its HTTP proxy, the body taken as bytes."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Any

from bench.rivals.harness import REPLY, AsyncDrive, ready, uvloop_loop
from bench.rivals.http import connect_http

LABEL = "Ray Serve: one replica, HTTP proxy, bytes in, bytes out, aiohttp client"


def serve() -> None:
    """See the package."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve as rayserve
    from starlette.requests import Request
    from starlette.responses import Response

    @rayserve.deployment(max_ongoing_requests=64)
    class Model:
        async def __call__(self, request: Request) -> Any:
            await request.body()
            return Response(bytes(REPLY))

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    rayserve.start(http_options={"host": "127.0.0.1", "port": port})
    rayserve.run(Model.bind(), route_prefix="/ask")
    ready(port)
    while True:
        time.sleep(60)


def drive(port: int) -> AsyncDrive:
    """See the package."""
    return AsyncDrive(port, connect_http, uvloop_loop(), shared=True)
