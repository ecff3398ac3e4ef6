"""What the device process weighs: resident memory and import time, beside what others import.

    python -m bench.footprint [--quick] [--profile NAME|DIR] [--json FILE]

The device rows are the real program, measured after it has streamed frames to a small stand-in
server in this process; the others import one library, which is the least that a device built on
it must do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common import profile as profiles
from common.channel import Channel, serve
from common.codec import encode
from common.errors import OffboardError
from common.messages import Chunk, Fetch, Hello, Message, Query, Refusal, Result, Welcome
from common.profile import Profile

Row = dict[str, Any]
FRAMES = 40
CHUNK = 1 << 16
LIBRARIES = {
    "python alone": "sys",
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "grpc.aio": "grpc.aio",
    "torch": "torch",
}
_REPORT = """
import json, resource
pages = int(open("/proc/self/statm").read().split()[1])
json.dump({
    "rss_mib": pages * resource.getpagesize() / 2**20,
    "import_ms": import_ms,
    "ready": ready,
}, open(out, "w"))
"""
_LIBRARY = """
import sys, time
out, started = sys.argv[1], time.perf_counter()
import {module}
import_ms, ready = (time.perf_counter() - started) * 1000, time.monotonic()
"""
_DEVICE = """
import os, sys, time
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as device.device does
out, started = sys.argv[1], time.perf_counter()
import device.cli
import_ms, ready = (time.perf_counter() - started) * 1000, time.monotonic()
status = device.cli.run(sys.argv[2:])
if status:
    sys.exit(status)
"""


@dataclass(slots=True)
class StandIn:
    """A server that answers every query with equal probabilities and hands out a profile."""

    profile: Profile

    def on_message(self, channel: Channel, message: Message) -> None:
        """Answer; runs on the loop."""
        manifest = self.profile.manifest
        match message:
            case Hello():
                channel.accept(
                    Welcome(
                        version=channel.version,
                        agent="bench",
                        profile=manifest.name,
                        digest=manifest.digest,
                        strategies=tuple(manifest.strategies),
                        packet_limit=1 << 24,
                        credits=8,
                    )
                )
            case Query():
                count = len(manifest.classes)
                probabilities = encode(np.full(count, 1 / count, dtype=np.float32))
                result = Result("edge", {"probabilities": probabilities})
                channel.send(replace(result, id=message.id))
            case Fetch():
                try:
                    data = self.profile.read(message.path) if message.path else manifest.to_bytes()
                except OffboardError as error:
                    channel.send(Refusal("unknown", str(error), retryable=False, id=message.id))
                else:
                    channel.stream(message.id, _chunks(data, message))

    def on_closed(self, channel: Channel, reason: str) -> None:
        """Nothing is kept."""


def _chunks(data: bytes, fetch: Fetch) -> Iterator[Chunk]:
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    for offset in range(fetch.offset, max(len(data), 1), CHUNK):
        piece = np.frombuffer(data[offset : offset + CHUNK], dtype=np.uint8)
        yield Chunk(offset, len(data), digest, {"data": encode(piece)}, id=fetch.id)


def frames(directory: Path, profile: Profile, count: int) -> None:
    """Write `count` JPEGs of the profile's input size."""
    shape = profile.manifest.input
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = random.integers(0, 256, (shape.height // 8, shape.width // 8, 3), dtype=np.uint8)
        pixels = np.kron(coarse, np.ones((8, 8, 1), dtype=np.uint8))
        data = encode(pixels, "jpeg", quality=90).data
        (directory / f"{index:03}.jpg").write_bytes(bytes(data))


async def _measure(code: str, *arguments: str) -> Row:
    """Run `code` in a fresh interpreter; what it reports, and when it was ready (ms)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code + _REPORT, str(out), *arguments),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(120):
                _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise OffboardError(f"a measured process failed:\n{errors.decode()[-2000:]}")
        report: Row = json.loads(out.read_text())
    report["start_ms"] = (report.pop("ready") - started) * 1000.0
    return report


async def measure(
    profile: Profile, repeats: int, libraries: Mapping[str, str] = LIBRARIES
) -> list[Row]:
    """One row per process: medians of rss_mib, import_ms and start_ms, and `ratio` of memory.

    start_ms: from the start of the process to the end of its imports. ratio: resident memory over
    that of the device without a local model.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures, cache = Path(folder) / "in", Path(folder) / "cache"
        pictures.mkdir()
        frames(pictures, profile, FRAMES)
        stand_in = StandIn(profile)
        listener = await serve("127.0.0.1", 0, lambda channel: stand_in)
        common = ["--server", f"127.0.0.1:{listener.port}", "--source", str(pictures), "--json"]
        common += ["--cache", str(cache), "--log", "error"]
        runs: list[tuple[str | None, str, str, list[str]]] = [
            (strategy, f"device, {strategy}", _DEVICE, [*common, "--strategy", strategy])
            for strategy in ("amot", "jpeg", "raw", "local")
            if strategy in profile.manifest.strategies
        ]
        runs += [
            (None, name, _LIBRARY.format(module=module), []) for name, module in libraries.items()
        ]
        rows = []
        for strategy, name, code, arguments in runs:
            try:
                reports = [await _measure(code, *arguments) for _ in range(repeats)]
            except OffboardError as error:
                if "ModuleNotFoundError" not in str(error) or strategy is not None:
                    raise
                print(f"{name} is not installed: left out", file=sys.stderr)
                continue
            rows.append(
                {
                    "bench": "footprint",
                    "profile": profile.name if strategy else None,
                    "strategy": strategy,
                    "config": name,
                    "n": repeats,
                    **{key: statistics.median(r[key] for r in reports) for key in reports[0]},
                }
            )
        await listener.close("done", grace=1.0)
    for row in rows:
        row["ratio"] = row["rss_mib"] / rows[0]["rss_mib"]
    return rows


def main() -> int:
    """Print the table; write the rows where --json says."""
    parser = argparse.ArgumentParser(prog="bench.footprint", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one run of each instead of five")
    parser.add_argument("--profile", default="signs", metavar="NAME|DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a JSON list")
    options = parser.parse_args()
    rows = asyncio.run(measure(profiles.load(options.profile), 1 if options.quick else 5))
    print(f"{'process':<16} {'RSS MiB':>8} {'import ms':>10} {'start ms':>9} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['config']:<16} {row['rss_mib']:>8.1f} {row['import_ms']:>10.0f} "
            f"{row['start_ms']:>9.0f} {row['ratio']:>6.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
