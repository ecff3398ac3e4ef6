"""Drives the rate of this end's tbf by a trace: `python -m tests.netem.follow FILE SECONDS`.

Runs inside the device's namespace. Prints "following" when the trace begins.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from bench.traces import STEP, load
from tests.netem.net import HOSTS, TBF

OUTAGE = "8bit"
"""tbf knows no rate of zero. At one byte a second nothing passes before the next step."""


def main(file: str, seconds: float) -> None:
    """Follow the trace in `file` for `seconds`, then stay at its last rate."""
    trace = load(Path(file))
    kick = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tc = subprocess.Popen(["tc", "-batch", "-"], stdin=subprocess.PIPE, text=True)
    assert tc.stdin is not None
    began = time.monotonic()
    last = -1.0
    print("following", flush=True)
    for step in range(int(seconds / STEP)):
        time.sleep(max(0.0, began + step * STEP - time.monotonic()))
        mbps = trace.at((step + 0.5) * STEP)
        if mbps == last:
            continue
        last = mbps
        rate = f"{mbps}mbit" if mbps else OUTAGE
        words = ("qdisc change dev veth", *TBF, "rate", rate)
        tc.stdin.write(" ".join(words) + "\n")
        tc.stdin.flush()
        # tbf looks at its new rate when a packet comes or its old timer is over, which after an
        # outage is hours away: so let one come.
        time.sleep(0.005)
        kick.sendto(b"", (HOSTS["server"], 9))
    tc.stdin.close()
    tc.wait(5)
    kick.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
