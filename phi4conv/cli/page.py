"""A page of text for people: headings, aligned rows, lines cut to the terminal, colours where they are wanted."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from phi4conv.cli.support import printable

if TYPE_CHECKING:
    from phi4conv.gguf_file.layout import Defect

Row = tuple[str, str]

# A longer label stands out of its column: one long key must not widen hundreds of thousands of rows.
WIDEST_LABEL = 60


class Page:
    """Lines for people, printed at once; long ones are cut to the terminal's width, and whole where there is none."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        # Python 3.10 passes on a terminal's own word that it has no columns.
        self.width = (shutil.get_terminal_size().columns or 80) if sys.stdout.isatty() else None

    def add(self, text: str = "", *, cut: bool = False, **style: Any) -> None:
        """Add one line, in a style of click's."""
        line = fitted(text, self.width) if cut and self.width else printable(text)
        self.lines.append(click.style(line, **style) if style else line)

    def show(self) -> None:
        """Print the lines on stdout."""
        click.echo("\n".join(self.lines), color=wants_colour())


def fitted(text: str, width: int) -> str:
    """The text made printable and cut to so many cells of a terminal; a Chinese character takes two.

    >>> fitted("01234567", 8), fitted("0123456789", 8), fitted("一二三四五", 8)
    ('01234567', '0123456…', '一二三 …')
    """
    from rich.cells import cell_len, set_cell_size

    # Of a text of megabytes only the beginning is worked on.
    shown = printable(text[: 4 * width])
    if len(text) <= 4 * width and cell_len(shown) <= width:
        return shown
    return set_cell_size(shown, width - 1) + "…"


def wants_colour() -> bool | None:
    """Whether the environment asks for colours or for none; None where a terminal gets them and nothing else."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def add_section(page: Page, title: str, rows: Iterable[Row]) -> None:
    """A heading and aligned rows; nothing when there are no rows."""
    rows = list(rows)
    if not rows:
        return
    width = min(WIDEST_LABEL, max(len(label) for label, _ in rows))
    page.add(title, cut=True, bold=True)
    for label, value in rows:
        page.add(f"  {label:<{width}}  {value}", cut=True)
    page.add()


def add_defects(page: Page, defects: tuple[Defect, ...]) -> None:
    """Every defect in two lines: code and place, then what is wrong."""
    if not defects:
        page.add("no defects in the format", bold=True)
        return
    page.add(f"{len(defects)} defect{'s' if len(defects) > 1 else ''} in the format", bold=True, fg="red")
    for defect in defects:
        place = "" if defect.offset is None else f" (byte {defect.offset:,})"
        page.add(f"  {defect.code}  {defect.where}{place}", cut=True, fg="red")
        page.add(f"    {defect.message}")
