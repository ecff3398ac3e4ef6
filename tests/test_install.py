"""What is shipped for systemd fits the programs, and the installer refuses what it must.

That it installs, runs and uninstalls is seen in a whole system by `./run systemd`.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.settings import Settings
from tests.profiles import tiny

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def unit(path: Path) -> dict[str, list[str]]:
    """Settings of a unit file, every value of each, sections aside."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH of its own: what the installer needs, and root where it is asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat", "dirname", "sed", "find", "basename"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    program(folder, "id", "echo 0")
    program(folder, "systemctl", "echo 'systemd 252 (252.1)'")
    return folder


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def refused(tools: Path, *arguments: str) -> str:
    """What the installer says when it refuses."""
    done = subprocess.run(
        ["sh", str(DEPLOY / "install.sh"), *arguments],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


def test_without_root_it_says_so(tools: Path) -> None:
    program(tools, "id", "echo 1000")
    assert "only root may do this" in refused(tools, "device")


def test_without_systemd_it_says_so(tools: Path) -> None:
    (tools / "systemctl").unlink()
    said = refused(tools, "server")
    assert "no systemd here" in said
    assert "./run server --help" in said


def test_an_old_systemd_is_refused(tools: Path) -> None:
    program(tools, "systemctl", "echo 'systemd 247 (247.3)'")
    assert "250 is needed" in refused(tools, "device")


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("opt", "not an absolute path"),
        ("/", "not an absolute path"),
        ("/home/me/offboard", "sandbox cannot see it"),
        ("/root/offboard", "sandbox cannot see it"),
        ("/tmp/offboard", "sandbox cannot see it"),
        ("/opt/off board", "only letters"),
        ("/opt/../etc", "only letters"),
        ("/opt/off|board", "only letters"),
    ],
)
def test_a_prefix_that_cannot_work_is_refused(prefix: str, said: str, tools: Path) -> None:
    assert said in refused(tools, "device", "--prefix", prefix)


@pytest.mark.parametrize(
    "arguments",
    [(), ("both",), ("device", "--prefix"), ("device", "--now"), ("device", "--extra")],
)
def test_wrong_arguments_are_refused(arguments: tuple[str, ...], tools: Path) -> None:
    assert refused(tools, *arguments)


@pytest.mark.parametrize("arguments", [("device", "--extra", "sound"), ("server", "--extra=text")])
def test_an_extra_that_is_none_is_refused(arguments: tuple[str, ...], tools: Path) -> None:
    assert "a device takes text or tflite" in refused(tools, *arguments)


def test_what_is_not_installed_cannot_be_uninstalled(tools: Path) -> None:
    said = refused(tools, "device", "--uninstall", "--prefix", "/nonexistent/offboard")
    assert "no device is installed" in said


def test_the_extras_are_those_of_the_packages() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    script = (DEPLOY / "install.sh").read_text()
    (names,) = re.findall(r"for each in (\w+ \w+); do", script)
    assert all(f"device-{name}" in extras and f"device/{name}" in script for name in names.split())


def check(role: str, settings: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEPLOY / "check.py"), role, str(settings)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def server_settings(tmp_path: Path, **changes: str) -> Path:
    """The file that the installer writes, with a profile that is there, and changes by regex."""
    text = (DEPLOY / "server.toml").read_text()
    text = text.replace("@TOKEN@", "secret").replace("@DEVICE@", "cpu")
    text = text.replace('"signs"', f'"{tiny(tmp_path)}"')
    for key, value in changes.items():
        text, count = re.subn(rf"(?m)^#?{key} = \S+", f"{key} = {value}", text)
        assert count == 1
    path = tmp_path / "server.toml"
    path.write_text(text)
    return path


def device_settings(tmp_path: Path, **changes: str) -> Path:
    """The same for the device, with its server filled in."""
    text = (DEPLOY / "device.toml").read_text()
    text = text.replace('#server = "192.168.1.20:7070"', 'server = "192.168.1.20:7070"')
    for key, value in changes.items():
        text, count = re.subn(rf"(?m)^#?{key} = \S+", f"{key} = {value}", text)
        assert count == 1
    path = tmp_path / "device.toml"
    path.write_text(text)
    return path


def test_the_shipped_settings_will_do(tmp_path: Path) -> None:
    for role, settings in (
        ("server", server_settings(tmp_path)),
        ("device", device_settings(tmp_path)),
    ):
        done = check(role, settings)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_shipped_settings_will_do_for_an_edge(tmp_path: Path) -> None:
    for strategies in ('"none"', '"jpeg"'):
        settings = server_settings(
            tmp_path / strategies[1:-1], cloud='"box:7"', cloud_token='"x"', strategies=strategies
        )
        done = check("server", settings)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"profile": '"nowhere"'}, "nowhere"),
        ({"listen": '"everywhere"'}, "everywhere"),
        ({"token": '""'}, "other machines could use this server"),
        ({"metrics": "9070"}, "metrics"),
        ({"device": "true"}, "device"),
        ({"cloud": '"somewhere"'}, "'somewhere' is no HOST:PORT"),
        ({"strategies": '"none"'}, "give --cloud"),
        ({"strategies": '"raw,magic"', "cloud": '"box:7070"'}, "does not offer 'magic'"),
    ],
)
def test_bad_server_settings_are_told(changes: dict[str, str], said: str, tmp_path: Path) -> None:
    done = check("server", server_settings(tmp_path, **changes))
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server": '"192.168.1.20"'}, "HOST:PORT"),
        ({"source": '"/nothing/here"'}, "nothing that exists"),
        ({"deadline": '"soon"'}, "deadline"),
        ({"deadline": "-1.0"}, "deadline"),
        ({"json": "1"}, "json"),
    ],
)
def test_bad_device_settings_are_told(changes: dict[str, str], said: str, tmp_path: Path) -> None:
    done = check("device", device_settings(tmp_path, **changes))
    assert done.returncode == 2
    assert said in done.stderr


def test_the_device_is_not_started_before_it_knows_its_server(tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text((DEPLOY / "device.toml").read_text())
    done = check("device", tmp_path / "device.toml")
    assert done.returncode == 2
    assert "server is not set" in done.stderr


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_a_program_that_is_installed(path: Path) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    scripts = config["options.entry_points"]["console_scripts"]
    role = "server" if "server" in path.name else "device"
    (command,) = unit(path)["ExecStart"]
    program, flag, settings = command.split()
    assert program == f"/opt/offboard/{role}/venv/bin/offboard-{role}"
    assert f"offboard-{role} = " in scripts
    assert flag == "--config"
    name, _, source = unit(path)["LoadCredential"][0].partition(":")
    assert settings == f"%d/{name}"
    assert source == f"/etc/offboard/{name}"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_waits_watches_restarts_and_drains(path: Path) -> None:
    found = unit(path)
    assert found["Type"] == ["notify"]
    assert found["Restart"] == ["always"]
    assert found["StartLimitIntervalSec"] == ["0"]
    assert found["DynamicUser"] == ["yes"]
    assert {"WatchdogSec", "MemoryMax", "StateDirectory", "CacheDirectory"} <= set(found)
    grace = Settings(profile="signs").grace_s
    if "server" in path.name:
        assert float(found["TimeoutStopSec"][0]) > 2 * grace, "systemd would cut the drain short"


def test_the_template_is_the_device_for_a_named_source() -> None:
    one = (DEPLOY / "systemd/offboard-device.service").read_text()
    many = (DEPLOY / "systemd/offboard-device@.service").read_text()
    assert many.count("%i") >= 7
    assert many.replace("-%i", "").replace("source %i", "its source") == one
