"""phi4conv inspect."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phi4conv.cli.support import Command, gibibytes, output_options, printable, show_json

if TYPE_CHECKING:
    from phi4conv.gguf_file.layout import Defect
    from phi4conv.inspect import Inspection, VocabularySummary

Row = tuple[str, str]

# A longer label stands out of its column: one long key must not widen hundreds of thousands of rows.
WIDEST_LABEL = 60


@click.command(cls=Command)
@click.argument("file", metavar="FILE.gguf", type=click.Path(path_type=Path))
@output_options
def inspect(file: Path, *, as_json: bool, quiet: bool) -> None:  # noqa: ARG001  # inspect has no messages to silence
    """Show what a GGUF says about itself, and every defect of its format.

    Reads the header alone, so that a file of any size takes a moment. Defects do not change the exit
    code; a file that is no GGUF gives 2.
    """
    from phi4conv.gguf_file.read import read_gguf
    from phi4conv.inspect import as_document, summarise

    inspection = summarise(read_gguf(file))
    if as_json:
        show_json("inspect", "inspect", **as_document(inspection))
    else:
        show(inspection)


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


def show(inspection: Inspection) -> None:
    """Print the inspection for people."""
    from phi4conv.inspect import shown_value

    page = Page()
    file = inspection.file
    architecture = file.architecture or ""
    add_section(page, file.path.name, container_rows(inspection))
    add_section(
        page, "general", [(pair.key.removeprefix("general."), shown_value(pair)) for pair in inspection.general]
    )
    add_section(
        page,
        architecture,
        [(pair.key.removeprefix(f"{architecture}."), shown_value(pair)) for pair in inspection.hyperparameters],
    )
    if inspection.vocabulary:
        add_section(page, "vocabulary", vocabulary_rows(inspection.vocabulary))
    add_section(page, "other metadata", [(pair.key, shown_value(pair)) for pair in inspection.other])
    add_tensor_types(page, inspection)
    add_defects(page, file.defects)
    page.show()


def container_rows(inspection: Inspection) -> Iterator[Row]:
    """The file as a whole."""
    file = inspection.file
    yield "format", f"GGUF version {file.version}, {file.byte_order}-endian, aligned to {file.alignment} bytes"
    yield "file size", f"{file.file_size:,} bytes, {gibibytes(file.file_size)}"
    if inspection.bits_per_weight is not None:
        yield "tensors", f"{gibibytes(inspection.tensor_bytes)} ({inspection.bits_per_weight:.2f} BPW)"
        yield "parameters", f"{parameters(inspection.weight_count)} in {len(file.tensors)} tensors"
    else:
        yield "tensors", "none"
    if inspection.file_type:
        yield "file type", inspection.file_type
    if not file.header_complete:
        yield "header", "incomplete: only what could be read is shown"


def vocabulary_rows(vocabulary: VocabularySummary) -> Iterator[Row]:
    """The tokenizer."""
    types = ", ".join(f"{count:,} {name}" for name, count in vocabulary.token_types.items())
    yield "model", vocabulary.model or "not given"
    yield "pre-tokenizer", vocabulary.pre or "not given"
    yield "tokens", f"{vocabulary.token_count:,}{': ' if types else ''}{types}"
    yield "merges", f"{vocabulary.merge_count:,}" if vocabulary.merge_count else "none"
    for token in vocabulary.special:
        text = "not in the vocabulary" if token.text is None else token.text
        yield token.role, f"{token.id}  {text}"
    yield "adds bos", yes_or_no(vocabulary.add_bos)
    yield "adds eos", yes_or_no(vocabulary.add_eos)
    length = vocabulary.chat_template_length
    yield "chat template", "none" if length is None else f"{length:,} characters"
    if vocabulary.extra_templates:
        yield "more templates", ", ".join(vocabulary.extra_templates)


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


def add_tensor_types(page: Page, inspection: Inspection) -> None:
    """A table of the tensors by type."""
    kinds = inspection.tensor_types
    if not kinds:
        return
    table = [("type", "tensors", "weights", "size")]
    table += [
        (kind.name, f"{kind.tensor_count:,}", f"{kind.weight_count:,}", gibibytes(kind.size_bytes)) for kind in kinds
    ]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    page.add("tensors by type", bold=True)
    for name, *numbers in table:
        cells = [
            f"{name:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True)),
        ]
        page.add("  " + "  ".join(cells))
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


def parameters(count: int) -> str:
    """A parameter count in the units that llama.cpp uses.

    >>> parameters(14_659_507_200), parameters(51_777_000), parameters(300)
    ('14.66 B', '51.78 M', '0.30 K')
    """
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 1e3:.2f} K"


def yes_or_no(flag: bool | None) -> str:
    """A flag that may be absent."""
    return "not given" if flag is None else "yes" if flag else "no"
