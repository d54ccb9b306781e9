"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere, or nothing.

Everything goes to stderr; results go to stdout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

LINE_INTERVAL = 5.0  # seconds between two plain lines


class Progress(Protocol):
    """Told of work as it is done. No two calls come at once."""

    def note(self, message: str) -> None:
        """Something takes a while before work begins."""

    def begin(self, total: int) -> None:
        """Work of total bytes starts."""

    def advance(self, count: int, label: str) -> None:
        """Another count bytes are done; label says of what."""

    def end(self) -> None:
        """The work is over, done or not."""


class Silent:
    """No output."""

    def note(self, message: str) -> None:
        """See Progress."""

    def begin(self, total: int) -> None:
        """See Progress."""

    def advance(self, count: int, label: str) -> None:
        """See Progress."""

    def end(self) -> None:
        """See Progress."""


class Lines:
    """A plain line every few seconds, for logs.

    >>> ticks = iter([0.0, 2.0, 7.0])
    >>> progress = Lines(sys.stdout, clock=lambda: next(ticks))
    >>> progress.begin(4_000_000)
    >>> progress.advance(1_000_000, "token_embd.weight")
    >>> progress.advance(1_000_000, "token_embd.weight")
     50 %  2.0 of 4.0 MB  0.3 MB/s  7 s left  token_embd.weight
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = clock
        self.total = self.done = 0
        self.started = self.shown = 0.0

    def note(self, message: str) -> None:
        """See Progress."""
        print(message, file=self.stream, flush=True)

    def begin(self, total: int) -> None:
        """See Progress."""
        self.total, self.done = total, 0
        self.started = self.shown = self.clock()

    def advance(self, count: int, label: str) -> None:
        """See Progress."""
        self.done += count
        now = self.clock()
        if now - self.shown < LINE_INTERVAL or not self.total:
            return
        self.shown = now
        rate = self.done / (now - self.started)
        left = (self.total - self.done) / rate
        share = f"{100 * self.done // self.total:3d} %"
        unit, scale = ("GB", 1e9) if self.total >= 1e9 else ("MB", 1e6)
        amounts = f"{self.done / scale:.1f} of {self.total / scale:.1f} {unit}"
        print(f"{share}  {amounts}  {rate / 1e6:.1f} MB/s  {left:.0f} s left  {label}", file=self.stream, flush=True)

    def end(self) -> None:
        """See Progress."""


class Bar:
    """A bar with the tensor at work, the rate and the time left."""

    def __init__(self) -> None:
        from rich import console, progress  # noqa: PLC0415  # slow to load, and only a terminal needs it

        self.bar: Any = progress.Progress(
            progress.TextColumn("{task.description:<26}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=console.Console(stderr=True),
            transient=True,
        )
        self.task: Any = None

    def note(self, message: str) -> None:
        """See Progress."""
        self.bar.console.print(message, markup=False, highlight=False)

    def begin(self, total: int) -> None:
        """See Progress."""
        self.task = self.bar.add_task("", total=total)
        self.bar.start()

    def advance(self, count: int, label: str) -> None:
        """See Progress."""
        self.bar.update(self.task, advance=count, description=label)

    def end(self) -> None:
        """See Progress."""
        self.bar.stop()


def choose_progress(*, quiet: bool) -> Progress:
    """The progress that suits where stderr goes; none when it is closed."""
    if quiet or sys.stderr is None:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines(sys.stderr)
