"""A profile: the directory that the offline phase makes and the pair loads.

`profile.json` says what is served: task, classes, input, models, strategies and their parameters,
how it was made and how well it does. The device needs only the *manifest* - classes, input,
strategies, and the files under `device/` - which the server hands out, named by its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import ConfigError

FORMAT = 1
PROFILES = Path(__file__).resolve().parent.parent / "profiles"


@dataclass(frozen=True, slots=True)
class Input:
    """What the models look at: frames of `height` x `width` x `channels`, `patch` pixels a side.

    For sounds (task "listen"), the features of `common.sound`: `height` mel bands, `width` frames
    of 10 ms, one channel, patches of 1.
    """

    height: int
    width: int
    channels: int
    patch: int

    @property
    def patches(self) -> int:
        """How many patches a frame has."""
        return (self.height // self.patch) * (self.width // self.patch)


@dataclass(frozen=True, slots=True)
class File:
    """A file of the device bundle: path relative to the profile, sha256, size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The part of a profile that a device needs; its digest names the bundle."""

    name: str
    task: str
    classes: tuple[str, ...]
    input: Input
    strategies: Mapping[str, Mapping[str, Any]]
    files: tuple[File, ...] = ()

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal manifests give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """sha256 of the canonical bytes, hexadecimal: it covers every file by its digest."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Manifest:
        """Read a manifest. Raises ConfigError if it is none."""
        try:
            raw = json.loads(bytes(data))
            return _manifest(raw, raw["files"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is no device manifest: {error!r}") from None

    def params(self, strategy: str) -> Mapping[str, Any]:
        """The profile's parameters of `strategy`. Raises ConfigError if it does not offer it."""
        if strategy not in self.strategies:
            offered = ", ".join(sorted(self.strategies))
            raise ConfigError(
                f"profile {self.name!r} does not offer {strategy!r}: choose one of {offered}"
            )
        return self.strategies[strategy]


@dataclass(frozen=True, slots=True)
class Model:
    """One network of a profile: its kind, weights file, digest and configuration."""

    kind: str
    file: Path
    sha256: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Profile:
    """A whole profile, as the server loads it."""

    directory: Path
    manifest: Manifest
    models: Mapping[str, Model]
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The profile's name."""
        return self.manifest.name

    def read(self, path: str) -> bytes:
        """A file of the device bundle. Raises ConfigError if it is not in the manifest."""
        if path not in {file.path for file in self.manifest.files}:
            raise ConfigError(f"profile {self.name!r} has no device file {path!r}")
        return (self.directory / path).read_bytes()


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def available() -> tuple[str, ...]:
    """The names of the profiles in the repository."""
    return tuple(sorted(path.parent.name for path in PROFILES.glob("*/profile.json")))


def load(name: str | Path) -> Profile:
    """Load a profile by name or directory, checking every file's digest.

    Raises ConfigError: not found, not readable, a field missing, a file missing or changed.
    """
    directory = Path(name)
    if not (directory / "profile.json").is_file():
        directory = PROFILES / name
    path = directory / "profile.json"
    try:
        raw = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        known = ", ".join(available()) or "none yet"
        raise ConfigError(
            f"no profile {str(name)!r}: give a directory with a profile.json, or one of: {known}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    if raw.get("format") != FORMAT:
        raise ConfigError(f"{path} is of format {raw.get('format')}, this program reads {FORMAT}")
    try:
        manifest = _manifest(raw, raw.get("device", {}).get("files", []))
        models = {
            key: Model(m["kind"], directory / _inside(m["file"]), m["sha256"], m["config"])
            for key, m in raw["models"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} lacks or misuses a field: {error!r}") from None
    for file in manifest.files:
        _check(directory / file.path, file.sha256)
    for model in models.values():
        _check(model.file, model.sha256)
    return Profile(directory, manifest, models, raw.get("made", {}))


def _manifest(raw: Mapping[str, Any], files: list[Mapping[str, Any]]) -> Manifest:
    return Manifest(
        name=str(raw["name"]),
        task=str(raw["task"]),
        classes=tuple(str(label) for label in raw["classes"]),
        input=Input(**raw["input"]),
        strategies={str(k): dict(v) for k, v in raw["strategies"].items()},
        files=tuple(File(_inside(f["path"]), f["sha256"], f["size"]) for f in files),
    )


def _inside(path: str) -> str:
    """A relative path that stays inside its directory: it may come over the wire."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ConfigError(f"{path!r} leads out of the profile")
    return str(pure)


def _check(path: Path, digest: str) -> None:
    if not path.is_file():
        raise ConfigError(f"{path} is missing: fetch the profile again, or train it")
    try:
        found = sha256(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if found != digest:
        raise ConfigError(f"{path} is not the file that profile.json names: its sha256 differs")
