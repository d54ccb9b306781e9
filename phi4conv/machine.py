"""What the machine offers and what a run has used of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# How much is free where the system does not say.
ASSUMED_MEMORY = 1 << 30


def usable_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that programs may still take, as Linux tells them; elsewhere ASSUMED_MEMORY."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return ASSUMED_MEMORY
    limits = [Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current")]
    try:  # what a container's limit leaves
        most, used = (int(path.read_text(encoding="ascii")) for path in limits)
    except (OSError, ValueError):  # there is none, or it says "max"
        return free
    return min(free, max(0, most - used))


def peak_memory() -> int | None:
    """The most memory this process has held at once, in bytes; None where the system does not say.

    On Linux this is VmHWM; getrusage's figure there includes the parent's before exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource  # noqa: PLC0415  # POSIX only
    except ImportError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
