"""Where `./run netem` runs, and what it says where it cannot. The cases need root and a kernel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import pytest

from tests.netem import __main__ as command
from tests.netem import ground, guest


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the cases were run: "guest" or "here"."""
    found: list[str] = []

    def boot(words: Sequence[str], directory: Path, timeout: float, out: TextIO) -> int:
        found.append("guest")
        return 3 if "tests/netem/steady.py" in words else command.NOTHING

    def here(words: Sequence[str], cwd: Path, check: bool) -> subprocess.CompletedProcess[bytes]:
        found.append("here")
        return subprocess.CompletedProcess(words, 4)

    monkeypatch.setattr(guest, "run", boot)
    monkeypatch.setattr(subprocess, "run", here)
    return found


def decide(monkeypatch: pytest.MonkeyPatch, native: str | None, user_mode: str | None) -> int:
    monkeypatch.setattr(ground, "native", lambda: native)
    monkeypatch.setattr(ground, "user_mode", lambda: user_mode)
    return command.main([])


def test_this_kernel_goes_first(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decide(monkeypatch, None, None) == 4
    assert ran == ["here"]
    assert "namespaces of this kernel" in capsys.readouterr().out


def test_else_user_mode_linux(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decide(monkeypatch, "no netem", None) == 3
    assert set(ran) == {"guest"}
    assert "no netem; booting user-mode Linux" in capsys.readouterr().out


def test_else_it_says_what_is_missing(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decide(monkeypatch, "not root", "not installed: kmod") == 4
    assert (
        "SKIPPED. Here: not root. User-mode Linux: not installed: kmod" in capsys.readouterr().out
    )


def test_without_a_ground_every_case_counts_as_skipped(tmp_path: Path) -> None:
    """The real command as somebody who is not root and has none of the programs."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, shutil\nos.geteuid = lambda: 1000\nshutil.which = lambda *a, **k: None\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.netem", "-k", "outage or wifi"],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=command.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "netem: SKIPPED. Here: not root" in done.stdout, done.stdout + done.stderr
    assert "apt-get install iproute2 kmod user-mode-linux" in done.stdout
    assert " skipped" in done.stdout.splitlines()[-1]
    assert "passed" not in done.stdout.splitlines()[-1]


def test_the_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ip").touch(mode=0o755)
    monkeypatch.setattr(ground, "_path", lambda: str(tmp_path))
    assert ground.missing("ip", "tc", "linux.uml") == ["iproute2", "user-mode-linux"]
    assert "apt-get install iproute2 kmod user-mode-linux" in str(ground.user_mode())
