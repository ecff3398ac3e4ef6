"""Runs inside the machine as a oneshot unit: looks at the services, hurts them, writes results.

Python's own library only. With "camera" it is the source: pictures into a pipe, for ever.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.systemd.freeze import bury, frozen

PROBE = Path("/srv/probe")
RESULTS = PROBE / "results.jsonl"
PIPE = Path("/run/camera.mjpeg")
SERVER, DEVICE = "offboard-server", "offboard-device"
PATIENCE = 150.0
"""Seconds that anything may take: the machine has one CPU, perhaps of a busy host."""
WATCHDOG = 10
"""Seconds of WatchdogSec= here, where services are hung on purpose: the product's take longer."""


def camera() -> None:
    """A camera at two pictures a second."""
    frames = [path.read_bytes() for path in sorted((PROBE / "frames").iterdir())]
    pipe = os.open(PIPE, os.O_RDWR)  # never blocks on opening, never ends for want of a reader
    while True:
        for frame in frames:
            os.write(pipe, frame)
            time.sleep(0.5)


# What systemd and the services say.


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: status {done.returncode}: {done.stdout}")
    return done.stdout.strip()


def prop(unit: str, name: str) -> str:
    return run("systemctl", "show", "--value", f"--property={name}", unit)


def pid(unit: str) -> int:
    return int(prop(unit, "MainPID"))


def journal(unit: str, since: float = 0.0) -> list[tuple[float, str]]:
    """(seconds on the monotonic clock, text) of each entry of this boot after `since`."""
    found = []
    lines = run("journalctl", "-b", "-n", "300", "-u", unit, "-o", "json", "--no-pager")
    for line in lines.splitlines():
        entry = json.loads(line)
        at = int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6
        if at >= since and isinstance(entry.get("MESSAGE"), str):
            found.append((at, entry["MESSAGE"]))
    return found


def answers(since: float, unit: str = DEVICE) -> Iterator[dict[str, Any]]:
    """The device's answers logged since then."""
    for _, text in journal(unit, since):
        if text.startswith("{"):
            yield json.loads(text)


