"""Standard output and standard error, whatever they lead to: a closed pipe, a full disk, an encoding without Ġ."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

import click

from phi4conv.errors import Phi4ConvError

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in the standard library since 3.12


class StdoutError(click.ClickException):
    """Standard output refuses a result, as on a full disk."""

    exit_code = Phi4ConvError.exit_code


class StandardStream(io.FileIO):
    """Standard output or standard error, safe for all who write: click, rich, print, the interpreter's last flush.

    A reader that has gone, as with `| head`, wants no more: what is left goes nowhere, and the command ends with
    its own exit code. Any other refusal is an error on stdout, once; messages on stderr are never worth a failure.

    Raises:
        StdoutError: The first write that stdout refuses.
    """

    def __init__(self, descriptor: int, *, forgiving: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.forgiving = forgiving

    def write(self, data: Buffer, /) -> int:
        """Write some of data; returns how many bytes are dealt with."""
        try:
            return super().write(data)
        except OSError as error:
            if not self.forgiving and error.errno != errno.EPIPE:
                self.forgiving = True
                raise StdoutError(f"standard output cannot be written: {error.strerror}") from error
            return memoryview(data).nbytes


def guard_streams() -> None:
    """Make standard output and standard error safe to write to.

    A closed one leads nowhere from here on. Its descriptor is taken, too: the next file to be opened would get the
    number, and whatever a library prints would land in that file. Characters that the encoding lacks are escaped.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is sys.__stdout__:
        sys.stdout = guarded(sys.stdout, 1, forgiving=False)
    if sys.stderr is sys.__stderr__:
        sys.stderr = guarded(sys.stderr, 2, forgiving=True)


def guarded(stream: TextIO | None, descriptor: int, *, forgiving: bool) -> TextIO:
    """The stream with StandardStream below it."""
    if sys.platform == "win32" and stream is not None and stream.isatty():
        return stream  # the console is no file and takes every character
    return io.TextIOWrapper(
        io.BufferedWriter(StandardStream(descriptor, forgiving=forgiving)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=stream is not None and bool(stream.line_buffering),
    )
