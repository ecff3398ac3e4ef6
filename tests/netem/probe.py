"""What a link does to plain TCP: round trip of a few bytes, throughput of many.

python -m tests.netem.probe serve HOST:PORT
python -m tests.netem.probe ask HOST:PORT BYTES        prints {"rtt_ms": ..., "mbps": ...}
    python -m tests.netem.probe send HOST:PORT BYTES       says "ready", sends on a line of input,
                                                           prints {"seconds": ...}
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time

from bench.link import address

HEAD = struct.Struct("!I")
PINGS = 20
TRANSFERS = 8
TIMEOUT = 60.0


def serve(at: str) -> None:
    """Answer one byte to every length and as many bytes."""
    with socket.create_server(address(at)) as listener:
        print("listening", flush=True)
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=_answer, args=(peer,), daemon=True).start()


def _answer(peer: socket.socket) -> None:
    with peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.settimeout(TIMEOUT)
        while head := peer.recv(HEAD.size, socket.MSG_WAITALL):
            (left,) = HEAD.unpack(head)
            while left:
                left -= len(peer.recv(min(left, 1 << 16)))
            peer.sendall(b"!")


def ask(at: str, size: int) -> dict[str, float]:
    """Least round trip in milliseconds, best Mbps of a transfer of `size` bytes.

    The best, since a machine with other work can only make a link look slower.
    """
    with socket.create_connection(address(at), TIMEOUT) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rtt = min(_exchange(peer, 16) for _ in range(PINGS))
        # The first opens TCP's window.
        seconds = min(_exchange(peer, size) for _ in range(TRANSFERS)) - rtt
        return {"rtt_ms": rtt * 1000.0, "mbps": size * 8e-6 / seconds}


def send(at: str, size: int) -> None:
    """One transfer over a fresh connection, begun when told to."""
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    with socket.create_connection(address(at), TIMEOUT) as peer:
        _exchange(peer, size)
    print(json.dumps({"seconds": time.monotonic() - began}), flush=True)


def _exchange(peer: socket.socket, size: int) -> float:
    began = time.monotonic()
    peer.sendall(HEAD.pack(size) + bytes(size))
    if not peer.recv(1):
        raise ConnectionError("the other end has gone")
    return time.monotonic() - began


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    elif sys.argv[1] == "send":
        send(sys.argv[2], int(sys.argv[3]))
    else:
        print(json.dumps(ask(sys.argv[2], int(sys.argv[3]))))
