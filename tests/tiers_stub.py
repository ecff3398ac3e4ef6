"""Files of DIMEC-DC and DIMEE small enough for tests: pictures that their brightness tells apart.

The layers are those of the strategy janus; the exits tell which of four quarters the mean
brightness lies in, where tokens are pixels and the layers leave them as they are.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

NAMES = ("dimec", "dimee")
CENTRES = np.array([32, 96, 160, 224], np.float32)
LAYERS = 2
SHARED: dict[str, Any] = {
    "mobile": 1, "edge": 2, "exits": "device/exits.npz", "tiers": "device/tiers.npz",
    "route": "cloud",
}  # fmt: skip


def offered(janus: dict[str, Any]) -> dict[str, Any]:
    """The parameters of both strategies, with the layers that those of `janus` name."""
    layers = {key: janus[key] for key in ("weights", "embed", "blocks", "last")}
    return {name: {**SHARED, **layers} for name in NAMES}


def files(width: int) -> dict[str, bytes]:
    """The bundle's files, for tokens of `width` values."""
    weights = np.repeat(2 * CENTRES[None, None] / width, width, 1) / 100
    pools = np.stack([np.full(width, level, np.float32) for level in (20, 120, 220)])
    return {
        "device/exits.npz": npz(
            weights=np.repeat(weights, LAYERS, 0).astype(np.float32),
            biases=np.repeat(-(CENTRES**2)[None] / 100, LAYERS, 0).astype(np.float32),
            eps=np.float32(1e-6),
        ),
        "device/tiers.npz": npz(means=pools, counts=np.array([5, 5, 5])),
    }


def npz(**arrays: Any) -> bytes:
    """An .npz file."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()
