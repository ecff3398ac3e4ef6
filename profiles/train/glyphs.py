"""Road signs drawn from shapes alone (there is no font to rely on): numpy and Pillow only.

Every sign is drawn once on a square RGBA canvas of ``CANVAS`` pixels with a transparent ground.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from PIL import Image, ImageDraw

CANVAS = 256
CENTRE = CANVAS / 2

RED = (196, 24, 32, 255)
WHITE = (242, 242, 238, 255)
BLUE = (18, 72, 168, 255)
BLACK = (22, 22, 22, 255)
YELLOW = (246, 190, 20, 255)

Ink = tuple[int, int, int, int]
Point = tuple[float, float]
Pen = ImageDraw.ImageDraw


def _regular(pen: Pen, sides: int, radius: float, turn: float, ink: Ink) -> None:
    angles = [math.radians(turn + 360 * i / sides) for i in range(sides)]
    pen.polygon(
        [(CENTRE + radius * math.cos(a), CENTRE + radius * math.sin(a)) for a in angles], fill=ink
    )


def _disc(pen: Pen, radius: float, ink: Ink) -> None:
    pen.ellipse((CENTRE - radius, CENTRE - radius, CENTRE + radius, CENTRE + radius), fill=ink)


def _bar(pen: Pen, left: float, top: float, right: float, bottom: float, ink: Ink) -> None:
    pen.rectangle((left, top, right, bottom), fill=ink)


def _triangle(pen: Pen, upright: bool) -> None:
    turn = -90.0 if upright else 90.0
    shift = 22 if upright else -22
    for radius, ink in ((138.0, RED), (92.0, WHITE)):
        angles = [math.radians(turn + 120 * i) for i in range(3)]
        points = [
            (CENTRE + radius * math.cos(a), CENTRE + shift + radius * math.sin(a)) for a in angles
        ]
        pen.polygon(points, fill=ink)


_SEGMENTS = {"0": "abcdef", "3": "abcdg", "5": "acdfg", "8": "abcdefg"}


def _digit(pen: Pen, symbol: str, left: float, top: float, width: float, height: float) -> None:
    """One digit in seven thick segments."""
    t = width * 0.3
    mid = top + height / 2
    boxes = {
        "a": (left, top, left + width, top + t),
        "g": (left, mid - t / 2, left + width, mid + t / 2),
        "d": (left, top + height - t, left + width, top + height),
        "f": (left, top, left + t, mid),
        "b": (left + width - t, top, left + width, mid),
        "e": (left, mid, left + t, top + height),
        "c": (left + width - t, mid, left + width, top + height),
    }
    for segment in _SEGMENTS[symbol]:
        _bar(pen, *boxes[segment], BLACK)


def _limit(pen: Pen, number: str) -> None:
    _disc(pen, 126, RED)
    _disc(pen, 98, WHITE)
    for place, symbol in enumerate(number):
        _digit(pen, symbol, 70 + 64 * place, 78, 52, 100)


def _arrow(pen: Pen, turn: float) -> None:
    """A white arrow on a blue disc, pointing up and turned ``turn`` degrees clockwise."""
    _disc(pen, 126, WHITE)
    _disc(pen, 120, BLUE)
    shape: list[Point] = [
        (0, -92), (58, -26), (22, -26), (22, 86), (-22, 86), (-22, -26), (-58, -26),
    ]  # fmt: skip
    a = math.radians(turn)
    pen.polygon(
        [
            (
                CENTRE + x * math.cos(a) - y * math.sin(a),
                CENTRE + x * math.sin(a) + y * math.cos(a),
            )
            for x, y in shape
        ],
        fill=WHITE,
    )


def _stroke(pen: Pen, turn: float, length: float, width: float, ink: Ink) -> None:
    a = math.radians(turn)
    x, y = length / 2 * math.cos(a), length / 2 * math.sin(a)
    pen.line((CENTRE - x, CENTRE - y, CENTRE + x, CENTRE + y), fill=ink, width=round(width))


def _stop(pen: Pen) -> None:
    _regular(pen, 8, 132, 22.5, WHITE)
    _regular(pen, 8, 122, 22.5, RED)
    for place in range(4):
        left = 44 + 44 * place
        _bar(pen, left, 96, left + 32, 160, WHITE)
        _bar(pen, left + 10, 110, left + 22, 146, RED)


def _give_way(pen: Pen) -> None:
    _triangle(pen, upright=False)


def _no_entry(pen: Pen) -> None:
    _disc(pen, 126, WHITE)
    _disc(pen, 120, RED)
    _bar(pen, 42, 106, 214, 150, WHITE)


def _priority(pen: Pen) -> None:
    _regular(pen, 4, 128, 0, WHITE)
    _regular(pen, 4, 90, 0, YELLOW)


def _no_parking(pen: Pen) -> None:
    _disc(pen, 126, RED)
    _disc(pen, 98, BLUE)
    _stroke(pen, 45, 214, 30, RED)


def _no_stopping(pen: Pen) -> None:
    _no_parking(pen)
    _stroke(pen, -45, 214, 30, RED)


def _danger(pen: Pen) -> None:
    _triangle(pen, upright=True)
    pen.polygon([(114, 92), (142, 92), (136, 160), (120, 160)], fill=BLACK)
    pen.ellipse((114, 168, 142, 194), fill=BLACK)


def _crossroads(pen: Pen) -> None:
    _triangle(pen, upright=True)
    pen.line((98, 118, 158, 188), fill=BLACK, width=22)
    pen.line((158, 118, 98, 188), fill=BLACK, width=22)


def _parking(pen: Pen) -> None:
    _bar(pen, 8, 8, 248, 248, WHITE)
    _bar(pen, 16, 16, 240, 240, BLUE)
    pen.ellipse((88, 44, 190, 146), fill=WHITE)
    pen.ellipse((118, 74, 160, 116), fill=BLUE)
    _bar(pen, 84, 44, 122, 212, WHITE)


def _end(pen: Pen) -> None:
    _disc(pen, 126, BLACK)
    _disc(pen, 118, WHITE)
    for shift in (-36, 0, 36):
        pen.line(
            (CENTRE - 76 + shift, CENTRE + 76 + shift, CENTRE + 76 + shift, CENTRE - 76 + shift),
            fill=BLACK,
            width=14,
        )


_DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "stop": _stop,
    "give way": _give_way,
    "no entry": _no_entry,
    "priority road": _priority,
    "speed limit 30": lambda pen: _limit(pen, "30"),
    "speed limit 50": lambda pen: _limit(pen, "50"),
    "speed limit 80": lambda pen: _limit(pen, "80"),
    "turn left": lambda pen: _arrow(pen, -90),
    "turn right": lambda pen: _arrow(pen, 90),
    "straight ahead": lambda pen: _arrow(pen, 0),
    "no parking": _no_parking,
    "no stopping": _no_stopping,
    "danger": _danger,
    "crossroads": _crossroads,
    "parking": _parking,
    "end of restrictions": _end,
}

CLASSES = tuple(_DRAWINGS)
"""The sign classes; a label is an index into this tuple."""


@cache
def sign(label: int) -> Image.Image:
    """The sign of class ``label`` as an RGBA image of ``CANVAS`` pixels square; do not modify."""
    image = Image.new("RGBA", (CANVAS, CANVAS), (0, 0, 0, 0))
    _DRAWINGS[CLASSES[label]](ImageDraw.Draw(image))
    return image
