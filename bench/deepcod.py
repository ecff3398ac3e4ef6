"""DeepCOD and all it is compared with through the real pair: the paper's tables and figures.

    ./run bench deepcod --quick --data imagenette-val.tar
    ./run bench deepcod --data imagenette-val.tar --json photos.json --resume --docs docs
    ./run bench deepcod --profile digits --data fsdd.tar --frames 180 --json digits.json

Every row is one device process that streams all frames, one at a time, to one server process on
this machine. Latencies at other bandwidths are computed from a row's measured compute and bytes;
rows whose column `link` names a shaped link were really executed over one (`bench.link`).
"""

from __future__ import annotations

import argparse
import io
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import link, pair, points, points_page
from bench.pair import Row
from bench.points import Config
from common import profile as profiles
from common.codec import encode
from common.errors import OffboardError
from common.messages import Query
from common.profile import Profile
from device.bundle import Bundle
from device.content import reader
from device.strategies import deepcod
from device.strategy import Frame, Pixels, Plan

QUICK, SHAPED = 100, 40
"""Frames of a quick run, and over each shaped link."""
LINKS = {"1 Mbps": (1.0, 2.3), "4G": (7.6, 42.2), "Wi-Fi": (37.68, 2.3), "450 Mbps": (450.0, 2.3)}
"""Shaped links: Mbps and milliseconds of a round trip."""
QUALITY = 75
"""Of the JPEG that encoding is compared with."""
WAV = re.compile(r"(\d)_\w+_(\d+)\.wav")


def frames_of(source: Path, profile: Profile) -> tuple[list[Path], list[str | None]]:
    """The files that the device will read below `source`, in its order, and their classes."""
    if profile.manifest.task != "listen":
        found = pair.pictures(source)
        return found, [pair.truth(path) for path in found]
    found = sorted(source.rglob("*.wav"))
    named = [WAV.fullmatch(path.name) for path in found]
    return found, [profile.manifest.classes[int(m[1])] if m else None for m in named]


def subset(source: Path, profile: Profile, count: int, scratch: Path) -> Path:
    """A folder with links to `count` evenly spaced files of `source`, or to all it has."""
    found, _ = frames_of(source, profile)
    for index in range(min(count, len(found))):
        path = found[index * len(found) // min(count, len(found))]
        place = scratch / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path.resolve())
    return scratch


def measure(
    profile: Profile, source: Path, configs: Sequence[Config], rows: list[Row], path: Path | None
) -> None:
    """Add a row for each of `configs`, and of a few methods over shaped links; write to `path`."""
    frames, truths = frames_of(source, profile)
    if not frames:
        raise OffboardError(f"nothing of the profile {profile.name!r} below {source}")
    size = points.expected_bytes(profile.manifest)
    whole = next((c.expected for c in configs if c.coding == "lossless"), None)
    names = {"bench": "deepcod", "profile": profile.name, "n": len(frames)}
    known = {(row["config"], row["link"], row["n"]) for row in rows}
    with pair.server(str(profile.directory)) as address:
        for config in configs:
            if (config.name, "loopback", len(frames)) in known:
                continue
            row = run(address, source, config, truths) | names
            same = [c for c in configs if (c.method, c.point) == (config.method, config.point)]
            best = points.chosen(same, whole, size)
            loss = 0.0 if whole is None or config.expected is None else whole - config.expected
            row |= {"chosen": best is config, "fit": loss <= points.MOST}
            rows.append(row)
            pair.write_json(rows, path)
            print(line(row), flush=True)
        for config in shaped(configs, rows):
            for name, (mbps, rtt) in LINKS.items():
                if (config.name, name, min(SHAPED, len(frames))) in known:
                    continue
                with tempfile.TemporaryDirectory() as scratch:
                    few = subset(source, profile, SHAPED, Path(scratch))
                    marks = frames_of(few, profile)[1]
                    with link.running(address, link.Shape(mbps, rtt)) as shaped_address:
                        row = run(shaped_address, few, config, marks) | names
                rows.append(row | {"link": name, "n": len(marks)})
                pair.write_json(rows, path)
                print(line(rows[-1]), flush=True)


def run(address: str, source: Path, config: Config, truths: Sequence[str | None]) -> Row:
    """One row: all frames through one device process, one at a time."""
    started = time.monotonic()
    answers = pair.stream(address, source, config.strategy, config.settings)
    for answer in answers:  # a local model's answer is none of this method's
        if wrong := answer["error"] or answer["degraded"]:
            raise OffboardError(f"{config.method}, {config.name}: {wrong}")
    row = pair.summary(answers, truths, seconds=time.monotonic() - started)
    for key in ("device_ms", "server_ms"):
        row[key] = statistics.median(answer[key] for answer in answers)
    return row | {
        "strategy": config.strategy, "config": config.name, "method": config.method,
        "coding": config.coding, "point": config.point, "rate": config.rate,
        "expected": config.expected,
    }  # fmt: skip


def shaped(configs: Sequence[Config], rows: Sequence[Row]) -> list[Config]:
    """What goes over shaped links: the chosen rows at the input, and DeepCOD where it cuts."""
    names = {row["config"] for row in rows if row.get("chosen") and row["point"] == points.INPUT}
    found = [c for c in configs if c.name in names]
    own = Config("DeepCOD", "deepcod", "auto", 1, "deepcod", {"point": "auto", "rate": 1})
    return [*found, own] if any(c.method == "DeepCOD" for c in configs) else found


