from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFValueType

from phi4conv.files import PositionedReader
from phi4conv.gguf_file.cursor import (
    FIRST_WINDOW,
    MAX_DEFECTS_OF_ONE_CODE,
    MAX_HEADER_BYTES,
    MAX_STRINGS,
    Cursor,
    Defects,
    Unreadable,
)

STRING = int(GGUFValueType.STRING)
EMPTY = bytes(8)  # a string: its length


def cursor_over(folder: Path, data: bytes, size: int | None = None) -> Cursor:
    """A cursor at the start of data, which zeros follow up to size; they take no blocks on the disk."""
    path = folder / "file"
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(len(data) if size is None else size)
    reader = PositionedReader(path)
    return Cursor(reader, reader.size)


def array_of_strings(count: int) -> bytes:
    """The start of an array: what it claims, and no items."""
    return struct.pack("<IQ", STRING, count)


def test_numbers_follow_each_other_in_either_byte_order(tmp_path: Path) -> None:
    cursor = cursor_over(tmp_path, bytes.fromhex("0100 00000002 00000003"))
    assert cursor.number("H") == 1
    cursor.byte_order = "big"
    assert cursor.number("I") == 2
    cursor.length_bytes = 4
    assert cursor.length() == 3
    with pytest.raises(Unreadable, match="11 bytes or more expected, 10 found") as stop:
        cursor.number("B")
    assert stop.value.code == "truncated-header"


def test_the_file_is_fetched_as_far_as_it_is_needed(tmp_path: Path) -> None:
    cursor = cursor_over(tmp_path, b"", size=1 << 30)
    assert len(cursor.need(1)) == FIRST_WINDOW
    assert len(cursor.need(FIRST_WINDOW + 1)) == 4 * FIRST_WINDOW
    with pytest.raises(Unreadable) as stop:
        cursor.need(MAX_HEADER_BYTES + 1)
    assert stop.value.code == "absurd-length"
    assert len(cursor.data) == 4 * FIRST_WINDOW


def test_text_that_is_no_utf_8_is_kept_and_noted(tmp_path: Path) -> None:
    cursor = cursor_over(tmp_path, struct.pack("<Q", 2) + b"a\xff")
    cursor.where = "key"
    assert cursor.text() == "a\udcff"
    [defect] = cursor.defects.all()
    assert (defect.code, defect.where, defect.offset) == ("bad-utf8", "key", 0)


def test_strings_are_counted_over_all_arrays(tmp_path: Path) -> None:
    cursor = cursor_over(tmp_path, array_of_strings(4) + 4 * EMPTY + array_of_strings(MAX_STRINGS - 3))
    assert cursor.array() == (GGUFValueType.STRING, [""] * 4)
    with pytest.raises(Unreadable) as stop:
        cursor.array()
    assert stop.value.code == "absurd-count"


def test_strings_up_to_the_bound_are_read(tmp_path: Path) -> None:
    items = bytes(8 * MAX_STRINGS)
    _, strings = cursor_over(tmp_path, array_of_strings(MAX_STRINGS) + items).array()
    assert (len(strings), strings[-1]) == (MAX_STRINGS, "")


def test_fifteen_million_empty_strings_are_not_fetched(tmp_path: Path) -> None:
    cursor = cursor_over(tmp_path, array_of_strings(15_000_000), size=12 + 8 * 15_000_000)
    with pytest.raises(Unreadable) as stop:
        cursor.array()
    assert stop.value.code == "absurd-count"
    assert len(cursor.data) == FIRST_WINDOW


def test_a_defect_without_end_is_counted() -> None:
    defects = Defects()
    for number in range(500):
        defects.add("duplicate-key", "again", f"key {number}")
    defects.add("bad-utf8", "once", "key")
    *listed, last, more = defects.all()
    assert [defect.where for defect in listed] == [f"key {number}" for number in range(MAX_DEFECTS_OF_ONE_CODE)]
    assert last.code == "bad-utf8"
    assert (more.code, more.where) == ("duplicate-key", "file")
    assert more.message.startswith("400 more")
