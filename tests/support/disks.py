"""File systems of our own, for tests of disks that fill up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

SMALL = ("-t", "tmpfs", "-o", "size=1m", "tmpfs")


def mounted(folder: Path, options: Sequence[str] = SMALL) -> Iterator[Path]:
    """Mount a file system on a new folder for as long as a test takes; needs root, and is skipped without."""
    folder.mkdir()
    try:
        made = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
