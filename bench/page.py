"""What benches write into docs/: sections of a page, and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.pair import Row
from common.errors import OffboardError


def fill(page: Path, sections: Mapping[str, str]) -> None:
    """Put each text between the lines "<!-- NAME -->" and "<!-- /NAME -->" of `page`.

    Raises OffboardError if a section's lines are missing; then nothing is written.
    """
    text = page.read_text() if page.exists() else ""
    for name, body in sections.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            raise OffboardError(f"{page} has no lines {begin.strip()} and {end}")
        before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]
        text = f"{before}\n{body}\n\n{after}"
    page.write_text(text)


def plot(
    draw: Callable[[Any, Sequence[Row]], None],
    rows: Sequence[Row],
    title: str,
    path: Path,
    ylabel: str = "",
) -> None:
    """Write what `draw` makes of `rows` on a pair of axes as an SVG.

    `ylabel`: of the axes, if `draw` sets no other.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(ylabel)
    draw(axes, rows)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