def until(what: str, found: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true value of `found()`; AssertionError saying what did not happen in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def good(answer: dict[str, Any]) -> bool:
    """An answer of the server, with nothing to excuse."""
    return (
        answer["source"] == "edge"
        and answer["label"] in ("ant", "bee", "cat", "dog")
        and answer["error"] is None
        and answer["degraded"] is None
    )


def answered(since: float) -> dict[str, Any]:
    found: dict[str, Any] = until(
        "a good answer", lambda: next((a for a in answers(since) if good(a)), None)
    )
    return found


# The checks of the first boot, in this order.


def the_device_starts_after_the_server_is_ready() -> str:
    ready = int(prop(SERVER, "ActiveEnterTimestampMonotonic"))
    started = int(prop(DEVICE, "ExecMainStartTimestampMonotonic"))
    assert 0 < ready <= started, (ready, started)
    return f"server ready at {ready / 1e6:.1f} s, device started at {started / 1e6:.1f} s"


def ready_means_warm_and_listening() -> str:
    started = int(prop(SERVER, "ExecMainStartTimestampMonotonic")) / 1e6
    ready = int(prop(SERVER, "ActiveEnterTimestampMonotonic")) / 1e6
    said = {name: at for at, text in journal(SERVER) for name in ("loaded in", "ready on")
            if name in text}  # fmt: skip
    assert started < said["loaded in"] < said["ready on"], (started, said, ready)
    assert said["loaded in"] < ready, (said, ready)
    return f"{ready - started:.1f} s from the start to ready"


def a_frame_is_answered() -> str:
    answer = answered(time.monotonic())
    memory = [f"{u} {int(prop(u, 'MemoryCurrent')) / 2**20:.0f} MiB" for u in (SERVER, DEVICE)]
    return f"{answer['label']} by {answer['source']}/{answer['strategy']}, {', '.join(memory)}"


def the_journal_has_levels_and_no_second_clock() -> str:
    lines = run("journalctl", "-b", "-u", SERVER, "-o", "json", "--no-pager").splitlines()
    entries = [json.loads(line) for line in lines]
    ready = next(e for e in entries if "loaded in" in e["MESSAGE"])
    assert ready["PRIORITY"] == "6", ready
    assert not ready["MESSAGE"].startswith(("20", "<")), ready["MESSAGE"]
    return str(ready["MESSAGE"])


def the_exposure_is_low() -> str:
    said = []
    for unit, limit in ((SERVER, 20), (DEVICE, 20), ("offboard-device@x", 20)):
        text = run("systemd-analyze", "security", f"--threshold={limit}", f"{unit}.service")
        said.append(text.splitlines()[-1].lstrip("→ "))
    return "; ".join(said)


def the_sandbox_holds() -> str:
    counts = []
    for unit in (SERVER, DEVICE):
        report = _inside(unit)
        expected = {"executable memory": unit == SERVER}  # see the server's unit
        for name, outcome in report.items():
            allowed = expected.get(name, name in ALLOWED)
            assert (outcome == "done") == allowed, f"{unit}: {name}: {outcome}"
        counts.append(f"{unit}: {sum(o != 'done' for o in report.values())} attempts failed")
    return "; ".join(counts)


ALLOWED = {"write state", "write cache", "write /tmp", "connect", "read credential"}


def _inside(unit: str) -> dict[str, str]:
    """What sandbox.py reports from a copy of the unit that differs in its program only."""
    text = Path(f"/etc/systemd/system/{unit}.service").read_text()
    name = unit.replace("offboard", "probe")
    sandbox = Path(__file__).with_name("sandbox.py")
    lines = [line for line in text.splitlines() if not line.startswith(("Restart", "Watchdog"))]
    lines = [
        f"ExecStart=/usr/bin/python3 {sandbox}" if line.startswith("ExecStart=")
        else "Type=oneshot" if line.startswith("Type=")
        else line.replace(unit, name) if "Directory=" in line
        else line
        for line in lines
    ]  # fmt: skip
    Path(f"/run/systemd/system/{name}.service").write_text("\n".join(lines) + "\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", name)
    report = Path(f"/var/lib/private/{name}/report.json")
    found: dict[str, str] = json.loads(report.read_text())
    for folder in ("lib", "cache"):
        run("rm", "-rf", f"/var/{folder}/{name}", f"/var/{folder}/private/{name}")
    return found


def stopping_lets_the_frame_in_flight_have_its_answer() -> str:
    main = pid(SERVER)
    with frozen(main, but=main):
        began = time.monotonic()
        time.sleep(2)  # the camera sees to a query in flight
        run("systemctl", "stop", "--no-block", SERVER)
        until("draining", lambda: any("draining" in t for _, t in journal(SERVER, began)))
    until("the server to stop", lambda: prop(SERVER, "ActiveState") == "inactive")
    assert prop(SERVER, "Result") == "success", prop(SERVER, "Result")
    assert prop(SERVER, "ExecMainStatus") == "0", prop(SERVER, "ExecMainStatus")
    # A second round that would begin now is refused, and round one's answer says so.
    given = [a for a in answers(began) if a["source"] == "edge" and a["error"] is None]
    waited = [a for a in given if a["latency_ms"] >= 1000]
    assert waited, list(answers(began))
    return f"answered after {waited[0]['latency_ms']:.0f} ms, exit status 0"


def without_a_server_the_device_answers_and_says_so() -> str:
    began = time.monotonic()
    found: dict[str, Any] = until(
        "a degraded answer",
        lambda: next((a for a in answers(began) if a["degraded"] and a["label"]), None),
    )
    assert found["source"] == "device", found
    before = pid(DEVICE)
    run("systemctl", "start", SERVER)
    # Without waiting: whoever is ordered after the server does not wait either.
    socket.create_connection(("127.0.0.1", 7070), 2).close()
    answered(time.monotonic())
    assert pid(DEVICE) == before
    return f"degraded: {found['degraded']}"


def _hung(unit: str, **which: int) -> str:
    """Hang threads of `unit` until systemd kills it; it must come back by itself."""
    before, restarts = pid(unit), int(prop(unit, "NRestarts"))
    began = time.monotonic()
    with frozen(before, **which) as held:

        def gone() -> bool:
            bury(held)
            return pid(unit) != before

        until(f"the end of hung {unit}", gone)
    killed = time.monotonic() - began
    assert any("Watchdog timeout" in text for _, text in journal(unit, began)), journal(unit, began)
    until("the restart", lambda: int(prop(unit, "NRestarts")) == restarts + 1)
    until("active again", lambda: prop(unit, "ActiveState") == "active")
    answered(time.monotonic())
    return f"killed after {killed:.1f} s, answering again {time.monotonic() - began:.1f} s after"


def a_hung_server_loop_is_killed_and_restarted() -> str:
    main = pid(SERVER)
    return _hung(SERVER, only=main)


def a_hung_executor_is_killed_and_restarted() -> str:
    main = pid(SERVER)
    return _hung(SERVER, but=main)


def a_hung_device_loop_is_killed_and_restarted() -> str:
    main = pid(DEVICE)
    return _hung(DEVICE, only=main)


def the_watchdog_leaves_a_healthy_pair_alone() -> str:
    for unit in (SERVER, DEVICE):
        since = int(prop(unit, "ActiveEnterTimestampMonotonic")) / 1e6
        time.sleep(max(0.0, since + 2 * WATCHDOG - time.monotonic()))
        assert prop(unit, "NRestarts") == "0", journal(unit)
        assert prop(unit, "WatchdogUSec") == f"{WATCHDOG}s", prop(unit, "WatchdogUSec")
    answered(time.monotonic())
    return f"no restart in {2 * WATCHDOG} s"


def a_second_source_has_a_service_of_its_own() -> str:
    folder = Path("/run/systemd/system/offboard-device@back.service.d")
    folder.mkdir(parents=True)
    (folder / "camera.conf").write_text(f"[Service]\nStandardInput=file:{PIPE}\n")
    settings = Path("/etc/offboard/device.toml").read_text()
    Path("/etc/offboard/device-back.toml").write_text(settings)
    run("systemctl", "stop", DEVICE)  # one reader of the pipe at a time
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "offboard-device@back")
    until("its answer", lambda: any(map(good, answers(0.0, "offboard-device@back"))))
    run("systemctl", "stop", "offboard-device@back")
    run("systemctl", "start", DEVICE)
    return "offboard-device@back answers"


