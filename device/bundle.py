"""The bundle: what a device needs of a profile, fetched from the server and kept by digest.

    CACHE/bundles/DIGEST/manifest.json     what the server serves
    CACHE/bundles/DIGEST/files/PATH        the bundle's files, as they arrive
    CACHE/servers/HOST_PORT                the digest last served there

A device needs an address and nothing else; once it has been served, it can answer by its local
model even if it starts while the server is away. Everything is written aside and renamed, so a
power cut leaves no half file, and read back against its sha256, so a worn card's is found out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from common.errors import ConfigError, Unavailable
from common.profile import File, Manifest, sha256

KEPT = 4
"""Bundles kept in the cache: the newest ones."""


class Fetcher(Protocol):
    """What fetching needs of a client."""

    async def fetch(self, path: str) -> bytes:
        """A file of the bundle; "" is the manifest."""
        ...


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest and the directory its files arrive in.

    `present`: paths of the files that are there and have been checked.
    """

    manifest: Manifest
    directory: Path
    present: set[str] = field(default_factory=set)

    def path(self, name: str) -> Path:
        """A file of the bundle. Raises ConfigError (no such file), Unavailable (not there yet)."""
        if name not in {file.path for file in self.manifest.files}:
            raise ConfigError(f"profile {self.manifest.name!r} hands out no file {name!r}")
        if name not in self.present:
            raise Unavailable(f"{name} has not been fetched from the server yet")
        return self.directory / name

    def needed(self, strategy: str) -> list[File]:
        """The files that the parameters of `strategy` name; none for a strategy not offered."""
        params = self.manifest.strategies.get(strategy, {})
        named = set(_texts(params))
        return [file for file in self.manifest.files if file.path in named]

    def can(self, strategy: str) -> bool:
        """Whether the profile offers `strategy` and its files are here."""
        needed = {file.path for file in self.needed(strategy)}
        return strategy in self.manifest.strategies and needed <= self.present

    def missing(self, *strategies: str) -> list[File]:
        """The files that are not here yet: those that `strategies` need, or all without any."""
        wanted = {file.path for name in strategies for file in self.needed(name)}
        return [
            file
            for file in self.manifest.files
            if file.path not in self.present and (not strategies or file.path in wanted)
        ]


def _texts(value: Any) -> Iterator[str]:
    """All strings in JSON values, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def default_cache() -> Path:
    """OFFBOARD_CACHE, systemd's CACHE_DIRECTORY, or ~/.cache/offboard."""
    for name in ("OFFBOARD_CACHE", "CACHE_DIRECTORY"):
        if text := os.environ.get(name):
            return Path(text.split(":")[0])
    return Path.home() / ".cache" / "offboard"


class Cache:
    """Bundles on disk. Blocking: a few small files, and one read of every file on opening."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, digest: str) -> Bundle | None:
        """The bundle of that digest, every file checked; None if it is not (soundly) here."""
        directory = self._directory(digest)
        try:
            manifest = Manifest.from_bytes((directory / "manifest.json").read_bytes())
        except (OSError, ConfigError):
            return None
        if manifest.digest != digest:
            return None
        bundle = Bundle(manifest, directory / "files")
        for file in manifest.files:
            try:
                whole = sha256(bundle.directory / file.path) == file.sha256
            except OSError:
                whole = False  # absent, or the card is failing: fetched again
            if whole:
                bundle.present.add(file.path)
        return bundle

    def add(self, manifest: Manifest) -> Bundle:
        """Begin the bundle of `manifest` and drop the oldest ones beyond KEPT.

        Raises ConfigError if the cache cannot be written.
        """
        directory = self._directory(manifest.digest)
        self._write(directory / "manifest.json", manifest.to_bytes())
        others = [path for path in directory.parent.iterdir() if path != directory]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[KEPT - 1 :]:
            import shutil  # seldom needed, and it brings three compressors along

            shutil.rmtree(path, ignore_errors=True)
        return self.open(manifest.digest) or Bundle(manifest, directory / "files")

    def put(self, bundle: Bundle, file: File, data: bytes) -> None:
        """Keep a file of the bundle. Raises ConfigError if the cache cannot be written."""
        path = bundle.directory / file.path
        self._write(path, data)
        if sha256(path) != file.sha256:
            path.unlink()
            raise Unavailable(f"{file.path} did not arrive as the manifest names it")
        bundle.present.add(file.path)

    def last(self, server: str) -> Bundle | None:
        """The bundle that `server` (an address) last served; None if it is not here."""
        try:
            digest = self._pointer(server).read_text()
        except OSError:
            return None
        try:
            return self.open(digest)
        except ConfigError:
            return None

    def remember(self, server: str, bundle: Bundle) -> None:
        """Note that `server` serves `bundle`. Raises ConfigError if the cache is not writable."""
        directory = self._directory(bundle.manifest.digest)
        os.utime(directory)
        self._write(self._pointer(server), bundle.manifest.digest.encode())

    def _directory(self, digest: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ConfigError(f"{digest!r} is no digest")
        return self._root / "bundles" / digest

    def _pointer(self, server: str) -> Path:
        return self._root / "servers" / re.sub(r"[^\w.-]", "_", server)

    def _write(self, path: Path, data: bytes) -> None:
        # Another device on this machine may write the same file at the same time.
        new = path.with_name(f".new-{os.getpid()}-{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with new.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the cache {self._root} cannot be written ({error.strerror}): "
                "give a directory with --cache"
            ) from None


async def fetch_manifest(client: Fetcher, digest: str) -> Manifest:
    """What the server serves. Raises Unavailable if it is not what its Welcome announced."""
    manifest = Manifest.from_bytes(await client.fetch(""))
    if manifest.digest != digest:
        raise Unavailable("the server's manifest is not the one it announced")
    return manifest


async def fetch_files(
    client: Fetcher, cache: Cache, bundle: Bundle, files: list[File], run: Any
) -> None:
    """Fetch `files` into the cache; `run(function, *args)` runs blocking work off the loop.

    Raises Unavailable or Refused where the server does not hand one out.
    """
    for file in files:
        if file.path not in bundle.present:
            data = await client.fetch(file.path)
            await run(cache.put, bundle, file, data)
