"""The device: `python device/device.py` = `offboard-device` = `python -m device`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # A script's folder comes first on the path, where `device` would mean this very file.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(each for each in sys.path if Path(each).resolve() != here)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the device program; returns its exit status."""
    # Before numpy is imported: a device gains nothing from more threads, and starts faster.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from device import heap

    heap.one_for_all_threads()
    from device.cli import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
