"""Bytes go from file to file by the kernel, through a buffer, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from disks import mounted

from phi4conv import copying
from phi4conv.copying import clone, copy_range, copy_whole
from phi4conv.errors import FormatError, OutputError
from phi4conv.files import AtomicFile, PositionedReader, PositionedWriter

SIZE = 300_000


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(7).bytes(SIZE)


@pytest.fixture
def source(tmp_path: Path, content: bytes) -> PositionedReader:
    (tmp_path / "source").write_bytes(content)
    return PositionedReader(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> PositionedWriter:
    (tmp_path / "target").touch()
    return PositionedWriter(tmp_path / "target")


def refusing(code: int) -> Callable[..., int]:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return refuse


def short(*arguments: int) -> int:
    """A kernel that never copies more than 1,000 bytes at once."""
    source, target, count, source_offset, target_offset = arguments
    data = os.pread(source, min(count, 1000), source_offset)
    return os.pwrite(target, data, target_offset)


KERNELS: dict[str, Callable[..., int] | None] = {
    "as it is": os.copy_file_range if hasattr(os, "copy_file_range") else None,
    "short": short,
    "tired": lambda *arguments: short(*arguments) if arguments[3] % 3 else 0,
    "none": None,
    **{
        errno.errorcode[code]: refusing(code)
        for code in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EIO)
    },
}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every answer that the system may give to copy_file_range; small pieces and a small buffer, so that all repeat."""
    replacement = KERNELS[request.param]
    if replacement is None:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", replacement, raising=False)
    monkeypatch.setattr(copying, "PIECE_BYTES", 70_001)
    monkeypatch.setattr(copying, "BUFFER_BYTES", 30_001)
    return str(request.param)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("place", [(0, 0, SIZE), (17, 4096, 200_000), (1, 0, 1), (5, 0, 0)])
def test_a_range_arrives_whole_however_the_kernel_answers(
    source: PositionedReader, target: PositionedWriter, content: bytes, place: tuple[int, int, int]
) -> None:
    start, target_start, count = place
    told: list[int] = []
    copy_range(source, start, target, target_start, count, on_bytes=told.append)
    assert target.path.read_bytes() == bytes(target_start) + content[start : start + count]
    assert sum(told) == count
    assert all(piece > 0 for piece in told)


def test_an_interrupt_waits_for_one_piece(source: PositionedReader, target: PositionedWriter, kernel: str) -> None:
    told: list[int] = []

    def stop(count: int) -> None:
        told.append(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_range(source, 0, target, 0, SIZE, on_bytes=stop)
    assert len(told) == 1, kernel
    assert target.path.stat().st_size == told[0] < SIZE


@pytest.mark.usefixtures("kernel")
def test_a_source_that_ends_early_is_said(source: PositionedReader, target: PositionedWriter) -> None:
    with pytest.raises(FormatError, match=r"ends early(.|\n)*at least 300,001 bytes"):
        copy_range(source, 0, target, 0, SIZE + 1, on_bytes=lambda _: None)


@pytest.mark.usefixtures("kernel")
def test_a_source_that_is_cut_meanwhile_is_said(source: PositionedReader, target: PositionedWriter) -> None:
    with pytest.raises(FormatError, match="ends early"):
        copy_range(source, 0, target, 0, SIZE, on_bytes=lambda _: os.truncate(source.path, 1000))


@pytest.mark.usefixtures("kernel")
def test_a_full_disk_is_the_fault_of_the_target(source: PositionedReader, tmp_path: Path) -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OutputError, match="free some space"), AtomicFile(tmp_path / "out", 1) as file:
        file.writer.close()
        file.writer.path = device
        copy_range(source, 0, file.writer, 0, SIZE, on_bytes=lambda _: None)


def test_a_disk_that_fills_up_is_the_fault_of_the_target(
    source: PositionedReader, small_disk: Path, kernel: str
) -> None:
    with pytest.raises(OutputError, match="No space left"), AtomicFile(small_disk / "out", 1) as file:
        copy_range(source, 0, file.writer, 0, SIZE, on_bytes=lambda _: None)
    assert list(small_disk.iterdir()) == [], kernel


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KB of our own; needs root."""
    with_options = ["-t", "tmpfs", "-o", "size=128k", "tmpfs"]
    yield from mounted(tmp_path / "mount", with_options)


@pytest.mark.usefixtures("kernel")
def test_a_whole_copy_is_the_same_bytes(source: PositionedReader, target: PositionedWriter, content: bytes) -> None:
    told: list[int] = []
    copy_whole(source, target, on_bytes=told.append)
    assert target.path.read_bytes() == content
    assert sum(told) == SIZE


def test_an_empty_file_is_copied(target: PositionedWriter, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    copy_whole(PositionedReader(tmp_path / "empty"), target, on_bytes=lambda _: None)
    assert target.path.read_bytes() == b""


def test_files_of_two_file_systems_are_not_cloned(source: PositionedReader, small_disk: Path) -> None:
    path = small_disk / "target"
    path.touch()
    writer = PositionedWriter(path)
    try:
        assert not clone(source, writer)
        assert path.stat().st_size == 0
        copy_range(source, 0, writer, 0, 100_000, on_bytes=lambda _: None)
    finally:
        writer.close()  # or the disk cannot be taken away
    assert path.read_bytes() == source.read(0, 100_000)


@pytest.fixture
def sharing_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that shares blocks between files, in a file of holes; needs root and its tool."""
    tool = shutil.which("mkfs.btrfs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if tool is None:
        pytest.skip("no mkfs.btrfs here")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 128 << 20)
    subprocess.run([tool, "--quiet", str(image)], check=True, capture_output=True)
    yield from mounted(tmp_path / "sharing", ["-o", "loop", str(image)])


def test_a_whole_copy_shares_blocks_where_the_file_system_can(
    sharing_disk: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "copy_range", None)  # nothing is copied
    (sharing_disk / "source").write_bytes(content)
    (sharing_disk / "target").touch()
    reader, writer = PositionedReader(sharing_disk / "source"), PositionedWriter(sharing_disk / "target")
    told: list[int] = []
    try:
        copy_whole(reader, writer, on_bytes=told.append)
    finally:
        reader.close()
        writer.close()
    assert (sharing_disk / "target").read_bytes() == content
    assert told == [SIZE]
