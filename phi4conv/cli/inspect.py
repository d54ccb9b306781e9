"""phi4conv inspect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phi4conv.cli.page import Page, Row, add_defects, add_section
from phi4conv.cli.support import Command, gibibytes, output_options, show_json

if TYPE_CHECKING:
    from phi4conv.inspect import Inspection, VocabularySummary


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
