"""Adds to a profile directory what a later stage of the offline phase made.

``publish`` writes a profile with its classifier and recovery; stages that build on those (a
calibration, a second inference, a baseline's own model) put theirs in with ``amend``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROFILES = Path(__file__).resolve().parent


def amend(
    directory: Path,
    *,
    models: Mapping[str, tuple[Path, Mapping[str, Any]]] | None = None,
    strategies: Mapping[str, Mapping[str, Any]] | None = None,
    files: Mapping[str, Path] | None = None,
    made: Mapping[str, Any] | None = None,
) -> None:
    """Merge into ``directory``/profile.json; what has the same name is replaced.

    ``models``: kind -> (weights file, config), copied to weights/KIND.safetensors. ``strategies``:
    name -> parameters, merged one by one into those that are there. ``files``: path inside the
    device bundle -> file to copy there. ``made``: merged into the record of how it was made.

    Raises OSError if a file cannot be read or written, ValueError if profile.json is no JSON.
    """
    path = directory / "profile.json"
    profile = json.loads(path.read_text())
    for kind, (source, config) in (models or {}).items():
        place = f"weights/{kind}.safetensors"
        sha256 = _copy(source, directory / place)
        profile["models"][kind] = {
            "kind": kind, "file": place, "sha256": sha256, "config": dict(config)
        }  # fmt: skip
    for name, params in (strategies or {}).items():
        profile["strategies"].setdefault(name, {}).update(params)
    handed = {file["path"]: file for file in profile["device"]["files"]}
    for place, source in (files or {}).items():
        sha256 = _copy(source, directory / place)
        size = (directory / place).stat().st_size
        handed[place] = {"path": place, "sha256": sha256, "size": size}
    profile["device"]["files"] = [handed[place] for place in sorted(handed)]
    profile["made"].update(made or {})
    part = path.with_suffix(".part")
    part.write_text(_readable(profile) + "\n")
    part.replace(path)


def _readable(profile: Any) -> str:
    """Indented JSON, a list of numbers on one line."""
    text = json.dumps(profile, indent=2)
    return re.sub(r"\[\s+([-\d.,e\s]+?)\s+\]", _on_one_line, text)


def _on_one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[1].split())}]"


def _copy(source: Path, target: Path) -> str:
    """Copy a file; its sha256 in hexadecimal."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
    return hashlib.sha256(target.read_bytes()).hexdigest()
