"""What DeepCOD chooses its offloading point by: times of every point and rate, on both sides.

Yao et al., "Deep Compressive Offloading", SenSys 2020, section 4.1: on the device the layers up to
the cut, the encoder and its code; on the server the decoder and the layers after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from common.errors import ConfigError
from common.profile import Profile
from device.bundle import Bundle
from device.partition import LINKS
from device.strategies import deepcod
from device.strategy import Content, Frame, Plan
from profiles.measuring import milliseconds
from server.memory import NOTHING
from server.serving import Serving
from server.strategies import deepcod as served

NAME = deepcod.NAME


def measure(profile: Profile) -> dict[str, Any]:
    """`measured`, a row for each point and rate, and `links`, what a cold start plans with.

    With several points, `point` becomes "auto". Bytes are those that the profile has of each
    codec: the mean over held-out frames.
    """
    points = [each for each in profile.manifest.params(NAME).get("points", ()) if each["rates"]]
    if not points:
        raise ConfigError(f"profile {profile.name!r} has no offloading points: train deepcod first")
    present = {file.path for file in profile.manifest.files}
    device = deepcod.create(Bundle(profile.manifest, profile.directory, present))
    server = served.create(Serving(profile))
    frame = Frame(0, "0", content(profile), 0.0)
    made = [
        {"point": point["name"], "rate": rate, **times(device, server, frame, point["name"], rate),
         "bytes": codec["bytes"]}
        for point in points
        for rate, codec in enumerate(point["rates"], 1)
    ]  # fmt: skip
    links = {name: list(link) for name, link in LINKS.items()}
    moving = {"point": deepcod.AUTO} if len(points) > 1 else {}
    return {"measured": made, "links": links, **moving}


def times(
    device: deepcod.DeepCod, server: served.DeepCod, frame: Frame, point: str, rate: int
) -> dict[str, float]:
    """The milliseconds that one frame takes on the device and on the server."""
    plan = Plan(NAME, {"point": point, "rate": rate})
    query = next(device.infer(frame, plan))
    work = server.prepare(query, NOTHING)
    there = milliseconds(lambda: next(device.infer(frame, plan)))
    back = milliseconds(lambda: server.prepare(query, NOTHING))
    back += milliseconds(lambda: server.forward([work]))
    return {"device_ms": round(there, 3), "server_ms": round(back, 3)}


def content(profile: Profile) -> Content:
    """A frame to run on: a smooth random picture, or a sound that rises and falls."""
    random, shape = np.random.default_rng(0), profile.manifest.input
    if profile.manifest.task == "listen":
        time = np.arange(8000, dtype=np.float32) / 8000
        return np.sin(2000 * time * (1 + time)) * np.sin(np.pi * time)
    coarse = torch.from_numpy(random.random((1, 3, 14, 14)))
    size = (shape.height, shape.width)
    wide = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)[0]
    return np.ascontiguousarray((255 * wide.permute(1, 2, 0)).numpy().astype(np.uint8))


def tables(measured: Mapping[str, Any]) -> str:
    """The rows as a Markdown table."""
    lines = ["| point | rate | device ms | server ms | bytes |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {row['point']} | {row['rate']} | {row['device_ms']:.2f} | {row['server_ms']:.2f} "
        f"| {row['bytes']:,.0f} |"
        for row in measured["measured"]
    ]
    return "\n".join(lines)
