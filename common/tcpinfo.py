"""What the kernel knows of a TCP connection: Linux's struct tcp_info. Pure."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

OPTION: Final[int | None] = getattr(socket, "TCP_INFO", None)
"""For getsockopt; None where the kernel does not tell."""
SIZE: Final = 152
_FIELDS: Final = struct.Struct("=2xB21xI120xI")
"""tcpi_retransmits, tcpi_unacked and tcpi_min_rtt."""
_NEVER: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """`repeats`: how often in a row what was sent had to be sent again, nothing coming back.

    `unacked`: segments under way. `rtt`: seconds of the shortest round trip of the last minutes,
    as the kernel saw it; None where it has not.
    """

    repeats: int
    unacked: int
    rtt: float | None


def parse(data: bytes) -> TcpInfo | None:
    """What getsockopt(IPPROTO_TCP, OPTION, SIZE) returned; None from a kernel older than 4.6."""
    if len(data) < SIZE:
        return None
    repeats, unacked, micros = _FIELDS.unpack_from(data)
    return TcpInfo(repeats, unacked, None if micros in (0, _NEVER) else micros / 1e6)
