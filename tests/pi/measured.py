"""Runs the device program, then says what it weighs: measured.py REPORT ARGUMENTS...

Under qemu the process holds the emulator, too. qemu shows the program its own mappings in
/proc/self/maps and the whole process in /proc/self/smaps: what is in both is the program's.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


def ranges(text: str) -> list[tuple[int, int]]:
    found = [RANGE.match(line) for line in text.splitlines()]
    return [(int(m[1], 16), int(m[2], 16)) for m in found if m]


def resident() -> dict[str, float]:
    """MiB resident: the program's own, and the whole process with its emulator."""
    own = ranges(Path("/proc/self/maps").read_text())
    program = whole = 0
    counts = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := RANGE.match(line):
            start, end = int(match[1], 16), int(match[2], 16)
            counts = any(low < end and start < high for low, high in own)
        elif line.startswith("Rss:"):
            size = int(line.split()[1])
            whole += size
            program += size if counts else 0
    return {"program": program / 1024, "process": whole / 1024}


if __name__ == "__main__":
    report, *arguments = sys.argv[1:]
    from device.device import main

    status = main(arguments)
    torch = "torch" in sys.modules
    runtime = "onnxruntime" in sys.modules
    Path(report).write_text(json.dumps({**resident(), "torch": torch, "onnxruntime": runtime}))
    sys.exit(status)
