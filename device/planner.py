"""Which strategy answers the next frame, and with which parameters. Pure.

For now the user (or the profile) chooses, and the planner steps aside to `local` while the link
is known to be down, so that no frame waits out its deadline for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common import registry
from common.errors import ConfigError
from common.profile import Manifest
from device.params import Params, from_user
from device.strategy import Plan

STRATEGIES = "device.strategies"
LOCAL = "local"
PREFERENCE = ("amot", "jpeg", "raw", "dimee", "dimec", LOCAL)
"""What is taken where nobody chooses: the first that the profile offers."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user asked for. `strategy` None: the profile's first of PREFERENCE.

    `params`: values, or their texts, for that strategy. `deadline_ms` None: no deadline.
    `profile`: the only one to be answered by; None: whichever the server has.
    """

    strategy: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    deadline_ms: float | None = None
    profile: str | None = None

    def check(self) -> None:
        """Raises ConfigError for what is wrong whichever profile the server has."""
        if self.deadline_ms is not None and not self.deadline_ms > 0:
            raise ConfigError(f"deadline {self.deadline_ms:g}: give milliseconds above zero")
        if self.strategy is not None:
            from_user(self.strategy, params_of(self.strategy), self.params)


def params_of(strategy: str) -> Params:
    """The parameters a strategy has. Raises ConfigError if there is no such strategy."""
    params: Params = registry.load(STRATEGIES, strategy).PARAMS
    return params


class Planner:
    """Plans frames for one profile. `strategy`: the one that answers while all is well."""

    def __init__(self, manifest: Manifest, choice: Choice) -> None:
        """Raises ConfigError if the profile is another, or does not offer what was chosen."""
        choice.check()
        if choice.profile not in (None, manifest.name):
            raise ConfigError(
                f"the server serves the profile {manifest.name!r}, not {choice.profile!r}"
            )
        self.strategy = choice.strategy or _default(manifest)
        manifest.params(self.strategy)
        self.deadline_ms = choice.deadline_ms
        self._params = from_user(self.strategy, params_of(self.strategy), choice.params)

    def plan(self, *, connected: bool, local: bool) -> Plan:
        """The plan of the next frame. `local`: whether the local model could answer."""
        if not connected and local and self.strategy != LOCAL:
            return Plan(LOCAL, {}, self.deadline_ms)
        return Plan(self.strategy, self._params, self.deadline_ms)


def _default(manifest: Manifest) -> str:
    for name in PREFERENCE:
        if name in manifest.strategies:
            return name
    raise ConfigError(f"profile {manifest.name!r} offers no strategy that this device knows")
