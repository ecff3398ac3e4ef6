"""Scenes with one road sign, rendered by seed: endless, labelled and free of licences.

Needs numpy and Pillow only. The same seed gives the same pixels with the same Pillow version.
A third of the scenes show a large sign on plain ground, a third a middling one, and a third a
small one in clutter, so frames differ in how many of their patches tell the class. Seeds are
divided so that nothing measured was ever trained on:

- ``TRAINING``: seeds 0 to 999,999;
- ``CALIBRATION``: seeds 1,000,000 to 1,999,999, to choose settings on;
- ``EVALUATION``: seeds 2,000,000 to 2,999,999, to report on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from profiles.train.glyphs import CANVAS, CLASSES, sign

__all__ = [
    "CALIBRATION",
    "CLASSES",
    "EVALUATION",
    "SIDE",
    "TRAINING",
    "Box",
    "label_of",
    "render",
    "slug",
    "write",
]

SIDE = 224
TRAINING = range(0, 1_000_000)
CALIBRATION = range(1_000_000, 2_000_000)
EVALUATION = range(2_000_000, 3_000_000)

Box = tuple[int, int, int, int]
"""Left, top, right, bottom of the sign, in pixels of the frame."""
Rgb = tuple[int, int, int]

SIZES = {"large": (110, 190), "middle": (60, 110), "small": (34, 60)}
"""Side of the sign in pixels, by kind of scene."""


def slug(label: int) -> str:
    """The class name as it stands in a file name."""
    return CLASSES[label].replace(" ", "_")


def label_of(name: str) -> int:
    """The label in a file name made by ``write``; ValueError if there is none."""
    _, _, text = Path(name).stem.partition("-")
    return CLASSES.index(text.replace("_", " "))


def write(directory: Path, seeds: Iterable[int]) -> list[Path]:
    """Render ``seeds`` into ``directory`` as ``<seed>-<class>.png``; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in seeds:
        frame, label, _ = render(seed)
        path = directory / f"{seed}-{slug(label)}.png"
        Image.fromarray(frame).save(path, compress_level=1)
        paths.append(path)
    return paths


def render(seed: int) -> tuple[npt.NDArray[np.uint8], int, Box]:
    """One scene: the frame uint8 [224, 224, 3], its label, and the sign's box."""
    rng = np.random.default_rng([7_041, seed])
    label = int(rng.integers(len(CLASSES)))
    kind = ("large", "middle", "small")[int(rng.choice(3, p=(0.34, 0.33, 0.33)))]
    scene = _ground(rng, plain=kind == "large" and rng.random() < 0.8)
    if kind != "large" or rng.random() < 0.3:
        _clutter(rng, scene, int(rng.integers(6, 22)))
    if rng.random() < 0.5:
        scene = scene.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.5))))
    patch = _placed(rng, label, int(rng.integers(*SIZES[kind])))
    width, height = patch.size
    left = int(rng.integers(2, SIDE - width - 1))
    top = int(rng.integers(2, SIDE - height - 1))
    box = (left, top, left + width, top + height)
    _pole(rng, scene, box)
    scene.paste(patch, (left, top), patch)
    if rng.random() < 0.25:
        _hide(rng, scene, box)
    return _camera(rng, scene), label, box


def _colour(rng: np.random.Generator, low: int = 20, high: int = 235) -> Rgb:
    red, green, blue = (int(v) for v in rng.integers(low, high, 3))
    return red, green, blue


