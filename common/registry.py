"""The folder is the registry: a strategy is a module of a `strategies` package.

A name from the wire is checked against the folder before anything is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from common.errors import ConfigError


def names(package: str) -> tuple[str, ...]:
    """The modules of `package` (say "device.strategies"), sorted; private ones left out."""
    found = importlib.import_module(package)
    modules = pkgutil.iter_modules(found.__path__)
    return tuple(sorted(m.name for m in modules if not m.name.startswith("_")))


def load(package: str, name: str) -> ModuleType:
    """Import `name` of `package`. Raises ConfigError if the folder has no such module."""
    known = names(package)
    if name not in known:
        raise ConfigError(f"unknown strategy {name!r}: choose one of {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")
