"""Bytes from one file to another, by the kernel where the system allows.

A whole file is cloned where its file system can share blocks between files (Btrfs, XFS; APFS has another call for
it, which is not used here): that takes no time and no space. Ranges go through copy_file_range, so that the bytes never
come into this process. Everywhere else, and whenever the kernel refuses, they are read and written.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from phi4conv.files import PositionedReader, PositionedWriter, reading

# Bytes for one call of the kernel: an interrupt and the progress wait for so many.
PIECE_BYTES = 1 << 26

# Bytes held at once where this process copies itself. On ext4 of Linux 6.18, more was faster with much free memory and
# up to three times as slow (4 MiB) with little, where the kernel looks for large pages; less was slower.
BUFFER_BYTES = 1 << 18

# FICLONE of linux/fs.h, _IOW(0x94, 9, int); Python's fcntl knows it since 3.14.
FICLONE = 0x40049409


@dataclass(frozen=True)
class Range:
    """Bytes that go from one file to another: count of them, and their offset in each file."""

    source: PositionedReader
    source_offset: int
    target: PositionedWriter
    target_offset: int
    count: int

    def part(self, start: int, count: int) -> Range:
        """At most count bytes of the range, from its byte start on."""
        count = min(count, self.count - start)
        return Range(self.source, self.source_offset + start, self.target, self.target_offset + start, count)


def copy_range(
    source: PositionedReader,
    source_offset: int,
    target: PositionedWriter,
    target_offset: int,
    count: int,
    *,
    on_bytes: Callable[[int], None],
) -> None:
    """Copy count bytes at source_offset of source to target_offset of target.

    on_bytes is told of every piece that is done, in bytes.

    Raises:
        FormatError: The source ends early or cannot be read.
        OSError: The target's disk refuses.
    """
    whole = Range(source, source_offset, target, target_offset, count)
    done = 0
    while done < count:
        copied = copied_by_kernel(whole.part(done, PIECE_BYTES))
        if not copied:
            break
        start_writing(whole.part(done, copied))
        done += copied
        on_bytes(copied)
    # What the kernel has left, and why: it may have no such call, know no way between these two file systems, or have
    # met the end of the source or of the disk. Reading and writing goes on, or says which side it is.
    copy_through_buffer(whole.part(done, count), on_bytes)


def copy_whole(source: PositionedReader, target: PositionedWriter, *, on_bytes: Callable[[int], None]) -> None:
    """Make the empty target a copy of source, byte for byte; on_bytes and errors are those of copy_range."""
    size = source.size
    if clone(source, target):
        on_bytes(size)
    else:
        copy_range(source, 0, target, 0, size, on_bytes=on_bytes)


def clone(source: PositionedReader, target: PositionedWriter) -> bool:
    """Let the empty target share all of source's blocks; False where that cannot be, and the target is empty still."""
    if sys.platform != "linux":
        return False
    import fcntl  # noqa: PLC0415  # POSIX only

    try:
        fcntl.ioctl(target.descriptor, FICLONE, source.descriptor)
    except OSError:  # another file system, or one that shares no blocks; a copy says what else is wrong
        return False
    return True


def copied_by_kernel(piece: Range) -> int:
    """How many bytes of the piece the kernel copies in one call: 0 when it cannot, and at the end of the source."""
    if not hasattr(os, "copy_file_range"):
        return 0
    source, target = piece.source.descriptor, piece.target.descriptor
    try:
        return os.copy_file_range(source, target, piece.count, piece.source_offset, piece.target_offset)
    except OSError:
        return 0


def start_writing(piece: Range) -> None:
    """Let the disk begin with what was copied, while the next piece is: a file that is flushed at the end waits less.

    Linux starts to write pages that it is told are not needed; other systems may do nothing.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # advice only
            os.posix_fadvise(piece.target.descriptor, piece.target_offset, piece.count, os.POSIX_FADV_DONTNEED)


def copy_through_buffer(whole: Range, on_bytes: Callable[[int], None]) -> None:
    """Read and write the range, a buffer at a time; on_bytes and errors are those of copy_range."""
    buffer = memoryview(bytearray(min(BUFFER_BYTES, whole.count)))
    for start in range(0, whole.count, BUFFER_BYTES):
        piece = whole.part(start, BUFFER_BYTES)
        data = buffer[: piece.count]
        with reading(piece.source.path):
            piece.source.read_into(data, piece.source_offset)
        piece.target.write_at(data, piece.target_offset)
        on_bytes(piece.count)
