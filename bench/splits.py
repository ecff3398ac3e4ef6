"""Janus at fixed settings through the real pair: every split, several alphas, every precision.

    run bench splits --profile imagenette --data imagenette.tar --frames 500
    run bench splits --profile clips --frames 300

A server process and a device process on this machine, one frame at a time. The first row is the
frame without loss and nothing merged, which is the unsplit model; "same" is the share of frames
that got its label.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import pair
from bench.amot import subset
from common import profile as profiles
from common.errors import ConfigError, OffboardError
from common.merging import alpha_max
from common.profile import Manifest
from profiles.train import clips, signs

CLIPS = 300
QUICK = 20
Settings = dict[str, Any]


def configurations(manifest: Manifest, quick: bool = False) -> list[Settings]:
    """What to measure, the unsplit model first."""
    params = manifest.params("janus")
    layers, tokens = len(params["blocks"]), int(params["tokens"])
    most = alpha_max(layers, tokens)
    half = round(0.75 * most, 2)
    made: list[Settings] = [{"split": 0, "frame": "zstd"}, {"split": 0, "frame": "jpeg"}]
    splits = (1, layers + 1) if quick else range(1, layers + 2)
    alphas = (half,) if quick else (0.0, half, most)
    made += [{"split": s, "alpha": a, "precision": "int8"} for s in splits for a in alphas]
    exact = {"split": 1, "alpha": 0.0, "precision": "fp32"}
    return [*made, {**exact, "precision": "fp16"}, exact, {**exact, "codec": "lzw"}]


def measure(
    profile: str, source: str, truth: Mapping[str, str], configs: Sequence[Settings]
) -> list[pair.Row]:
    """A row of each of `configs`; `truth`: the label of each frame, by its name."""
    rows: list[pair.Row] = []
    reference: list[pair.Row] = []
    with pair.server(profile) as address:
        for settings in configs:
            started = time.monotonic()
            answers = pair.stream(address, Path(source), "janus", settings)
            for answer in answers:
                if wrong := answer["error"] or answer["degraded"]:
                    raise OffboardError(f"{_name(settings)}: {wrong}")
            reference = reference or answers
            labels = [truth[answer["frame"]] for answer in answers]
            row = pair.summary(answers, labels, seconds=time.monotonic() - started)
            row |= {"profile": profile, "strategy": "janus", "config": _name(settings)}
            row["same"] = pair.agreement(answers, reference)
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: pair.Row) -> str:
    """A row of a table in Markdown."""
    return (
        f"| {row['config']} | {row['accuracy']:.1%} | {row['same']:.1%} | {row['bytes_up']:,.0f} "
        f"| {row['device_ms']:.1f} | {row['server_ms']:.1f} | {row['p50_ms']:.1f} |"
    )


def rendered(folder: Path, count: int) -> dict[str, str]:
    """Write `count` evaluation clips to `folder`; their labels by name."""
    written = clips.write(folder, signs.EVALUATION[:count])
    return {path.name: clips.CLASSES[clips.label_of(path.name)] for path in written}


def labelled(
    manifest: Manifest, data: Path | None, count: int, folder: Path
) -> tuple[str, dict[str, str]]:
    """A source of `count` evaluation frames in `folder`, and their labels by name.

    Clips are rendered; of photos `data` is a folder or a tar. Raises ConfigError without it.
    """
    if manifest.task == "watch":
        return f"clips:{folder}", rendered(folder, count)
    if data is None:
        raise ConfigError(f"--profile {manifest.name} needs --data: labelled photos")
    subset(pair.extracted(data, "val"), count, folder)
    found = {str(p.relative_to(folder)): pair.truth(p) for p in pair.pictures(folder)}
    return str(folder), {name: label or "" for name, label in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="run bench splits", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--profile", default="imagenette")
    parser.add_argument("--data", type=Path, help="labelled photos: a folder, or a tar file")
    parser.add_argument("--frames", type=int, help="so many, evenly spaced")
    parser.add_argument("--quick", action="store_true", help="few settings, few frames")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args(argv)
    try:
        manifest = profiles.load(options.profile).manifest
        with tempfile.TemporaryDirectory() as scratch:
            count = options.frames or (QUICK if options.quick else CLIPS)
            source, truth = labelled(manifest, options.data, count, Path(scratch))
            print("| setting | accuracy | same | bytes up | device ms | server ms | p50 ms |")
            print("|---|---:|---:|---:|---:|---:|---:|")
            configs = configurations(manifest, options.quick)
            rows = measure(options.profile, source, truth, configs)
            pair.write_json(rows, options.json)
    except (OffboardError, OSError) as error:
        print(f"bench splits: {error}", file=sys.stderr)
        return 2
    return 0


def _name(settings: Settings) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


if __name__ == "__main__":
    sys.exit(main())
