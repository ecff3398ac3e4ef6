"""The device extra from wheels alone on emulated arm64 Debian bookworm, against a server here.

Collected by `./run pi` only: it needs root and qemu, and takes minutes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench import pair
from common import profile as profiles
from profiles.train import signs
from tests import debian, served

CACHE = debian.REPOSITORY / ".cache" / "pi"
HANDLER = Path("/proc/sys/fs/binfmt_misc")
TOOLS = {
    "qemu-aarch64-static": "qemu-user-static",
    "update-binfmts": "binfmt-support",
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
}
PACKAGES = "python3,python3-venv,ca-certificates"
EXTRAS = ("device", "device-onnx")
HOME = "/opt/offboard"
PHOTOS = 8
LIGHT, MODEL, JANUS = 50.0, 80.0, 90.0
"""MiB resident, at most: without a model on the device, with some, with Janus's, which holds what
it decides by, too."""
MODELS = frozenset(("deepcod", "df", "dimec", "dimee", "janus", "local", "mbc", "po"))
"""Strategies that run a model."""
SECONDS = 3000.0


def emulation() -> str | None:
    """Why aarch64 programs do not run here; None if they do."""
    if platform.machine() == "aarch64":
        return debian.lacking({t: p for t, p in TOOLS.items() if t in ("debootstrap", "unshare")})
    if reason := debian.lacking(TOOLS):
        return reason
    if not (HANDLER / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(HANDLER)], check=False)
    subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=False)
    if not (HANDLER / "qemu-aarch64").exists():
        return "the kernel takes no qemu-aarch64 handler (binfmt_misc)"
    return None


REASON = emulation()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def root() -> Path:
    """The board's system, with the device extra installed from wheels."""
    root = debian.bootstrap(CACHE / "bookworm-arm64", "--arch=arm64", f"--include={PACKAGES}")
    wheels = CACHE / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    debian.download(wheels, [*debian.requirements(*EXTRAS), "setuptools>=77"], "aarch64")
    shutil.rmtree(root / HOME[1:], ignore_errors=True)
    app = root / HOME[1:] / "app"
    debian.copy_repository(app)
    board(root, "python3", "-m", "venv", f"{HOME}/venv")
    assert not list((root / "usr/bin").glob("*gcc*")), "a board has no compiler"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--no-compile"]  # emulated, that takes minutes
    install += ["--only-binary", ":all:", "--constraint", f"{HOME}/app/constraints.txt"]
    board(root, f"{HOME}/venv/bin/python", *install, "-e", f"{HOME}/app[{','.join(EXTRAS)}]")
    return root


def board(root: Path, *command: str, allowed: tuple[int, ...] = (0,)) -> str:
    """What `command` says on the board."""
    done = debian.enter(root, command, mnt=CACHE / "wheels", seconds=SECONDS)
    assert done.returncode in allowed, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def photos(root: Path) -> Path:
    """Frames of the evaluation set, where the board finds them."""
    folder = root / HOME[1:] / "photos"
    first = signs.EVALUATION.start
    for path in signs.write(folder, range(first, first + PHOTOS)):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Of a server for each profile."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(pair.server(name, patience=300)) for name in served.PROFILES
        }


def stream(root: Path, address: str, strategy: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The board's answers, and what the device weighed there."""
    report = f"{HOME}/report.json"
    command = [f"{HOME}/venv/bin/python", f"{HOME}/app/tests/pi/measured.py", report]
    command += ["--server", address, "--source", f"{HOME}/photos", "--strategy", strategy]
    command += [*served.options(strategy), "--json", "--log", "error"]
    command += ["--in-flight", "1", "--cache", f"{HOME}/cache"]
    said = board(root, *command, "--patience", "120")
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    weight: dict[str, Any] = json.loads((root / report.lstrip("/")).read_text())
    return answers, weight


@pytest.mark.parametrize("strategy", served.OFFERED)
def test_a_board_streams_photos(
    strategy: str, root: Path, photos: Path, addresses: dict[str, str]
) -> None:
    profile = served.SERVED[strategy]
    address = addresses[profile]
    classes = profiles.load(profile).manifest.classes
    answers, weight = stream(root, address, strategy)
    names = sorted(path.name for path in photos.iterdir())
    assert [answer["frame"] for answer in answers] == names
    for answer in answers:
        assert answer["error"] is None
        assert answer["degraded"] is None
        assert answer["label"] in classes
        assert (answer["source"] == "device") == (strategy == "local")
    assert not weight["torch"]
    assert weight["onnxruntime"] == (strategy in MODELS)
    if strategy != "amot":  # which draws its patches at random
        still = served.STILL.get(strategy)
        here = [answer["label"] for answer in pair.stream(address, photos, strategy, still)]
        assert [answer["label"] for answer in answers] == here, "the board sees something else"
    up = sum(answer["bytes_up"] for answer in answers) / len(answers)
    print(
        f"\n{strategy:7} {profile:10} {len(answers)} photos, {up:7.0f} bytes up each, RSS "
        f"{weight['program']:.1f} MiB ({weight['process']:.1f} with the emulator)"
    )
    most = JANUS if strategy == "janus" else MODEL if strategy in MODELS else LIGHT
    assert weight["program"] <= most


def test_what_the_board_installed(root: Path) -> None:
    machine = board(root, "python3", "-c", "import platform; print(platform.machine())").strip()
    assert machine == "aarch64"
    frozen = board(root, f"{HOME}/venv/bin/python", "-m", "pip", "list", "--format=freeze")
    installed = {line.split("==")[0].lower().replace("_", "-") for line in frozen.splitlines()}
    print(f"\n{machine}, {board(root, 'python3', '--version').strip()}, wheels used:")
    used = []
    for path in sorted((CACHE / "wheels").iterdir()):
        assert path.suffix == ".whl"
        if path.name.split("-")[0].lower().replace("_", "-") in installed:
            used.append(path.name)
            print(f"  {path.name} ({os.stat(path).st_size / 1e6:.1f} MB)")  # noqa: PTH116
    assert len(used) >= len(debian.requirements(*EXTRAS))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(
    "extra", ["device", "device-onnx", "device-tflite", "device-text", "camera"]
)
def test_wheels_exist(extra: str, python: str) -> None:
    names = debian.wheels(debian.requirements(extra), "aarch64", python)
    assert all(name.endswith(".whl") for name in names)
    print(f"\noffboard[{extra}] on Python {python}, aarch64: {len(names)} wheels")
