"""Clips of a road sign that moves, rendered by seed: what the class is, no single frame tells.

A clip is 16 frames of 64 pixels square. One of three signs moves left, right, up or down, or comes
nearer or goes away, before a still background, often with another sign standing in it. Where it is
and how large in the middle of the clip is drawn alike for every motion. Needs numpy and Pillow
only; seeds are divided as in ``signs``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from profiles.train import glyphs
from profiles.train.photos import Photos, cache_dir

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
FRAMES, SIDE = 16, 64
SHOWN = ("give way", "no entry", "parking")
MOTIONS = ("left", "right", "up", "down", "nearer", "away")
CLASSES = tuple(f"{sign}, {motion}" for motion in MOTIONS for sign in SHOWN)
REVERSED = ("right", "left", "down", "up", "away", "nearer")
"""What each motion is in a clip that runs backwards."""
BACKWARDS = np.array(
    [SHOWN.index(sign) + len(SHOWN) * MOTIONS.index(back) for back in REVERSED for sign in SHOWN]
)
"""The label of a clip that runs backwards, by its label."""
SPRITE = 64


PATCH, STEP = 16, 2
"""Pixels and frames of a tubelet."""
BACKGROUND = len(CLASSES)
"""Label of a tubelet in which nothing moves."""


@dataclass(frozen=True)
class Clips(Photos):
    """Clips as models look at them, and ``signs`` float32 [n, 16, 3]: where the moving one is.

    ``frames`` is uint8 [n, 16 * 64, 64, 3]: a clip's frames below each other. ``signs`` holds the
    centre (x, y) and the size, in pixels.
    """

    signs: F32


def render(seed: int) -> tuple[U8, int, F32]:
    """One clip: its frames uint8 [16, 64, 64, 3], its label, the sign's places [16, 3]."""
    rng = np.random.default_rng([9_221, seed])
    label = int(rng.integers(len(CLASSES)))
    motion, shown = divmod(label, len(SHOWN))
    back = _ground(rng)
    if rng.random() < 0.5:
        other = SHOWN[(shown + int(rng.integers(1, len(SHOWN)))) % len(SHOWN)]
        size = rng.uniform(14, 26)
        at = rng.uniform(8, SIDE - 8, 2)
        _paste(back, _sprite(rng, other), at[0], at[1], size)
    sprite = _sprite(rng, SHOWN[shown])
    times = np.linspace(-1, 1, FRAMES)
    x, y, sizes = _path(rng, MOTIONS[motion], times)
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.float32)
    for place in range(FRAMES):
        frames[place] = back
        _paste(frames[place], sprite, x[place], y[place], sizes[place])
    frames *= rng.uniform(0.6, 1.2)
    frames += rng.standard_normal(frames.shape, dtype=np.float32) * np.float32(rng.uniform(0, 5))
    places = np.stack((x, y, sizes), -1).astype(np.float32)
    return frames.clip(0, 255).astype(np.uint8), label, places


def write(directory: Path, seeds: Iterable[int]) -> list[Path]:
    """Render ``seeds`` into folders ``<seed>-<sign>-<motion>`` of PNG frames; returns these."""
    folders = []
    for seed in seeds:
        frames, label, _ = render(seed)
        folder = directory / f"{seed}-{slug(label)}"
        folder.mkdir(parents=True, exist_ok=True)
        for place, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{place:02}.png", compress_level=1)
        folders.append(folder)
    return folders


def slug(label: int) -> str:
    """The class name as it stands in a folder's name."""
    return CLASSES[label].replace(", ", "-").replace(" ", "_")


def label_of(name: str) -> int:
    """The label in a folder's name made by ``write``; ValueError if there is none."""
    _, _, text = name.partition("-")
    return CLASSES.index(text.replace("-", ", ").replace("_", " "))


def load(seeds: range) -> Clips:
    """The clips of ``seeds``, rendered once for as long as the renderer gives the same pixels."""
    sample = b"".join(render(seed)[0].tobytes() for seed in seeds[:3])
    digest = hashlib.sha256(f"{seeds}".encode() + sample).hexdigest()
    stem = cache_dir() / f"clips-{digest[:16]}"
    frames_path, table_path = stem.with_suffix(".frames.npy"), stem.with_suffix(".npz")
    if not table_path.exists():
        shape = (len(seeds), FRAMES * SIDE, SIDE, 3)
        store = np.lib.format.open_memmap(frames_path, mode="w+", dtype=np.uint8, shape=shape)
        labels = np.empty(len(seeds), np.int64)
        places = np.empty((len(seeds), FRAMES, 3), np.float32)
        for place, seed in enumerate(tqdm(seeds, desc="render", mininterval=5)):
            frames, labels[place], places[place] = render(seed)
            store[place] = frames.reshape(shape[1:])
        store.flush()
        np.savez(table_path, labels=labels, signs=places)
    table = np.load(table_path)
    frames_ = cast(U8, np.load(frames_path, mmap_mode="r"))
    return Clips(frames_, table["labels"], table["signs"])


