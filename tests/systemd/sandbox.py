"""Runs inside a service's sandbox and tries what it should not be able to.

Prints a JSON object: what was tried -> "done" or the error's name.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
LIBC = ctypes.CDLL(None, use_errno=True)


def checked(value: int) -> None:
    if value < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def write(path: str) -> Callable[[], object]:
    return lambda: (Path(path) / "written-by-the-probe").write_text("x")


def read(path: str) -> Callable[[], object]:
    return lambda: Path(path).read_text()


def connect() -> None:
    with socket.create_connection(("127.0.0.1", 7070), 5):
        pass


def open_socket(family: int, kind: int) -> Callable[[], object]:
    return lambda: socket.socket(family, kind).close()


def executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def set_uid_file() -> None:
    path = Path(os.environ["STATE_DIRECTORY"]) / "suid"
    path.write_text("x")
    path.chmod(0o4755)


def sees_others() -> None:
    if all(name == str(os.getpid()) for name in os.listdir("/proc") if name.isdecimal()):  # noqa: PTH208
        raise PermissionError(1, "only its own processes")


FORBIDDEN: dict[str, Callable[[], object]] = {
    **{f"write {p}": write(p) for p in ("/etc", "/usr", "/opt/offboard", "/srv", "/var", "/home")},
    **{f"write {p}": write(p) for p in ("/var/lib", "/root", "/boot", "/run", "/var/lib/private")},
    "write /proc/sys": lambda: Path("/proc/sys/kernel/panic").write_text("9"),
    "write cgroup": write("/sys/fs/cgroup"),
    "read /home": read("/home/somebody/secret"),
    "read /root": read("/root/secret"),
    "read settings": read("/etc/offboard/server.toml"),
    "read /etc/shadow": read("/etc/shadow"),
    "read /dev/mem": read("/dev/mem"),
    "read /dev/kmsg": read("/dev/kmsg"),
    "see other processes": sees_others,
    "become root": lambda: os.setuid(0),
    "new namespace": lambda: checked(LIBC.unshare(CLONE_NEWUSER)),
    "mount": lambda: checked(LIBC.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
    "raw socket": open_socket(socket.AF_INET, socket.SOCK_RAW),
    "packet socket": open_socket(socket.AF_PACKET, socket.SOCK_RAW),
    "netlink socket": open_socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "real-time scheduling": lambda: os.sched_setscheduler(
        0,
        os.SCHED_RR,
        os.sched_param(1),
    ),
    "set-uid file": set_uid_file,
    "host name": lambda: socket.sethostname("probe"),
    "executable memory": executable_memory,
}
ALLOWED: dict[str, Callable[[], object]] = {
    "write state": lambda: write(os.environ["STATE_DIRECTORY"])(),
    "write cache": lambda: write(os.environ["CACHE_DIRECTORY"])(),
    "write /tmp": write("/tmp"),
    "connect": connect,
    "read credential": lambda: read(
        str(next(Path(os.environ["CREDENTIALS_DIRECTORY"]).iterdir()))
    )(),
}


def attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


if __name__ == "__main__":
    report = {name: attempt(action) for name, action in (FORBIDDEN | ALLOWED).items()}
    Path(os.environ["STATE_DIRECTORY"], "report.json").write_text(json.dumps(report))
    json.dump(report, sys.stdout)
