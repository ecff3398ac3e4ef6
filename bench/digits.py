"""What the speech service costs and gets right, through the real pair, beside what people send.

    ./run bench digits --data fsdd.tar

The sounds are the data set's own test set, which no training has seen. Every strategy of the
profile answers them; then they are coded as people code speech, decoded to wav files, and those are
answered. FLAC and Opus are there if PyAV is (`pip install av`).
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import wave
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import pair
from common import profile as profiles
from common.errors import OffboardError
from common.profile import Manifest
from common.sound import RATE, compress, expand, to_int16
from device import sound
from profiles.train import digits

I16 = npt.NDArray[np.int16]
Coder = Callable[[I16], tuple[int, I16]]
"""16-bit samples to bytes of code, and the samples that come out again."""
HEADER = f"{'':34} {'right':>6} {'bytes':>8} {'p50 ms':>7} {'device CPU ms':>13} {'server ms':>9}"
OPUS = (6000, 8000, 12_000)
"""Bits per second: the least that Opus takes, and more."""


def configurations(manifest: Manifest) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(name, strategy, settings) of every run."""
    for form in ("samples", "mulaw", "frame"):
        yield f"raw, {form}", "raw", {"form": form}
    for point in manifest.strategies.get("deepcod", {}).get("points", ()):
        for rate, _ in enumerate(point["rates"], start=1):
            name = point["name"]
            yield f"deepcod, {name}, rate {rate}", "deepcod", {"point": name, "rate": rate}
    behind = manifest.strategies.get("offload", {}).get("settings", {}).get("input", {})
    for method, settings in behind.items():
        for rate, _ in enumerate(settings, start=1):
            name = f"offload, {method}, input, rate {rate}"
            yield name, "offload", {"method": method, "point": "input", "rate": rate}
    yield "local", "local", {}


def coders() -> Iterator[tuple[str, Coder]]:
    """How people code speech: name, coder."""
    yield "16-bit samples (wav)", lambda x: (2 * len(x), x)
    yield "8-bit mu-law", lambda x: (len(x), to_int16(expand(compress(expand(x)))))
    yield "zlib of 16-bit samples", lambda x: (len(zlib.compress(x.tobytes(), 9)), x)
    try:
        av = importlib.import_module("av")
    except ImportError:
        return
    yield "FLAC", partial(through, av, "flac")
    for rate in OPUS:
        yield f"Opus, {rate / 1000:g} kbit/s", partial(through, av, "libopus", bit_rate=rate)


def through(av: Any, codec: str, samples: I16, bit_rate: int = 0) -> tuple[int, I16]:
    """Code and decode by FFmpeg, whose packets are counted without any file around them."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.sample_rate, encoder.layout, encoder.format = RATE, "mono", "s16"
    if bit_rate:
        encoder.bit_rate = bit_rate
        encoder.options = {"application": "voip", "frame_duration": "60"}
    encoder.open()
    step = encoder.frame_size
    padded = np.pad(samples, (0, -len(samples) % step if bit_rate else 0))
    packets = []
    for first in range(0, len(padded), step):
        part = np.ascontiguousarray(padded[None, first : first + step])
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, first
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create(codec, "r")
    decoder.extradata = encoder.extradata
    frames = [frame for each in [*packets, None] for frame in decoder.decode(each)]
    heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
    again = sound.resample(expand(heard.astype(np.int16)), frames[0].sample_rate, RATE)
    return sum(packet.size for packet in packets), to_int16(again)


def write(path: Path, samples: I16) -> None:
    """A wav file of 16-bit samples."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def line(row: pair.Row) -> str:
    """One row of the table; what was only coded has no times."""
    text = f"{row['config']:34} {row['accuracy']:6.1%} {row['bytes_up']:8,.0f}"
    if row["strategy"] is None:
        return text
    return f"{text} {row['p50_ms']:7.1f} {row['device_ms']:13.2f} {row['server_ms']:9.2f}"


def measure(profile: str, data: list[Path], folder: Path) -> Iterator[pair.Row]:
    """A row for every strategy and every coder."""
    spoken = digits.load(data, digits.TEST)
    truths = [digits.CLASSES[label] for label in spoken.labels]
    plain = [to_int16(each) for each in spoken.sounds]
    for name, each in zip(spoken.names, plain, strict=True):
        write(folder / name, each)
    with pair.server(profile) as address:
        for config, strategy, settings in configurations(profiles.load(profile).manifest):
            answers = pair.stream(address, folder, strategy, settings)
            yield pair.summary(answers, truths, bench="digits", profile=profile,
                               strategy=strategy, config=config)  # fmt: skip
        for config, coder in coders():
            sizes = []
            for name, each in zip(spoken.names, plain, strict=True):
                size, heard = coder(each)
                sizes.append(size)
                write(folder / name, heard)
            answers = pair.stream(address, folder, "raw")
            yield pair.summary(answers, truths, bench="digits", profile=profile, config=config,
                               strategy=None, bytes_up=statistics.fmean(sizes))  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Print the table; 0, or 2 with one line that says what was wrong."""
    parser = argparse.ArgumentParser(prog="run bench digits", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="PATH",
                        help="tar file or folder of the Free Spoken Digit Dataset")  # fmt: skip
    parser.add_argument("--profile", default="digits", help="default: digits")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    options = parser.parse_args(argv)
    rows = []
    try:
        with tempfile.TemporaryDirectory() as scratch:
            print(HEADER)
            for row in measure(options.profile, options.data, Path(scratch)):
                rows.append(row)
                print(line(row), flush=True)
    except (OffboardError, ValueError, OSError) as error:
        print(f"bench digits: {error}", file=sys.stderr)
        return 2
    pair.write_json(rows, options.json)
    return int(any(row["unanswered"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