def _ground(rng: np.random.Generator, plain: bool) -> Image.Image:
    """Sky over ground, each a soft gradient; not plain: with soft blotches of other colours."""
    rows = np.linspace(0, 1, SIDE)[:, None]
    sky_a, sky_b = (rng.uniform(90, 240, 3) for _ in range(2))
    out = np.repeat((sky_a * (1 - rows) + sky_b * rows)[:, None], SIDE, axis=1)
    horizon = int(rng.uniform(0.35, 1.1) * SIDE)
    if horizon < SIDE:
        out[horizon:] = rng.uniform(40, 170, 3)
    if not plain:
        cells = int(rng.integers(4, 24))
        grey = rng.uniform(0, 255, (cells, cells, 1))
        noise = (0.7 * grey + 0.3 * rng.uniform(0, 255, (cells, cells, 3))).astype(np.uint8)
        soft = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        share = rng.uniform(0.1, 0.5)
        out = out * (1 - share) + np.asarray(soft, dtype=np.float64) * share
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def _clutter(rng: np.random.Generator, scene: Image.Image, count: int) -> None:
    """Buildings, discs, branches and lettering that are no signs."""
    pen = ImageDraw.Draw(scene)
    for _ in range(count):
        x, y = (int(v) for v in rng.integers(-20, SIDE, 2))
        w, h = (int(v) for v in rng.integers(8, 90, 2))
        ink = _colour(rng)
        shape = int(rng.integers(5))
        if shape == 0:
            pen.rectangle((x, y, x + w, y + h), fill=ink)
            for row in range(y + 4, y + h - 6, 12):
                for column in range(x + 4, x + w - 6, 12):
                    pen.rectangle((column, row, column + 5, row + 6), fill=_colour(rng, 10, 120))
        elif shape == 1:
            size = min(w, h)
            pen.ellipse((x, y, x + size, y + size), fill=ink)
        elif shape == 2:
            pen.polygon([(x, y + h), (x + w // 2, y), (x + w, y + h)], fill=ink)
        elif shape == 3:
            end = (x + int(rng.integers(-120, 120)), y + int(rng.integers(-120, 120)))
            pen.line((x, y, *end), fill=ink, width=int(rng.integers(1, 8)))
        else:
            pen.rectangle((x, y, x + w, y + 14), fill=ink)
            for column in range(x + 3, x + w - 5, 7):
                pen.rectangle((column, y + 3, column + 3, y + 10), fill=_colour(rng))


def _placed(rng: np.random.Generator, label: int, size: int) -> Image.Image:
    """The sign, faded, seen from the side, turned and scaled to ``size`` pixels, on nothing."""
    image = sign(label)
    fade = rng.uniform(0.75, 1.05, 3)
    bands = [
        band.point([min(255, int(v * gain)) for v in range(256)])
        for band, gain in zip(image.split()[:3], fade, strict=True)
    ]
    image = Image.merge("RGBA", (*bands, image.getchannel("A")))
    squeeze, shear = float(rng.uniform(0.7, 1.0)), float(rng.uniform(-0.18, 0.18))
    half = CANVAS / 2
    # The matrix maps output to input, so dividing by the squeeze narrows the sign.
    matrix = (1 / squeeze, 0.0, half - half / squeeze, shear, 1.0, -shear * half)
    image = image.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    image = image.rotate(
        float(rng.normal(0, 8)), Image.Resampling.BILINEAR, expand=True, fillcolor=(0, 0, 0, 0)
    )
    bounds = image.getbbox()
    assert bounds is not None
    image = image.crop(bounds)
    scale = size / max(image.size)
    width, height = (max(8, round(edge * scale)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _pole(rng: np.random.Generator, scene: Image.Image, box: Box) -> None:
    left, _, right, bottom = box
    centre = (left + right) // 2
    half = max(1, (right - left) // 26)
    grey = int(rng.integers(60, 190))
    ImageDraw.Draw(scene).rectangle(
        (centre - half, bottom - half * 3, centre + half, SIDE), fill=(grey, grey, grey)
    )


def _hide(rng: np.random.Generator, scene: Image.Image, box: Box) -> None:
    """A branch or a leaf over at most about a fifth of the sign, near its edge."""
    left, top, right, bottom = box
    pen = ImageDraw.Draw(scene)
    ink = _colour(rng, 10, 110)
    size = float(right - left)
    if rng.random() < 0.5:
        start = int(rng.uniform(top, bottom))
        end = start + int(rng.uniform(-0.3, 0.3) * size)
        pen.line((left - 8, start, right + 8, end), fill=ink, width=max(2, int(size // 14)))
        return
    radius = size * float(rng.uniform(0.15, 0.24))
    turn = rng.uniform(0, 2 * math.pi)
    x = (left + right) / 2 + size * 0.45 * math.cos(turn)
    y = (top + bottom) / 2 + (bottom - top) * 0.45 * math.sin(turn)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)


def _camera(rng: np.random.Generator, scene: Image.Image) -> npt.NDArray[np.uint8]:
    """Blur, light from one side, exposure, colour cast and sensor noise."""
    if rng.random() < 0.35:
        scene = scene.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.3))))
    light = np.asarray(scene, dtype=np.float32)
    turn = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
    slope = axis[None, :] * math.cos(turn) + axis[:, None] * math.sin(turn)
    dark = rng.random() < 0.2
    exposure = rng.uniform(0.3, 0.55) if dark else rng.uniform(0.7, 1.15)
    shade = exposure * (1 + float(rng.uniform(0, 0.6)) * slope)
    cast = rng.uniform(0.88, 1.12, 3).astype(np.float32)
    light = light * shade[:, :, None].astype(np.float32) * cast
    light += rng.standard_normal(light.shape, dtype=np.float32) * np.float32(rng.uniform(0, 5))
    return light.clip(0, 255).astype(np.uint8)
