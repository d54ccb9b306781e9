"""Files: positioned reads and writes, and a target that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from phi4conv.errors import FormatError, OutputError, Problem

if TYPE_CHECKING:
    from typing_extensions import Self  # in the standard library since 3.11


class PositionedFile:
    """One file opened on first use and kept open, so that it stays the same file; usable from any thread.

    Picklable: a copy in another process opens the path again.
    """

    flags = os.O_RDONLY

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        PositionedFile.__init__(self, state["path"])

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, PositionedFile) and other.path == self.path

    def __hash__(self) -> int:
        return hash((type(self), self.path))

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    @property
    def descriptor(self) -> int:
        """The open file's descriptor."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, self.flags | getattr(os, "O_BINARY", 0))
            return self._descriptor

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self.descriptor).st_size


class PositionedReader(PositionedFile):
    """Reads byte ranges of one file."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill buffer with the bytes at offset.

        Raises:
            FormatError: The file ends before the buffer is full.
        """
        buffer = buffer.cast("B")
        end = offset + buffer.nbytes
        while buffer:
            count = self._read_some(buffer, offset)
            if count == 0:
                raise FormatError(
                    Problem(
                        "the file ends early; it was cut short, or changed while it was read",
                        where=str(self.path),
                        expected=f"at least {end:,} bytes",
                        found=f"{self.size:,} bytes",
                        next_step="download or copy the file again",
                    )
                )
            buffer = buffer[count:]
            offset += count

    def _read_some(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.descriptor, [buffer], offset)
        descriptor = self.descriptor
        with self._lock:  # Windows has one position per descriptor
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, buffer.nbytes)
        buffer[: len(data)] = data
        return len(data)

    def read(self, offset: int, size: int) -> bytes:
        """The size bytes at offset; raises FormatError when the file ends before."""
        data = bytearray(size)
        self.read_into(memoryview(data), offset)
        return bytes(data)


class PositionedWriter(PositionedFile):
    """Writes byte ranges of one existing file."""

    flags = os.O_RDWR

    def write_at(self, data: memoryview, offset: int) -> None:
        """Write the whole of data at offset; raises OSError when the disk refuses."""
        data = data.cast("B")
        while data:
            count = self._write_some(data, offset)
            data = data[count:]
            offset += count

    def extend_to(self, size: int) -> None:
        """Make the file at least this long, with zeros."""
        if self.size < size:
            os.ftruncate(self.descriptor, size)

    def _write_some(self, data: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self.descriptor, data, offset)
        descriptor = self.descriptor
        with self._lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, data)


class AtomicFile:
    """A new file that takes its name only when it is complete.

    The bytes go to a temporary file in the target's folder. commit() flushes them to the disk and gives
    them the name in one step; leaving the context without it removes the temporary file and leaves
    whatever was under the name before. An OSError inside the context becomes an OutputError.

    Attributes:
        target: The final name.
        path: The temporary file.
        writer: Writes to the temporary file, from this process or another.

    Raises:
        OutputError: The target cannot be written; see check_target.
    """

    def __init__(self, target: Path, size: int, *, force: bool = False, inputs: Iterable[Path] = ()) -> None:
        check_target(target, size, force=force, inputs=inputs)
        self.target = target
        self.force = force
        # Not hidden: a process that is killed outright leaves it behind, and its owner should see it.
        self.path = target.with_name(f"{target.name[:64]}.{secrets.token_hex(4)}.partial")
        self.writer = PositionedWriter(self.path)

    def __enter__(self) -> Self:
        with reported(self.target):
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.writer.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        if isinstance(error, OSError):
            raise OutputError(refused(self.target, error)) from error

    def flush(self) -> None:
        """Bring every byte to the disk, so that the finished file can be checked by path."""
        os.fsync(self.writer.descriptor)

    def commit(self) -> None:
        """Give the file its name. Without force, a file that appeared under the name meanwhile is kept."""
        self.flush()
        self.writer.close()
        if self.force:
            self.path.replace(self.target)
        else:
            self._take_free_name()
        sync_folder(self.target.parent)

    def _take_free_name(self) -> None:
        try:
            os.link(self.path, self.target)  # unlike a rename, never replaces
        except FileExistsError:
            raise OutputError(already_exists(self.target)) from None
        except OSError:  # a file system without hard links
            if self.target.exists():
                raise OutputError(already_exists(self.target)) from None
            self.path.replace(self.target)


def check_target(target: Path, size: int, *, force: bool, inputs: Iterable[Path]) -> None:
    """Refuse, before any work, a target that cannot take size bytes.

    Raises OutputError when the target's folder is missing or full, when the target exists and force is
    not given, or when it is one of the inputs under any name.
    """
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(Problem("no such folder for the output", where=str(folder), next_step="create it first"))
    if target.is_dir():
        raise OutputError(
            Problem("the output is a folder", where=str(target), expected="a file name", next_step="add one: OUT.gguf")
        )
    if target.exists():
        for path in inputs:
            if path.exists() and path.samefile(target):
                raise OutputError(
                    Problem(
                        "the output is one of the inputs",
                        where=str(target),
                        found=f"the same file as {path}",
                        next_step="name another file; an input is never overwritten",
                    )
                )
        if not force:
            raise OutputError(already_exists(target))
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OutputError(
            Problem(
                "not enough disk space",
                where=str(folder),
                expected=f"{size:,} bytes for {target.name}",
                found=f"{free:,} bytes free",
                next_step="free some space, choose a smaller type, or write to another disk",
            )
        )


def already_exists(target: Path) -> Problem:
    """The refusal to replace a file that is there."""
    return Problem("the output exists", where=str(target), next_step="pass --force to replace it, or name another file")


@contextlib.contextmanager
def reported(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write target into OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(refused(target, error)) from error


def refused(target: Path, error: OSError) -> Problem:
    """What the operating system said when target was written."""
    if error.errno == errno.ENOSPC:
        advice = "free some space or write to another disk"
    else:
        advice = "check the folder's permissions, and that it is not mounted read-only"
    reason = error.strerror or str(error)
    return Problem("the output cannot be written", where=str(target), found=reason, next_step=advice)


def sync_folder(folder: Path) -> None:
    """Make a rename in folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):  # Windows cannot open a folder; some network mounts refuse to sync one
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
