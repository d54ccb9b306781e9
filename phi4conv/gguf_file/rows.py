"""The tensors of a GGUF as rows on demand, and the line between a file with a flaw and one that cannot be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.errors import FormatError, Problem
from phi4conv.files import PositionedReader
from phi4conv.gguf_file.layout import Defect, GGUFFile
from phi4conv.quant import CODECS, decode
from phi4conv.rows import row_count

# Defects (read.py lists them all) that leave no doubt where a tensor's bytes lie or what a key says.
HARMLESS_DEFECTS = frozenset({"bad-utf8", "bad-bool", "misaligned-tensor", "tensor-order", "gap", "trailing-bytes"})

NEXT_STEPS = {"big-endian": "make the file again from its checkpoint, with `phi4conv convert`"}

# More than this many defects say no more than the first ones.
SHOWN_DEFECTS = 5


@dataclass(frozen=True)
class GGUFRows:
    """One tensor of a GGUF file, a RowSource. Picklable: a copy opens the file again.

    Attributes:
        name: Its name in the file.
        qtype: Its type in the file.
        shape: In numpy order.
        reader: The file.
        offset: Where its data start, in bytes from the start of the file.
    """

    name: str
    qtype: GGMLQuantizationType
    shape: tuple[int, ...]
    reader: PositionedReader
    offset: int

    @property
    def names(self) -> tuple[str, ...]:
        """The tensor's own name."""
        return (self.name,)

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start to stop decoded, only their bytes read: float32 (stop - start, width), exactly as ggml does.

        Raises:
            ValueError: The tensor has no such rows.
            FormatError: phi4conv has no decoder for the type; or see stored.
        """
        return decoded(self, self.stored(start, stop))

    def stored(self, start: int, stop: int) -> Bytes:
        """Rows start to stop as they are in the file: uint8 (stop - start, row bytes).

        Raises:
            ValueError: The tensor has no such rows.
            FormatError: phi4conv does not know the type, or the file has become shorter or cannot be read.
        """
        if not 0 <= start <= stop <= row_count(self.shape):
            raise ValueError(f"{self.name} has {row_count(self.shape)} rows, not {start} to {stop}")
        row_bytes = CODECS[known(self)].row_bytes(self.shape[-1])
        data = np.empty((stop - start, row_bytes), np.uint8)
        try:
            self.reader.read_into(data.reshape(-1).data, self.offset + start * row_bytes)
        except OSError as error:
            raise FormatError(
                Problem("the GGUF cannot be read", where=str(self.reader.path), found=error.strerror or str(error))
            ) from error
        return data


def decoded(rows: GGUFRows, data: Bytes) -> Floats:
    """What rows.stored gave, as float32 (rows, width)."""
    return decode(CODECS[known(rows)], data)


def known(rows: GGUFRows) -> GGMLQuantizationType:
    """The tensor's type.

    Raises:
        FormatError: There is no codec for it.
    """
    if rows.qtype not in CODECS:
        raise FormatError(
            Problem(
                f"no decoder for {rows.qtype.name}",
                where=f"{rows.reader.path}, {rows.name}",
                expected=f"one of {', '.join(qtype.name for qtype in CODECS)}",
            )
        )
    return rows.qtype


def gguf_rows(file: GGUFFile) -> dict[str, GGUFRows]:
    """Every tensor of a file by name, in file order, all by one open file.

    Raises:
        FormatError: The file cannot be trusted; see require_sound.
    """
    require_sound(file)
    reader = PositionedReader(file.path)
    return {
        entry.name: GGUFRows(entry.name, entry.qtype, entry.shape, reader, file.data_offset + entry.offset)
        for entry in file.tensors
        if isinstance(entry.qtype, GGMLQuantizationType)  # others are a defect, refused above
    }


def require_sound(file: GGUFFile) -> None:
    """Refuse a file whose header or tensors cannot be relied on.

    Raises:
        FormatError: With the first defects that are not in HARMLESS_DEFECTS.
    """
    serious = [defect for defect in file.defects if defect.code not in HARMLESS_DEFECTS]
    if not serious:
        return
    problems = [as_problem(file, defect) for defect in serious[:SHOWN_DEFECTS]]
    if len(serious) > SHOWN_DEFECTS:
        problems.append(Problem(f"and {len(serious) - SHOWN_DEFECTS} more defects", where=str(file.path)))
    raise FormatError(*problems)


def as_problem(file: GGUFFile, defect: Defect) -> Problem:
    """A defect of the format as what stops a command."""
    return Problem(
        f"the GGUF is damaged ({defect.code})",
        where=f"{file.path}, {defect.where}",
        found=defect.message,
        next_step=NEXT_STEPS.get(defect.code, "download or copy the file again; `phi4conv inspect` lists every defect"),
    )
