"""Other metadata for a GGUF, and the same tensors: their bytes are copied as they are, never decoded.

A new header moves the tensors, so that offsets are given out afresh: in the order of the table, each padded to the
alignment. What lies in the file beside the tensors (gaps, trailing bytes) is dropped, a repeated key stands once, with
its first value, and version 2 becomes 3. Left out: files of the other byte order, and changes of the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gguf import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType, Keys

from phi4conv.copying import clone, copy_range, copy_whole
from phi4conv.errors import FormatError, Problem
from phi4conv.files import AtomicFile, PositionedReader, PositionedWriter, identity, reading
from phi4conv.gguf_file.key_order import place_for
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, u32
from phi4conv.gguf_file.write import WRITTEN_VERSION, Header, encode_header
from phi4conv.progress import Progress

# Defects (read.py lists them all) that a new header does away with.
MENDED_DEFECTS = frozenset(
    {"duplicate-key", "bad-bool", "bad-alignment", "misaligned-tensor", "tensor-order", "gap", "trailing-bytes"}
)

# Defects that stay, and that do no harm to the tensors or the other keys.
CARRIED_DEFECTS = frozenset({"bad-utf8", "nested-array"})

# More than this many problems say no more than the first ones.
SHOWN_PROBLEMS = 5

# An alignment pads the header and every tensor: beyond this it is a trap, not a file. Real ones are 32 to 65,536 bytes.
LARGEST_ALIGNMENT = 1 << 24

_DAMAGED = "download or copy the file again"
_MADE_WRONGLY = "the file was made wrongly; make it again from its checkpoint, with `phi4conv convert`"
_NEXT_STEPS = {
    "truncated-header": _DAMAGED,
    "truncated-data": _DAMAGED,
    "unknown-tensor-type": "update gguf (pip install --upgrade gguf), which may know newer types",
}


@dataclass(frozen=True)
class Change:
    """One key's new pair, or its removal.

    Raises:
        ValueError: The pair is another key's.
    """

    key: str
    pair: MetadataPair | None  # None removes the key

    def __post_init__(self) -> None:
        if self.pair is not None and self.pair.key != self.key:
            raise ValueError(f"a change of {self.key} with a pair of {self.pair.key}")


def edited(file: GGUFFile, changes: Iterable[Change]) -> GGUFFile:
    """The file with other metadata, in memory: what write_edited writes, but for the places of the tensors.

    Changes are applied one after the other. A replaced key keeps its place, a new one stands where llama.cpp's
    converter puts it; removing a key that is absent is no error. tensors, data_offset and file_size stay those of the
    file on the disk, where the tensors' bytes are. Of the defects those remain that the new file has, too.

    Raises:
        FormatError: The file cannot be carried over: its header is incomplete, its tensors are damaged or unknown.
        ValueError: A value does not fit its type, or general.alignment is none.
    """
    changes = tuple(changes)
    if not changes:
        return file
    metadata, alignment = _changed(file, changes)
    _new_header(file, metadata, alignment)  # raises what writing would raise
    keys = {change.key for change in changes}
    kept = (flaw for flaw in file.defects if flaw.code in CARRIED_DEFECTS and flaw.where not in keys)
    return replace(file, version=WRITTEN_VERSION, alignment=alignment, metadata=metadata, defects=tuple(kept))


def with_metadata(file: GGUFFile, changes: Iterable[Change]) -> GGUFFile:
    """The file with other metadata, for looking at those alone: whether it could be written is not asked.

    Changes are applied as in edited(), and the defects are gone that any new header does away with.
    """
    changes = tuple(changes)
    kept = file.defects if not changes else (flaw for flaw in file.defects if flaw.code not in MENDED_DEFECTS)
    return replace(file, metadata=_metadata_after(file, changes), defects=tuple(kept))


def edited_size(file: GGUFFile, changes: Iterable[Change]) -> int:
    """The size in bytes of what write_edited writes; raises what edited raises."""
    changes = tuple(changes)
    return _new_header(file, *_changed(file, changes)).size_bytes if changes else file.file_size


def write_edited(file: GGUFFile, changes: Iterable[Change], out: AtomicFile, progress: Progress) -> None:
    """Write the file with other metadata and the same tensor bytes; without changes a copy, whatever it holds.

    file: as read from its path, which is opened once more. out: entered, and empty; it is not committed here, so that
    the result can be examined first. A change that changes nothing still makes a new header, which mends what edit
    mends. progress is told of the bytes of the tensors, or of the whole file without changes.

    Raises:
        FormatError: As edited; or the file changed since it was read, or while it was copied, or cannot be read.
        ValueError: As edited.
        OSError: The disk of out refuses; out makes an OutputError of it.
    """
    changes = tuple(changes)
    header = _new_header(file, *_changed(file, changes)) if changes else None
    reader = reopened(file)
    try:
        before = identity(os.fstat(reader.descriptor))
        if header is None:
            progress.begin(file.file_size)
            copy_whole(reader, out.writer, on_bytes=lambda count: progress.advance(count, file.path.name))
        else:
            progress.begin(sum(entry.size_bytes for entry in file.tensors))
            _write(file, header, reader, out.writer, progress)
        if identity(os.fstat(reader.descriptor)) != before:
            raise FormatError(_changed_meanwhile(file.path, "the same bytes from start to end", "other ones"))
    finally:
        progress.end()
        reader.close()


def reopened(file: GGUFFile) -> PositionedReader:
    """The file behind a GGUFFile, opened, so that it stays the same one from here on.

    Raises:
        FormatError: It cannot be read, or is of another size than when its header was read.
    """
    reader = PositionedReader(file.path)
    with reading(file.path):
        size = reader.size
    if size != file.file_size:
        reader.close()
        raise FormatError(_changed_meanwhile(file.path, f"{file.file_size:,} bytes", f"{size:,} bytes"))
    return reader


def _changed_meanwhile(path: Path, expected: str, found: str) -> Problem:
    return Problem(
        "the file changed while it was read",
        where=str(path),
        expected=expected,
        found=found,
        next_step="wait until nothing writes to it any more, and run the command again",
    )


def _write(
    file: GGUFFile, header: Header, reader: PositionedReader, writer: PositionedWriter, progress: Progress
) -> None:
    def told_of(name: str) -> Callable[[int], None]:
        return lambda count: progress.advance(count, name)

    stays = [file.data_offset + old.offset for old in file.tensors] == [*map(header.position, header.tensors)]
    if file.tensors and stays and clone(reader, writer):
        _write_around(header, writer)
        progress.advance(sum(entry.size_bytes for entry in file.tensors), file.path.name)
        return
    writer.write_at(memoryview(header.data), 0)
    for old, new in zip(file.tensors, header.tensors, strict=True):
        start = file.data_offset + old.offset
        copy_range(reader, start, writer, header.position(new), old.size_bytes, on_bytes=told_of(old.name))
    writer.extend_to(header.size_bytes)


def _write_around(header: Header, writer: PositionedWriter) -> None:
    """Make a clone, whose tensors are where they belong, the file that writing it anew would have given."""
    writer.write_at(memoryview(header.data), 0)
    ends = [header.position(entry) + entry.size_bytes for entry in header.tensors]
    starts = [*map(header.position, header.tensors[1:]), header.size_bytes]
    for end, start in zip(ends, starts, strict=True):
        writer.write_at(memoryview(bytes(start - end)), end)
    os.ftruncate(writer.descriptor, header.size_bytes)


def _metadata_after(file: GGUFFile, changes: Iterable[Change]) -> dict[str, MetadataPair]:
    """The new metadata in their order."""
    metadata = dict(file.metadata)
    for key, pair in ((change.key, change.pair) for change in changes):
        if pair is None:
            metadata.pop(key, None)
        elif key in metadata:
            metadata[key] = pair
        else:
            architecture = metadata.get(Keys.General.ARCHITECTURE)
            place = place_for(key, list(metadata), str(architecture.value) if architecture else None)
            pairs = list(metadata.items())
            metadata = dict((*pairs[:place], (key, pair), *pairs[place:]))
    return metadata


def _changed(file: GGUFFile, changes: Iterable[Change]) -> tuple[dict[str, MetadataPair], int]:
    """The new metadata in their order, and the new alignment in bytes."""
    metadata = _metadata_after(file, changes)
    told = metadata.get(Keys.General.ALIGNMENT)
    if told is None:
        return metadata, GGUF_DEFAULT_ALIGNMENT
    if told is file.metadata.get(Keys.General.ALIGNMENT):  # perhaps badly stored, and then read as file.alignment
        metadata[told.key] = u32(told.key, file.alignment)
        return metadata, file.alignment
    if told.type != GGUFValueType.UINT32 or not 0 < told.value <= LARGEST_ALIGNMENT:
        raise ValueError(f"{told.key}: {told.value!r} is no UINT32 from 1 to {LARGEST_ALIGNMENT}")
    return metadata, int(told.value)


def _new_header(file: GGUFFile, metadata: Mapping[str, MetadataPair], alignment: int) -> Header:
    _require_editable(file)
    # Types that gguf does not know are refused above.
    tensors = [(entry.name, entry.shape, GGMLQuantizationType(entry.qtype)) for entry in file.tensors]
    return encode_header(metadata.values(), tensors, alignment)


def _require_editable(file: GGUFFile) -> None:
    """Refuse a file of which not everything that matters can be carried over.

    Raises:
        FormatError: With the first reasons.
    """
    problems = list(_obstacles(file))
    if len(problems) > SHOWN_PROBLEMS:
        more = Problem(f"and {len(problems) - SHOWN_PROBLEMS} more defects", where=str(file.path))
        problems = [*problems[:SHOWN_PROBLEMS], more]
    if problems:
        raise FormatError(*problems)


def _obstacles(file: GGUFFile) -> Iterator[Problem]:
    for flaw in file.defects:
        if flaw.code not in MENDED_DEFECTS | CARRIED_DEFECTS:
            yield Problem(
                f"the GGUF cannot be given other metadata ({flaw.code})",
                where=f"{file.path}, {flaw.where}",
                found=flaw.message,
                next_step=_NEXT_STEPS.get(flaw.code, _MADE_WRONGLY),
            )
    if any(not entry.name for entry in file.tensors):
        yield Problem(
            "the GGUF cannot be given other metadata (a tensor without a name)",
            where=f"{file.path}, tensor table",
            next_step=_MADE_WRONGLY,
        )
    if file.alignment > LARGEST_ALIGNMENT:
        yield Problem(
            "the GGUF cannot be given other metadata (its alignment is too large)",
            where=f"{file.path}, {Keys.General.ALIGNMENT}",
            expected=f"at most {LARGEST_ALIGNMENT:,} bytes",
            found=f"{file.alignment:,} bytes",
            next_step=_MADE_WRONGLY,
        )
