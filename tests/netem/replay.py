"""Measured traces through `tc` and through `bench.link`: `python -m tests.netem.replay FILE...`.

Prints how long plain TCP takes over each for as many bytes as the trace lets through in 12 s. Here
if this kernel can shape links, else in user-mode Linux.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.link import HEADERS, SEGMENT
from bench.traces import Trace, load
from tests.netem import ground, guest, net
from tests.netem.userspace import PROBE, replayed
from tests.netem.world import World, spawned

SECONDS = 12.0
ROOT = Path(__file__).parents[2]


def size(trace: Trace) -> int:
    """Bytes of the stream that have left after SECONDS of `trace`, packets whole."""
    packets = 0
    left = 0.0
    while (left := trace.finish(left, (SEGMENT + HEADERS) * 8.0)) < SECONDS:
        packets += 1
    return packets * SEGMENT


def main(files: list[str]) -> int:
    """Replay each; 2 where no link can be shaped."""
    if (why_not := ground.native()) is not None:
        if (lacking := ground.user_mode()) is not None:
            print(f"replay: here: {why_not}; user-mode Linux: {lacking}", file=sys.stderr)
            return 2
        words = [sys.executable, "-m", "tests.netem.replay", *files]
        return guest.run(words, ROOT, 120.0 * len(files), sys.stdout)
    with tempfile.TemporaryDirectory() as own, net.joined() as joined:
        here = World(joined, [], Path(own) / "cache", Path(own) / "log")
        command = joined.command(
            "server", [sys.executable, "-m", "tests.netem.probe", "serve", PROBE]
        )
        with spawned(command, here.log, "listening"):
            for path in map(Path, files):
                due, netem, ours = replayed(here, path, size(load(path)), 5 * SECONDS)
                print(
                    f"{path.stem}: {due:.2f} s by the trace, {netem:.2f} by tc "
                    f"({netem / due - 1:+.0%}), {ours:.2f} by bench.link ({ours / due - 1:+.0%})",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
