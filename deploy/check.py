"""Checks a settings file before a service is started with it: check.py device|server FILE.

Exit status 2 and one line on standard error if the program would refuse it. What only the running
program can know (is the camera there, the port free, the GPU awake) is not looked at.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common.errors import ConfigError
from common.settings import load


def check_server(file: str) -> None:
    """Raises ConfigError."""
    from common.profile import load as load_profile
    from server.listener import check_exposure, parse_address
    from server.settings import Settings

    settings = load(Settings, ["--config", file], prog="check", table="server", environ={})
    settings.check()
    host, _ = parse_address(settings.listen)
    check_exposure(host, token=settings.secret(), insecure=settings.insecure)
    if settings.metrics:
        parse_address(settings.metrics)
    profile = load_profile(settings.profile)
    settings.cloud_secret()
    if settings.cloud:
        parse_address(settings.cloud)
    for name in settings.names or ():
        profile.manifest.params(name)


def check_device(file: str) -> None:
    """Raises ConfigError."""
    from device.cli import Settings, parameters
    from device.connect import offboard_connect
    from device.source import open_source

    settings = load(Settings, ["--config", file], prog="check", table="device", environ={})
    offboard_connect(
        settings.server,
        strategy=settings.strategy,
        params=parameters(settings.set),
        deadline_ms=settings.deadline or None,
        cache=Path("/nonexistent"),
    )
    if settings.in_flight < 0 or not settings.patience >= 0:
        raise ConfigError("in_flight and patience: give zero or more")
    if not settings.source.startswith("camera:"):
        open_source(settings.source)


def main(argv: list[str]) -> int:
    """0: the file will do; 2: it will not."""
    role, file = argv
    try:
        {"server": check_server, "device": check_device}[role](file)
    except ConfigError as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
