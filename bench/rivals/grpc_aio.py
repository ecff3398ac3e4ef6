# mypy: ignore-errors
# (what it drives is an extra that need not be installed, and is not typed)
"""gRPC, asyncio: a generic unary call of bytes, so no protobuf is parsed."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from bench.rivals.harness import REPLY, Ask, AsyncDrive, ready, uvloop_loop

LABEL = "gRPC aio: bytes in, bytes out, a connection each, no size limit, uvloop"

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class _Handler(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self.answer)

    async def answer(self, request: bytes, context: Any) -> bytes:
        return bytes(REPLY)


async def _serve() -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready(port)
    await server.wait_for_termination()


def serve() -> None:
    """See the package."""
    uvloop_loop().run_until_complete(_serve())


async def _connect(port: int) -> Ask:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
    call: Ask = channel.unary_unary("/bench/ask")
    return call


def drive(port: int) -> AsyncDrive:
    """See the package."""
    return AsyncDrive(port, _connect, uvloop_loop())
