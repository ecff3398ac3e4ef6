"""The real pair, as a bench uses it: a server process, a device process, labelled files, rows."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from common.errors import OffboardError
from profiles.train import signs
from profiles.train.photos import IMAGENETTE, cache_dir

Row = dict[str, Any]
PICTURES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
COLUMNS = (
    *("bench", "profile", "strategy", "config", "link", "n", "accuracy", "bytes_up", "bytes_down"),
    *("rounds", "p50_ms", "p95_ms", "device_ms", "server_ms", "violations", "throughput"),
)


@contextlib.contextmanager
def server(profile: str, *options: str, patience: float = 120.0) -> Iterator[str]:
    """Run a server on a free loopback port; yields its HOST:PORT once it is ready.

    Raises OffboardError with the server's last lines if it does not get ready in `patience` s.
    """
    command = [sys.executable, "-m", "server", "--profile", profile, "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: Queue[str | None] = Queue()
    reader = threading.Thread(target=_pump, args=(process, lines), daemon=True)
    reader.start()
    try:
        yield _address(lines, patience)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)


def _pump(process: subprocess.Popen[str], lines: Queue[str | None]) -> None:
    """Read all a server prints, so that it never blocks on a full pipe; None ends it."""
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.put(line)
    lines.put(None)


def _address(lines: Queue[str | None], patience: float) -> str:
    said: list[str] = []
    with contextlib.suppress(Empty):
        while (line := lines.get(timeout=patience)) is not None:
            said.append(line)
            if found := re.search(r"ready on (\S+:\d+)", line):
                return found.group(1)
    raise OffboardError("the server did not get ready:\n" + "".join(said[-20:]))


def stream(
    address: str,
    source: Path,
    strategy: str,
    settings: Mapping[str, object] | None = None,
    *,
    in_flight: int = 1,
    deadline_ms: float | None = None,
    timeout: float = 3600.0,
) -> list[Row]:
    """Send the frames of `source` from a device process; its answers, one a frame, in order."""
    command = [sys.executable, "-m", "device", "--server", address, "--source", str(source)]
    command += ["--strategy", strategy, "--json", "--in-flight", str(in_flight)]
    for key, value in (settings or {}).items():
        command += ["--set", f"{key}={value}"]
    if deadline_ms is not None:
        command += ["--deadline", str(deadline_ms)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if not rows:
        raise OffboardError(f"the device answered nothing:\n{done.stderr[-2000:]}")
    return rows


def pictures(source: Path) -> list[Path]:
    """The picture files at or below `source`, sorted as the device reads them."""
    if source.is_file():
        return [source]
    return sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURES)


def truth(path: Path) -> str | None:
    """The class a file's place or name tells: photo folder, or a rendered sign's name."""
    if path.parent.name in IMAGENETTE:
        return IMAGENETTE[path.parent.name]
    if re.match(r"\d+-", path.name):
        with contextlib.suppress(ValueError):
            return signs.CLASSES[signs.label_of(path.name)]
    return None


def extracted(source: Path, split: str) -> Path:
    """`source` itself if it is a folder; a tar file is unpacked once into the user's cache."""
    if source.is_dir():
        return source
    target = cache_dir() / f"{source.stem}-{source.stat().st_size}"
    if not target.exists():
        partial = target.with_suffix(".partial")
        with tarfile.open(source) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(target)
    found = [path for path in target.rglob(split) if path.is_dir()]
    return found[0] if found else target


def summary(
    answers: Sequence[Row],
    truths: Sequence[str | None],
    *,
    seconds: float | None = None,
    **names: object,
) -> Row:
    """One flat row of a bench: `answers` against `truths`, with the columns of COLUMNS.

    Unlabelled frames count for everything but accuracy. Bytes, rounds and device and server ms
    are means per frame.
    """
    if len(answers) != len(truths):
        raise OffboardError(f"{len(truths)} frames got {len(answers)} answers")
    marked = [(a["label"] == t) for a, t in zip(answers, truths, strict=True) if t is not None]
    latency = sorted(a["latency_ms"] for a in answers)
    row: Row = dict.fromkeys(COLUMNS)
    row |= {key: _mean(answers, key) for key in ("bytes_up", "bytes_down", "rounds")}
    row |= {key: _mean(answers, key) for key in ("device_ms", "server_ms")}
    row |= {
        "link": "loopback",
        "n": len(answers),
        "accuracy": statistics.fmean(marked) if marked else None,
        "p50_ms": latency[len(latency) // 2],
        "p95_ms": latency[min(len(latency) - 1, int(0.95 * len(latency)))],
        "violations": sum(not a["deadline_met"] for a in answers),
        "throughput": len(answers) / seconds if seconds else None,
        "unanswered": sum(a["error"] is not None for a in answers),
    }
    return row | names


def _mean(answers: Sequence[Row], key: str) -> float:
    return statistics.fmean(answer[key] or 0 for answer in answers)


def agreement(answers: Sequence[Row], reference: Sequence[Row]) -> float:
    """The share of frames on which two runs give the same label."""
    same = [a["label"] == r["label"] for a, r in zip(answers, reference, strict=True)]
    return statistics.fmean(same)


def kept(path: Path | None, resume: bool) -> list[Row]:
    """The rows that `write_json` left, where a run goes on from them."""
    if not resume or path is None or not path.exists():
        return []
    rows: list[Row] = json.loads(path.read_text())
    return rows


def write_json(rows: Sequence[Row], path: Path | None) -> None:
    """Write a bench's rows as a JSON list, where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(list(rows), indent=1) + "\n")