# After the reboot.


def a_reboot_brings_both_back() -> str:
    for unit in (SERVER, DEVICE):
        assert prop(unit, "ActiveState") == "active", run("systemctl", "status", unit, check=False)
        assert prop(unit, "NRestarts") == "0", unit
    return f"{answered(0.0)['label']} {time.monotonic():.1f} s after power on"


def uninstalling_stops_what_runs() -> str:
    process = pid(DEVICE)
    said = run("/srv/offboard/run", "install", "device", "--uninstall")
    left = run("systemctl", "list-units", "--all", "--no-legend", f"{DEVICE}*")
    assert not left, left
    assert not Path(f"/proc/{process}").exists()
    assert not [*Path("/var/lib/private").glob(f"{DEVICE}*")]
    assert not [*Path("/var/cache/private").glob(f"{DEVICE}*")]
    assert prop(SERVER, "ActiveState") == "active"
    return said.splitlines()[-1]


FIRST: tuple[Callable[[], str], ...] = (
    the_device_starts_after_the_server_is_ready,
    ready_means_warm_and_listening,
    a_frame_is_answered,
    the_journal_has_levels_and_no_second_clock,
    the_exposure_is_low,
    the_sandbox_holds,
    stopping_lets_the_frame_in_flight_have_its_answer,
    without_a_server_the_device_answers_and_says_so,
    the_watchdog_leaves_a_healthy_pair_alone,
    a_hung_server_loop_is_killed_and_restarted,
    a_hung_executor_is_killed_and_restarted,
    a_hung_device_loop_is_killed_and_restarted,
    a_second_source_has_a_service_of_its_own,
)
SECOND: tuple[Callable[[], str], ...] = (a_reboot_brings_both_back, uninstalling_stops_what_runs)
CHECKS = tuple(check.__name__ for check in FIRST + SECOND)


def main() -> None:
    booted = PROBE / "booted"
    again = booted.exists()
    booted.touch()
    for check in SECOND if again else FIRST:
        began = time.monotonic()
        try:
            ok, detail = True, check()
        except Exception:
            ok, detail = False, traceback.format_exc()
        seconds = round(time.monotonic() - began, 1)
        row = {"check": check.__name__, "ok": ok, "detail": detail, "seconds": seconds}
        with RESULTS.open("a") as results:
            results.write(json.dumps(row) + "\n")
    log = PROBE / f"journal-{'second' if again else 'first'}-boot"
    log.write_text(run("journalctl", "-b", "-o", "short-monotonic", "--no-pager"))
    os.sync()
    run("systemctl", "poweroff" if again else "reboot", "--no-block")


if __name__ == "__main__":
    if sys.argv[1:] == ["camera"]:
        camera()
    else:
        main()
