"""A bounded walk through a GGUF header: numbers, strings and arrays, whatever the file claims about their sizes.

What a file claims is held against the bytes that are there before anything is fetched or kept for it. Where nothing
more can be understood Unreadable is raised; what is odd but readable is noted. Which values follow each other in a
header is not known here: see read.py, which lists the codes of the defects as well.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from gguf import GGUFValueType

from phi4conv.files import PositionedReader
from phi4conv.gguf_file.layout import (
    SCALAR_FORMATS,
    ByteOrder,
    Defect,
    InnerArray,
    LazyStrings,
    Numbers,
    is_utf8,
)

# Bounds on what a hostile header can make the reader hold. Real headers are below 50 MB (the Hub's
# parser stops there), have under a hundred pairs and, with unfused experts, some ten thousand tensors.
MAX_HEADER_BYTES = 128 << 20
MAX_ENTRIES = 1 << 18  # pairs, tensors, or arrays inside arrays
MAX_NESTING = 4

# Strings in all arrays together: fifteen million empty ones would fit into a header and take seconds to walk over.
# The Hub's parser takes a million in one array, and a vocabulary has two arrays of them, tokens and merges.
MAX_STRINGS = 1 << 21

MAX_DEFECTS_OF_ONE_CODE = 100

FIRST_WINDOW = 1 << 20
VALUE_TYPES = {int(known): known for known in (*SCALAR_FORMATS, GGUFValueType.STRING, GGUFValueType.ARRAY)}


class Unreadable(Exception):  # noqa: N818  # not an error: it ends the reading and becomes a defect
    """Nothing after this place in the header can be understood."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


class Defects:
    """Collects defects; of one code only the first MAX_DEFECTS_OF_ONE_CODE, then a count."""

    def __init__(self) -> None:
        self._kept: list[Defect] = []
        self._counts: Counter[str] = Counter()

    def add(self, code: str, message: str, where: str, offset: int | None = None) -> None:
        """Record a defect; the arguments are those of Defect."""
        self._counts[code] += 1
        if self._counts[code] <= MAX_DEFECTS_OF_ONE_CODE:
            self._kept.append(Defect(code, message, where, offset))

    def all(self) -> tuple[Defect, ...]:
        """The defects in the order in which they were found, then one for each code of which there were more."""
        more = (
            Defect(code, f"{count - MAX_DEFECTS_OF_ONE_CODE:,} more of this kind are not listed", "file")
            for code, count in self._counts.items()
            if count > MAX_DEFECTS_OF_ONE_CODE
        )
        return (*self._kept, *more)


