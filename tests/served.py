"""What serves each strategy found, and the settings with which its answers stay the same."""

from __future__ import annotations

from common import profile, registry

PROFILES = ("signs", "imagenette")
"""A strategy is served from the first that offers it."""
SERVED = {
    name: next(each for each in PROFILES if name in profile.load(each).manifest.strategies)
    for name in registry.names("device.strategies")
}
"""Every strategy found, and its profile."""
OFFERED = tuple(sorted(SERVED, key=lambda name: PROFILES.index(SERVED[name])))
STILL = {
    "amot": {"slo_objective": "fixed"},
    "deepcod": {"point": "input"},
    "dimec": {"route": "edge"},
    "dimee": {"route": "edge"},
    "janus": {"split": 2, "alpha": 0.9},
}
"""Settings of strategies whose answers would otherwise depend on the link or on the frames before,
and could not be compared."""


def options(strategy: str) -> list[str]:
    """Those settings, as words of the device's command."""
    words = STILL.get(strategy, {}).items()
    return [word for key, value in words for word in ("--set", f"{key}={value}")]
