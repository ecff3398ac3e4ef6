"""Run a command in user-mode Linux: its kernel, this machine's files, no privileges.

The guest sees the host's whole file system and writes to it; only /run and TMPDIR are its own.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

MEMORY = "3G"
"""Taken as it is touched, from /dev/shm."""
INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/run TMPDIR=/run/tmp XDG_CACHE_HOME=/run/cache PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/tmp /run/cache
exec >{log} 2>&1
modules=/usr/lib/uml/modules/$(uname -r)/kernel
for each in net/sched/sch_netem.ko net/sched/sch_tbf.ko drivers/net/veth.ko; do
    insmod "$modules/$each"
done
ip link set lo up
cd {directory}
{command}
echo $? >{status}
halt -f
"""


def run(command: Sequence[str], directory: Path, timeout: float, out: TextIO) -> int:
    """Boot, run `command` in `directory` as root, write what it prints to `out`; its exit status.

    124 if it is not over within `timeout` seconds, 125 if the guest did not come to it.
    """
    with tempfile.TemporaryDirectory(prefix="offboard-guest-") as text:
        own = Path(text)
        log, status, init = own / "log", own / "status", own / "init"
        log.touch()
        places = {"log": log, "directory": directory, "status": status}
        quoted = {name: shlex.quote(str(place)) for name, place in places.items()}
        init.write_text(INIT.format(command=shlex.join(command), **quoted))
        init.chmod(0o755)
        boot = ["linux.uml", "rootfstype=hostfs", "rootflags=/", "rw", f"mem={MEMORY}"]
        boot += [f"init={init}", "con=null", "con0=fd:0,fd:1", f"umid={own.name}"]
        with (own / "console").open("wb") as console:
            guest = subprocess.Popen(
                boot,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "HOME": str(own)},
            )
            prefer(guest.pid)
            late = _follow(guest, log, time.monotonic() + timeout, out)
        if late:
            print(f"\nthe guest was stopped after {timeout:.0f} s", file=out)
            return 124
        if status.exists() and status.read_text().strip():
            return int(status.read_text())
        print((own / "console").read_text(errors="replace")[-3000:], file=out)
        return 125


def prefer(pid: int) -> None:
    """Before this machine's other work: a guest that waits for its CPU sees links that are late."""
    with contextlib.suppress(OSError):  # not root, or a kernel without autogroups
        Path(f"/proc/{pid}/autogroup").write_text("-10")


def _follow(guest: subprocess.Popen[bytes], log: Path, end: float, out: TextIO) -> bool:
    """Write the guest's log to `out` until it halts. Whether it had to be killed at `end`."""
    with log.open("rb") as lines:
        try:
            while True:
                over = guest.poll() is not None
                out.write(lines.read().decode(errors="replace"))
                out.flush()
                if over or time.monotonic() > end:
                    return not over
                time.sleep(0.1)
        finally:
            if guest.poll() is None:
                # The guest's processes are processes here, all in the session made for it.
                os.killpg(guest.pid, signal.SIGKILL)
                guest.wait()