def encoding(profile: Profile, frames: Sequence[Path], rounds: int = 5) -> list[Row]:
    """CPU of DeepCOD's encoding at each point and rate, as a ratio to one JPEG of the frame.

    JPEG is made twice: by libjpeg-turbo as such (simplejpeg, what this project sends) and by
    Pillow. All take turns, frame by frame, so that what else this machine does falls on each, and
    each finds the frame in the cache, as whatever decoded it leaves it there.
    """
    if profile.manifest.task == "listen":
        return []
    read = reader(profile.manifest)
    seen = [Frame(i, path.name, read(path), 0.0) for i, path in enumerate(frames)]
    present = {file.path for file in profile.manifest.files}
    device = deepcod.create(Bundle(profile.manifest, profile.directory, present))
    made = []
    for point in profile.manifest.params("deepcod").get("points", ()):
        for rate in range(1, len(point["rates"]) + 1):
            plan = Plan("deepcod", {"point": point["name"], "rate": rate})
            turns = [
                (
                    cpu_ms(partial(_encoded, device, frame, plan), frame),
                    cpu_ms(partial(encode, frame.pixels, "jpeg", quality=QUALITY), frame),
                    cpu_ms(partial(_pillow, frame.pixels), frame),
                )
                for frame in seen * rounds
            ]
            ours, theirs, pillow = np.array(turns).T
            made.append({
                "bench": "deepcod", "profile": profile.name, "strategy": "deepcod",
                "config": f"{point['name']} deepcod {rate}", "link": "none", "n": len(ours),
                "method": "encoding", "point": point["name"], "rate": rate,
                "device_ms": float(np.median(ours)), "jpeg_ms": float(np.median(theirs)),
                "pillow_ms": float(np.median(pillow)), "ratio": float(np.median(ours / theirs)),
                "pillow_ratio": float(np.median(ours / pillow)),
            })  # fmt: skip
    return made


def _pillow(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _encoded(device: deepcod.DeepCod, frame: Frame, plan: Plan) -> Query:
    return next(device.infer(frame, plan))


def cpu_ms(call: Callable[[], Any], frame: Frame) -> float:
    """Milliseconds of this thread's CPU that `call` takes with `frame` at hand."""
    frame.pixels.max()
    started = time.thread_time()
    call()
    return (time.thread_time() - started) * 1e3


def line(row: Row) -> str:
    """A row as it is printed while the bench runs."""
    top1 = "     -" if row["accuracy"] is None else f"{row['accuracy']:6.1%}"
    return (
        f"{row['method']:13} {row['config']:18} {row['link']:8} {top1} {row['bytes_up']:9,.0f} B "
        f"{row['device_ms']:6.2f} + {row['server_ms']:6.2f} ms, whole {row['p50_ms']:7.2f} ms"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="run bench deepcod", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--profile", default="imagenette", help="imagenette or digits")
    made.add_argument("--data", type=Path, required=True, help="labelled files: a folder, a tar")
    made.add_argument("--split", default="val", help="folder inside the tar file")
    made.add_argument("--frames", type=int, help="so many, evenly spaced")
    made.add_argument("--quick", action="store_true", help=f"chosen settings, {QUICK} frames")
    made.add_argument("--json", type=Path, help="write the rows here, one by one")
    made.add_argument("--resume", action="store_true", help="keep the rows in --json")
    made.add_argument(
        "--docs", type=Path, metavar="DIR", help="write plots and the tables of DIR/deepcod.md"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    options = parser().parse_args(argv)
    if options.frames is not None and options.frames < 1:
        parser().error("--frames must be at least 1")
    try:
        rows = pair.kept(options.json, options.resume)
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "few").mkdir()
            profile = profiles.load(options.profile)
            source = test_set(pair.extracted(options.data, options.split), profile, Path(scratch))
            count = options.frames or (QUICK if options.quick else None)
            if count is not None:
                source = subset(source, profile, count, Path(scratch) / "few")
            configs = points.configurations(profile.manifest, options.quick)
            measure(profile, source, configs, rows, options.json)
            if not any(row["method"] == "encoding" for row in rows):
                rows += encoding(profile, frames_of(source, profile)[0][:40])
            pair.write_json(rows, options.json)
            print(points_page.encoding(rows))
            if options.docs is not None:
                points_page.write(rows, profile.manifest, options.docs)
    except (OffboardError, OSError) as error:
        print(f"bench deepcod: {error}", file=sys.stderr)
        return 2
    return 0


def test_set(source: Path, profile: Profile, scratch: Path) -> Path:
    """`source`, or of sounds the takes up to 4 of each speaker and digit: the others train."""
    if profile.manifest.task != "listen":
        return source
    folder = scratch / "test"
    folder.mkdir()
    for path in sorted(source.rglob("*.wav")):
        found = WAV.fullmatch(path.name)
        if found and int(found[2]) <= 4:
            (folder / path.name).symlink_to(path.resolve())
    return folder


if __name__ == "__main__":
    sys.exit(main())
