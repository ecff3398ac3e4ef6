"""What `bench deepcod` runs, and what it makes of that: settings, choices, latencies. Pure.

The settings are those that the profile holds, made and chosen on training frames held out
(`profiles.offloading`, `profiles.train.deepcod_stage`): none is chosen by what is measured here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.pair import Row
from common.profile import Manifest

INPUT = "input"
METHODS = {
    "DeepCOD": ("deepcod",),
    "Offload-AE+": ("ae",),
    "Offload-Lossy": ("lossy", "jpeg"),
    "Offload-CS": ("cs",),
    "Offload-Intp": ("intp",),
    "WebP": ("webp",),
    "Offload": ("lossless",),
    "On-Device": ("device",),
}
"""The paper's names, and the codings that each chooses from. WebP stands beside them."""
LOSS, MOST = 0.01, 0.05
"""Accuracy that a setting may lose on held-out frames; more, where a method has none so good."""
MBPS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 115.0, 230.0, 450.0)
"""The paper's range (section 6.6), evenly spaced in ratios."""
RTT = 2.3
"""Milliseconds of a round trip: Wi-Fi's."""
WIFI = 450.0


@dataclass(frozen=True)
class Config:
    """One row to measure. `expected`: its accuracy on held-out frames, None if not known."""

    method: str
    coding: str
    point: str
    rate: int
    strategy: str
    settings: Mapping[str, Any]
    expected: float | None = None

    @property
    def name(self) -> str:
        """Point, coding and rate."""
        return f"{self.point} {self.coding} {self.rate}"


def configurations(manifest: Manifest, quick: bool = False) -> list[Config]:
    """Every row; `quick`: of each method and point the setting that `chosen` takes."""
    made = list(_all(manifest))
    if not quick:
        return made
    whole = next((c.expected for c in made if c.coding == "lossless"), None)
    kept = []
    for method in METHODS:
        for point in dict.fromkeys(c.point for c in made):
            found = [c for c in made if (c.method, c.point) == (method, point)]
            best = chosen(found, whole, expected_bytes(manifest))
            kept += [best] if best else []
    return kept


def _all(manifest: Manifest) -> Iterator[Config]:
    points = manifest.params("deepcod").get("points", ())
    offload = manifest.params("offload")
    for point in points:
        for rate, codec in enumerate(point["rates"], 1):
            settings = {"point": point["name"], "rate": rate}
            expected = codec.get("accuracy")
            if expected is not None and "whole" in codec and "whole" in offload:
                expected += offload["whole"] - codec["whole"]  # it was held to other frames
            yield Config("DeepCOD", "deepcod", point["name"], rate, "deepcod", settings, expected)
    for point in offload["signals"]:
        tables = offload["settings"].get(point, {})
        whole = offload.get("whole")
        for method, codings in METHODS.items():
            for coding in codings:
                rows: Sequence[Mapping[str, Any]] = tables.get(coding, ())
                if coding == "lossless":
                    rows = ({"accuracy": whole},)
                elif coding == "ae" and point == INPUT and "autoencoder" in offload:
                    rows = ({"accuracy": offload["ae"]["accuracy"]},)
                elif coding == "device" and point == INPUT and "tail" in offload:
                    rows = ({"accuracy": whole},)
                for rate, row in enumerate(rows, 1):
                    settings = {"method": coding, "point": point, "rate": rate}
                    yield Config(method, coding, point, rate, "offload", settings, row["accuracy"])


def expected_bytes(manifest: Manifest) -> dict[str, float]:
    """Bytes on held-out frames by the name of a config."""
    found = {
        f"{point['name']} deepcod {rate}": float(codec["bytes"])
        for point in manifest.params("deepcod").get("points", ())
        for rate, codec in enumerate(point["rates"], 1)
    }
    for point, tables in manifest.params("offload").get("settings", {}).items():
        for coding, rows in tables.items():
            for rate, row in enumerate(rows, 1):
                found[f"{point} {coding} {rate}"] = float(row["cost"])
    if "ae" in manifest.params("offload"):
        found[f"{INPUT} ae 1"] = float(manifest.params("offload")["ae"]["cost"])
    return found


def chosen(
    found: Sequence[Config], whole: float | None, size: Mapping[str, float]
) -> Config | None:
    """Of one method's settings at one point the one of fewest bytes that loses little enough.

    At most LOSS of `whole`, the accuracy without loss; if none does, the most accurate one.
    """
    if not found:
        return None
    enough = [c for c in found if c.expected is None or whole is None or c.expected >= whole - LOSS]
    if not enough:
        return max(found, key=lambda c: c.expected or 0.0)
    return min(enough, key=lambda c: size.get(c.name, 0.0))


def network_ms(size: float, mbps: float, rtt: float = RTT) -> float:
    """Milliseconds that `size` bytes up take, and the round trip."""
    return size * 8 / (mbps * 1e3) + (rtt if size else 0.0)


def latency_ms(row: Row, mbps: float, device: float = 1.0, server: float = 1.0) -> float:
    """End to end: measured compute, each side's times a factor, and what the link takes."""
    compute = device * row["device_ms"] + server * row["server_ms"]
    return float(compute + network_ms(row["bytes_up"], mbps))


def fastest(
    rows: Sequence[Row], method: str, mbps: float, device: float = 1.0, server: float = 1.0
) -> Row | None:
    """The row of a method at the point that equation 14 takes; every method may move it.

    Only rows that lose at most MOST on held-out frames, as in the paper (section 6.4).
    """
    found = [row for row in rows if row["method"] == method and row["chosen"] and row["fit"]]
    return min(found, key=lambda row: latency_ms(row, mbps, device, server), default=None)


PHONE = 12.0
"""How many times slower than this machine's core the paper's Pixel is: ResNet-50's 4.1 G
multiply-adds take it 650 ms (section 2), 6.3 G a second; here the CNN's 138 M take 1.9 ms."""
