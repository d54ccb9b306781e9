"""What a benchmark ran on, the cores it may use, and child processes that are measured from start to end."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from phi4conv.machine import usable_cores

# The vector instructions that matter here, widest first, as Linux spells them.
VECTOR_FLAGS = ("avx512f", "avx2", "avx", "asimd")


def processor() -> str:
    """The processor's name and its widest vector instructions, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {label.strip(): value.strip() for label, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", facts.get("Features", "")).split()
    widest = next((flag for flag in VECTOR_FLAGS if flag in flags), "")
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({widest})" if widest else name


def described(packages: Sequence[str], *others: str) -> str:
    """One line that says what a run is made on: processor, cores, how busy they were, system, Python, versions."""
    cores = f"{usable_cores()} usable cores"
    if hasattr(os, "getloadavg"):
        cores += f" (load of the minute before: {os.getloadavg()[0]:.1f})"
    system = f"{platform.system()} {platform.release()}"
    found = [f"{name} {version_or_none(name)}" for name in packages]
    return ", ".join((processor(), cores, system, f"Python {platform.python_version()}", *found, *others))


def version_or_none(package: str) -> str:
    """An installed package's version, "not installed" when there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def cores_in_words(count: int) -> str:
    """A number of cores as text.

    >>> cores_in_words(1), cores_in_words(2)
    ('1 core', '2 cores')
    """
    return f"{count} core" if count == 1 else f"{count} cores"


def last_cores(count: int) -> list[int]:
    """The numbers of the last cores that this process may use: the first ones also serve interrupts.

    Raises:
        ValueError: There are not that many.
    """
    if count > usable_cores():
        raise ValueError(f"{count} cores asked for, and this process may use {usable_cores()}")
    if not hasattr(os, "sched_getaffinity"):
        return list(range(count))
    return sorted(os.sched_getaffinity(0))[-count:]


def pin(cores: Sequence[int]) -> None:
    """Keep the calling thread, and the threads and processes that it starts, on these cores where that can be done."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Pin the calling thread for a while."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    pin(cores)
    try:
        yield
    finally:
        if before:
            pin(sorted(before))


@dataclass(frozen=True)
class Run:
    """One process, or several one after the other, from start to end.

    Attributes:
        seconds: Wall-clock time.
        cpu_seconds: Processor time, in the program and in the system for it.
        peak_bytes: The most memory that one process held at once.
        read_bytes: Size of the files that it had to read.
        written_bytes: Bytes given to write calls; None where the system does not count them.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    read_bytes: int
    written_bytes: int | None

    def __add__(self, other: Run) -> Run:
        counted = None not in {self.written_bytes, other.written_bytes}
        return Run(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_bytes, other.peak_bytes),
            self.read_bytes + other.read_bytes,
            (self.written_bytes or 0) + (other.written_bytes or 0) if counted else None,
        )


def measured(command: Sequence[str], inputs: Iterable[Path] = (), environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end, on the cores of the calling thread.

    Linux counts a process's memory from before it becomes another program, so the peak is never below this
    process's own: whoever calls keeps small.

    Args:
        command: Program and arguments.
        inputs: The files that it reads. Their size is taken, since no counter sees what is read through a mapping.
        environment: Variables beside those of this process.

    Raises:
        CalledProcessError: It failed; with its output.
    """
    read = sum(path.stat().st_size for path in inputs)
    os.sync()  # what an earlier run left to be written is not this one's to pay for
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is over, and its counters are still there
        seconds = time.monotonic() - started
        written = written_bytes(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, log.read().decode(errors="replace"))
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, read, written)


def written_bytes(pid: int) -> int | None:
    """What a process has given to write calls; None where the system does not count."""
    try:
        counters = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in counters.splitlines() if line.startswith("wchar:")), None)
