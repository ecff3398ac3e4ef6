"""The bundle cache: checked, atomic, bounded, and refetched where it went bad."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, Unavailable
from device.bundle import KEPT, Bundle, Cache, default_cache, fetch_files, fetch_manifest
from tests.device_stub import local_model, manifest

NOWHERE = Path("/nonexistent")
LOCAL = "device/local.onnx"
FILES = {LOCAL: local_model(), "device/extra.bin": b"extra"}
MANIFEST = manifest(FILES)


class Peer:
    """Hands out files from memory; `asked` lists them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []

    async def fetch(self, path: str) -> bytes:
        self.asked.append(path)
        return self.files[path]


async def run(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def fetched(cache: Cache, bundle: Bundle, peer: Peer) -> None:
    asyncio.run(fetch_files(peer, cache, bundle, bundle.missing(), run))


def filled(root: Path) -> tuple[Cache, Bundle]:
    cache = Cache(root)
    bundle = cache.add(MANIFEST)
    fetched(cache, bundle, Peer(FILES))
    return cache, bundle


def test_a_bundle_is_usable_before_its_files_are_there(tmp_path: Path) -> None:
    bundle = Cache(tmp_path).add(MANIFEST)
    assert bundle.can("amot")
    assert not bundle.can("local")
    assert [file.path for file in bundle.needed("local")] == [LOCAL]
    assert bundle.needed("amot") == []
    with pytest.raises(Unavailable, match="not been fetched"):
        bundle.path(LOCAL)
    with pytest.raises(ConfigError, match="hands out no file"):
        bundle.path("profile.json")


def test_what_is_missing_can_be_asked_by_strategy(tmp_path: Path) -> None:
    files = {LOCAL: b"a", "device/po.onnx": b"b", "device/spare.onnx": b"c"}
    bundle = Cache(tmp_path).add(manifest(files, po={"block": "device/po.onnx"}))
    assert [file.path for file in bundle.missing()] == list(files)
    assert [file.path for file in bundle.missing("amot", "local")] == [LOCAL]
    assert [file.path for file in bundle.missing("po", "local")] == [LOCAL, "device/po.onnx"]
    bundle.present.add(LOCAL)
    assert bundle.missing("local") == []


def test_what_was_fetched_is_found_again(tmp_path: Path) -> None:
    _, bundle = filled(tmp_path)
    assert bundle.path(LOCAL).read_bytes() == FILES[LOCAL]
    again = Cache(tmp_path).open(MANIFEST.digest)
    assert again is not None
    assert again.manifest == MANIFEST
    assert again.missing() == []
    assert again.can("local")


def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    cache, bundle = filled(tmp_path)
    path = bundle.path(LOCAL)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    again = cache.open(MANIFEST.digest)
    assert again is not None
    assert [file.path for file in again.missing()] == [LOCAL]
    peer = Peer(FILES)
    fetched(cache, again, peer)
    assert peer.asked == [LOCAL]
    assert again.path(LOCAL).read_bytes() == FILES[LOCAL]


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"name": "other"}'])
def test_a_damaged_manifest_is_no_bundle(tmp_path: Path, damage: bytes) -> None:
    cache, bundle = filled(tmp_path)
    (bundle.directory.parent / "manifest.json").write_bytes(damage)
    assert cache.open(MANIFEST.digest) is None
    assert cache.add(MANIFEST).missing() == []


def test_an_exchanged_manifest_is_no_bundle(tmp_path: Path) -> None:
    cache, bundle = filled(tmp_path)
    other = manifest(FILES, name="other").to_bytes()
    (bundle.directory.parent / "manifest.json").write_bytes(other)
    assert cache.open(MANIFEST.digest) is None


def test_a_file_that_is_not_the_announced_one_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    bundle = cache.add(MANIFEST)
    with pytest.raises(Unavailable, match="did not arrive"):
        fetched(cache, bundle, Peer({**FILES, LOCAL: b"else"}))
    assert not bundle.can("local")
    assert not (bundle.directory / LOCAL).exists()


def test_the_manifest_is_the_one_announced() -> None:
    peer = Peer({"": MANIFEST.to_bytes()})
    assert asyncio.run(fetch_manifest(peer, MANIFEST.digest)) == MANIFEST
    with pytest.raises(Unavailable, match="not the one it announced"):
        asyncio.run(fetch_manifest(peer, "0" * 64))


def test_each_server_has_its_last_bundle(tmp_path: Path) -> None:
    cache, bundle = filled(tmp_path)
    assert cache.last("[::1]:7070") is None
    cache.remember("[::1]:7070", bundle)
    found = Cache(tmp_path).last("[::1]:7070")
    assert found is not None
    assert found.manifest == MANIFEST
    assert cache.last("10.0.0.1:7070") is None


def test_old_bundles_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = [manifest({}, name=f"number {index}") for index in range(KEPT + 3)]
    for age, each in enumerate(made):
        bundle = cache.add(each)
        os.utime(bundle.directory.parent, (1000 + age, 1000 + age))
    assert [cache.open(each.digest) is not None for each in made] == [False] * 3 + [True] * KEPT


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    bundle = cache.add(MANIFEST)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"No space left on device.*--cache"):
        cache.put(bundle, MANIFEST.files[0], FILES[LOCAL])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]


@pytest.mark.parametrize("digest", ["", "../" * 21 + "x", "A" * 64])
def test_a_digest_names_no_other_place(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ConfigError, match="no digest"):
        Cache(tmp_path).open(digest)


def test_a_damaged_pointer_is_no_bundle(tmp_path: Path) -> None:
    cache, bundle = filled(tmp_path)
    cache.remember("a:1", bundle)
    (tmp_path / "servers" / "a_1").write_text("nonsense")
    assert cache.last("a:1") is None


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFBOARD_CACHE", raising=False)
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/offboard:/var/cache/more")
    assert default_cache() == Path("/var/cache/offboard")
    monkeypatch.setenv("OFFBOARD_CACHE", "/tmp/mine")
    assert default_cache() == Path("/tmp/mine")