class Cursor:
    """Walks forward through the header, fetching it in windows that grow.

    Every method that reads raises Unreadable where the header ends too early or goes beyond a bound above. A header
    of version 1 or of the other byte order is read once length_bytes or byte_order says so.
    """

    def __init__(self, reader: PositionedReader, size: int) -> None:
        self.reader = reader
        self.size = size  # of the file
        self.data = b""  # the file from its start, as far as it has been fetched
        self.position = 0
        self.byte_order: ByteOrder = "little"
        self.length_bytes = 8  # of a string length, an array length, a count, a dimension
        self.where = "header"  # what is being read, for defects
        self.inner_arrays = 0
        self.strings = 0  # in arrays
        self.defects = Defects()

    def note(self, code: str, message: str, offset: int | None = None) -> None:
        """Record a defect of what is being read."""
        self.defects.add(code, message, self.where, self.position if offset is None else offset)

    def need(self, end: int) -> bytes:
        """The file from its start to this offset or beyond; raises Unreadable when that cannot be."""
        if end > MAX_HEADER_BYTES:
            raise Unreadable(
                "absurd-length",
                f"this would end at byte {end:,}; a header beyond {MAX_HEADER_BYTES >> 20} MiB is not believed",
            )
        if end > self.size:
            raise Unreadable(
                "truncated-header",
                f"the file ends inside its header: {end:,} bytes or more expected, {self.size:,} found",
            )
        if end > len(self.data):
            window = min(max(end, 4 * len(self.data), FIRST_WINDOW), self.size, MAX_HEADER_BYTES)
            self.data += self.reader.read(len(self.data), window - len(self.data))
        return self.data

    def number(self, format_: str) -> Any:
        """One number in a format of the `struct` module, without the mark of its byte order."""
        layout = struct.Struct(("<" if self.byte_order == "little" else ">") + format_)
        data = self.need(self.position + layout.size)
        (value,) = layout.unpack_from(data, self.position)
        self.position += layout.size
        return value

    def length(self) -> int:
        """A length, a count or a dimension."""
        return int(self.number("Q" if self.length_bytes == 8 else "I"))

    def text(self) -> str:
        """A string after its length; notes bytes that are no UTF-8, which become lone surrogates."""
        start = self.position
        size = self.length()
        data = self.need(self.position + size)
        decoded = data[self.position : self.position + size].decode("utf-8", "surrogateescape")
        self.position += size
        if not is_utf8(decoded):
            self.note("bad-utf8", "bytes that are not UTF-8", start)
        return decoded

    def value_type(self) -> GGUFValueType:
        """A value type; raises Unreadable when the format has no such type, and so no size for the value."""
        number = self.number("I")
        if number not in VALUE_TYPES:
            raise Unreadable("unknown-value-type", f"value type {number}; the format knows 0 to {max(VALUE_TYPES)}")
        return VALUE_TYPES[number]

    def value(self, value_type: GGUFValueType) -> Any:
        """A scalar or a string of this type; notes a boolean that is neither 0 nor 1."""
        if value_type == GGUFValueType.STRING:
            return self.text()
        value = self.number(SCALAR_FORMATS[value_type])
        if value_type == GGUFValueType.BOOL:
            if value > 1:
                self.note("bad-bool", f"a boolean's byte is {value}, not 0 or 1", self.position - 1)
            return bool(value)
        return value

    def array(self, depth: int = 0) -> tuple[GGUFValueType, Sequence[Any]]:
        """An array's item type and its items; depth counts the arrays that it lies in."""
        item_type = self.value_type()
        count = self.length()
        if item_type == GGUFValueType.STRING:
            return item_type, self._strings(count)
        if item_type == GGUFValueType.ARRAY:
            return item_type, self._arrays(count, depth + 1)
        return item_type, self._numbers(SCALAR_FORMATS[item_type], count, boolean=item_type == GGUFValueType.BOOL)

    def _numbers(self, format_: str, count: int, *, boolean: bool) -> Numbers:
        start = self.position
        stored = np.dtype(format_).newbyteorder("<" if self.byte_order == "little" else ">")
        end = start + count * stored.itemsize
        # A copy, so that the window of the file is not kept alive.
        values = np.frombuffer(self.need(end)[start:end], dtype=stored).astype(stored.newbyteorder("="))
        self.position = end
        if boolean:
            wrong = np.flatnonzero(values > 1)
            if len(wrong):
                self.note(
                    "bad-bool",
                    f"{len(wrong):,} booleans are neither 0 nor 1; the first is item {wrong[0]}, {values[wrong[0]]}",
                    start + int(wrong[0]),
                )
            values = values.astype(np.bool_)
        return Numbers(values)

    def _strings(self, count: int) -> LazyStrings:
        """Find where each of count strings ends; their text is decoded when it is asked for."""
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise Unreadable("absurd-count", f"{self.strings:,} strings in arrays; {MAX_STRINGS:,} are believed")
        start = position = self.position
        width, order = self.length_bytes, self.byte_order
        data = self.need(start + count * width)
        available = len(data)
        ends = array("Q")
        from_bytes, append = int.from_bytes, ends.append
        for _ in range(count):  # a vocabulary passes here 200,000 times: no calls that can be avoided
            body = position + width
            if body > available:
                data = self.need(body)
                available = len(data)
            position = body + from_bytes(data[position:body], order)
            if position > available:
                data = self.need(position)
                available = len(data)
            append(position - start)
        self.position = position
        strings = LazyStrings(data[start:position], ends, width)
        wrong = strings.bad_utf8()
        if wrong:
            self.note("bad-utf8", f"{len(wrong):,} items hold bytes that are not UTF-8; the first is {wrong[0]}", start)
        return strings

    def _arrays(self, count: int, depth: int) -> Sequence[InnerArray]:
        if depth == 1:
            self.note("nested-array", "an array of arrays, which llama.cpp refuses to load")
        if depth > MAX_NESTING:
            raise Unreadable("nested-array", f"arrays nested more than {MAX_NESTING} deep")
        self.inner_arrays += count
        if self.inner_arrays > MAX_ENTRIES:
            raise Unreadable("absurd-count", f"{count:,} arrays in an array")
        return tuple(InnerArray(*self.array(depth)) for _ in range(count))
