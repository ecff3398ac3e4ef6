"""The parameters of a strategy: what they may be, and where their values come from.

A strategy's module states them as PARAMS; the profile sets them, and the user's --set wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: its default (which gives its type), and its range or its choices.

    `words`: what may stand in the place of a number.
    """

    default: float | int | str
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> float | int | str:
        """`value` (also as text) as this parameter. Raises ConfigError saying what it may be."""
        if value in self.words:
            return str(value)
        kind = type(self.default)
        try:
            typed = kind(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{name}={value}: {name} is {self}") from None
        right = typed in self.choices if isinstance(typed, str) else self._holds(typed)
        # A whole number must not be made of 1.5 in silence.
        if not right or (not isinstance(value, str) and typed != value):
            raise ConfigError(f"{name}={value}: {name} is {self}")
        return typed

    def _holds(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        words = "".join(f" or {word!r}" for word in self.words)
        return f"{kind} from {self.low:g} to {self.high:g}{words}"


Params = Mapping[str, Param]


def from_profile(params: Params, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter, as the profile sets it; what only the server reads is left out."""
    return {
        name: param.check(name, given[name]) if name in given else param.default
        for name, param in params.items()
    }


def from_user(strategy: str, params: Params, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the user sets, checked. Raises ConfigError: unknown name, value out of range."""
    for name in given:
        if name not in params:
            known = ", ".join(f"{key} ({param})" for key, param in params.items()) or "none"
            raise ConfigError(f"{strategy!r} has no parameter {name!r}; it has: {known}")
    return {name: params[name].check(name, value) for name, value in given.items()}
