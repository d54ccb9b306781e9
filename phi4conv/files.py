"""Files: positioned reads and writes, and a target that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from phi4conv.errors import FormatError, OutputError, Problem

if TYPE_CHECKING:
    from typing_extensions import Self  # in the standard library since 3.11

# Bytes of the target's name that the temporary file's name begins with: what follows must fit, too, and the
# shortest limit in use is eCryptfs's 143.
PARTIAL_STEM_BYTES = 64

# What to do about an errno; DEFAULT_ADVICE for all others.
ADVICE = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space or write to another disk",
    errno.EFBIG: "write to another disk (a FAT32 disk holds at most 4 GB a file), or raise the limit (ulimit -f)",
    errno.ENAMETOOLONG: "choose a shorter name",
}
DEFAULT_ADVICE = "check the folder's permissions, and that it is not mounted read-only"


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

    In place, the target is a file that is there, and the new one takes its mode and, where that is allowed, its
    owner and group. A symbolic link stays and what it leads to is replaced: whoever links to the old file means the
    new one. Another hard link keeps the old bytes, and so does a process that has the file open. It is no longer one
    of the inputs, which the target must not be.

    Attributes:
        target: The final name; in place, with every link followed.
        path: The temporary file.
        writer: Writes to the temporary file, from this process or another.

    Raises:
        OutputError: The target cannot be written; see check_target and replaced_file.
    """

    def __init__(
        self, target: Path, size: int, *, force: bool = False, inputs: Iterable[Path] = (), in_place: bool = False
    ) -> None:
        self.replaced = replaced_file(target) if in_place else None
        self.target = target = Path(os.path.realpath(target)) if in_place else target
        self.force = force or in_place
        check_target(target, size, force=self.force, inputs=inputs)
        # Not hidden: a process that is killed outright leaves it behind, and its owner should see it.
        self.path = target.with_name(f"{partial_stem(target)}.{secrets.token_hex(4)}.partial")
        self.writer = PositionedWriter(self.path)

    def __enter__(self) -> Self:
        # In place, nobody but the owner sees the bytes before the file has the old one's permissions.
        mode = 0o666 if self.replaced is None else 0o600
        with reported(self.target):
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
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
        """Give the file its name.

        Without force, a file that appeared under the name meanwhile is kept, and in place one that changed meanwhile.

        Raises:
            OutputError: There is such a file.
            OSError: The system refuses; leaving the context makes an OutputError of it.
        """
        if self.replaced is not None:
            take_permissions(self.path, self.replaced)
        self.flush()
        self.writer.close()
        if self.replaced is not None and identity(self.target.stat()) != identity(self.replaced):
            raise OutputError(
                Problem(
                    "the file changed while its replacement was made",
                    where=str(self.target),
                    next_step="it is left as it is; run the command again",
                )
            )
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
            if os.path.lexists(self.target):
                raise OutputError(already_exists(self.target)) from None
            self.path.replace(self.target)


def check_target(target: Path, size: int, *, force: bool, inputs: Iterable[Path]) -> None:
    """Refuse, before any work, a target that cannot take size bytes.

    With force an existing file is replaced. A link to a file is replaced as well, and the file that it leads
    to stays; a device or a pipe is never replaced, nor a link to one.

    Raises:
        OutputError: The target's folder is missing or full; the target is a folder, a device or one of the
            inputs under any name; it exists and force is not given; or the system refuses its name.
    """
    folder = target.parent
    with reported(target):
        if not stat.S_ISDIR(mode_of(folder)):
            raise OutputError(Problem("no such folder for the output", where=str(folder), next_step="create it first"))
        check_replaceable(target, mode_of(target), inputs)
        if os.path.lexists(target) and not force:
            raise OutputError(already_exists(target))
        free = shutil.disk_usage(folder).free
    if free < size:
        advice = "free some space, choose a smaller type, or write to another disk"
        raise OutputError(
            Problem(
                "not enough disk space",
                where=str(folder),
                expected=f"{size:,} bytes for {target.name}",
                found=f"{free:,} bytes free",
                next_step="; ".join((*leftover_warnings(target), advice)),
            )
        )


def replaced_file(target: Path) -> os.stat_result:
    """What is known of a file that is to be replaced in place, once it is sure that the folder lets us.

    Raises:
        OutputError: There is no such file, or its folder does not let it be replaced.
    """
    path = Path(os.path.realpath(target))
    with reported(target):
        status, folder = path.stat(), path.parent.stat()
        if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise OutputError(not_replaceable(target, "its folder cannot be written to"))
    # In a folder such as /tmp only a file's owner, the folder's and root may put another file in its place.
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    if folder.st_mode & stat.S_ISVTX and user not in {0, status.st_uid, folder.st_uid}:
        raise OutputError(not_replaceable(target, "it is another user's, in a folder where only they may replace it"))
    return status


def not_replaceable(target: Path, reason: str) -> Problem:
    """The refusal to replace a file in place."""
    return Problem(
        "the file cannot be replaced in place",
        where=str(target),
        found=reason,
        next_step="name another file for the output, or change the folder's permissions",
    )


def take_permissions(path: Path, like: os.stat_result) -> None:
    """Give a file another one's owner, group and mode, as far as the system allows."""
    if hasattr(os, "chown"):
        for owner, group in ((-1, like.st_gid), (like.st_uid, -1)):  # the group alone is often allowed
            with contextlib.suppress(OSError):
                os.chown(path, owner, group)
    path.chmod(stat.S_IMODE(like.st_mode))  # after the owner: a change of owner clears some of the bits


def identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """What tells a file from another one, or from itself after a change."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def mode_of(path: Path) -> int:
    """Type and permissions of what path leads to; 0 when that is nothing. Raises OSError when it cannot be told."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def check_replaceable(target: Path, mode: int, inputs: Iterable[Path]) -> None:
    """Refuse what no option allows to replace: a folder, an input, a device."""
    if not mode:
        return
    if stat.S_ISDIR(mode):
        raise OutputError(
            Problem("the output is a folder", where=str(target), expected="a file name", next_step="add one: OUT.gguf")
        )
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
    if not stat.S_ISREG(mode):
        raise OutputError(
            Problem(
                "the output is no file that could be replaced",
                where=str(target),
                expected="a new name or a regular file",
                found="a device, a pipe or a socket",
                next_step="name another file; it is written by position, which needs a disk",
            )
        )


def partial_stem(target: Path) -> str:
    """What the temporary files of target begin with: its name, or the start of a long one in whole characters."""
    return os.fsencode(target.name)[:PARTIAL_STEM_BYTES].decode("utf-8", "ignore")


def leftover_warnings(target: Path) -> tuple[str, ...]:
    """A sentence for each temporary file of target that lies beside it: a run that is killed outright leaves one."""
    pattern = re.compile(re.escape(partial_stem(target)) + r"\.[0-9a-f]{8}\.partial")
    try:
        return tuple(
            f"{path} ({path.stat().st_size:,} bytes) was left by an interrupted run; delete it if no other "
            "conversion is running"
            for path in sorted(target.parent.iterdir())
            if pattern.fullmatch(path.name)
        )
    except OSError:  # a folder that may not be listed, or another run that ends at this moment
        return ()


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


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to read path into FormatError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FormatError(Problem("the file cannot be read", where=str(path), found=reason)) from error


def refused(target: Path, error: OSError) -> Problem:
    """What the operating system said when target was written."""
    advice = ADVICE.get(error.errno or 0, DEFAULT_ADVICE)
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