def augmented(clips: Clips, rng: np.random.Generator) -> Clips:
    """A copy, every clip shifted by some pixels, and about half of them run backwards."""
    frames = np.array(clips.frames).reshape(-1, FRAMES, SIDE, SIDE, 3)
    labels, places = clips.labels.copy(), clips.signs.copy()
    for each in range(len(frames)):
        down, right = rng.integers(-5, 6, 2)
        frames[each] = np.roll(frames[each], (down, right), (1, 2))
        places[each] += (right, down, 0)
        if rng.random() < 0.5:
            frames[each] = frames[each, ::-1].copy()
            labels[each] = BACKWARDS[labels[each]]
            places[each] = places[each, ::-1].copy()
    return Clips(frames.reshape(clips.frames.shape), labels, places)


def tubelets(clips: Clips) -> npt.NDArray[np.int64]:
    """Labels [n, 8 * 16]: the clip's where the sign covers a fifth of the tubelet, BACKGROUND else.

    As in the sign classifier's training, that teaches where to look.
    """
    x, y, size = np.moveaxis(clips.signs.reshape(-1, FRAMES // STEP, STEP, 3).mean(2), -1, 0)
    edges = np.arange(SIDE // PATCH) * PATCH

    def covered(centre: F32) -> F32:
        """Pixels of each row or column of patches that the sign reaches over [n, 8, 4]."""
        low, high = (centre - size / 2)[..., None], (centre + size / 2)[..., None]
        return np.asarray(
            (np.minimum(edges + PATCH, high) - np.maximum(edges, low)).clip(0), np.float32
        )

    share = covered(y)[..., :, None] * covered(x)[..., None, :] / PATCH**2
    labels = np.where(share >= 0.2, clips.labels[:, None, None, None], BACKGROUND)
    return labels.reshape(len(clips.labels), -1).astype(np.int64)


def _path(
    rng: np.random.Generator, motion: str, times: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Centre and size of the sign at ``times`` from -1 to 1; at 0 they tell no motion."""
    x, y = rng.uniform(0.35 * SIDE, 0.65 * SIDE, 2)
    size = rng.uniform(18, 30)
    reach, drift = rng.uniform(9, 20), rng.uniform(-3, 3)
    sizes = np.full(len(times), size)
    along, across = reach * times, drift * times
    match motion:
        case "left":
            return x - along, y + across, sizes
        case "right":
            return x + along, y + across, sizes
        case "up":
            return x + across, y - along, sizes
        case "down":
            return x + across, y + along, sizes
    growth = rng.uniform(1.3, 1.7)
    sign = 1 if motion == "nearer" else -1
    return x + across, y + rng.uniform(-3, 3) * times, size * growth ** (sign * times)


def _ground(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    cells = int(rng.integers(2, 12))
    noise = rng.integers(20, 235, (cells, cells, 3)).astype(np.uint8)
    soft = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    plain = rng.uniform(40, 220, 3)
    share = rng.uniform(0.2, 0.9)
    return (np.asarray(soft) * share + plain * (1 - share)).astype(np.float32)


def _sprite(rng: np.random.Generator, name: str) -> Image.Image:
    image = glyphs.sign(glyphs.CLASSES.index(name))
    turned = image.rotate(float(rng.normal(0, 8)), Image.Resampling.BILINEAR)
    return turned.resize((SPRITE, SPRITE), Image.Resampling.BOX)


def _paste(
    frame: npt.NDArray[np.float32], sprite: Image.Image, x: float, y: float, size: float
) -> None:
    """Draw ``sprite`` centred at (x, y), ``size`` pixels wide, to fractions of a pixel."""
    scale = SPRITE / size
    matrix = (scale, 0.0, SPRITE / 2 - scale * x, 0.0, scale, SPRITE / 2 - scale * y)
    layer = np.asarray(
        sprite.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR),
        np.float32,
    )
    share = layer[..., 3:] / 255
    frame *= 1 - share
    frame += layer[..., :3] * share
