"""A target appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phi4conv.errors import FormatError, OutputError
from phi4conv.files import AtomicFile, PositionedReader, check_target, leftover_warnings


def write(target: Path, data: bytes, *, force: bool = False) -> None:
    with AtomicFile(target, len(data), force=force) as file:
        file.writer.write_at(memoryview(data), 0)
        file.commit()


def test_a_committed_file_has_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    write(tmp_path / "out.gguf", b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.gguf", b"whole")]


def test_writes_go_by_position(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "out", 10) as file:
        file.writer.write_at(memoryview(b"world"), 5)
        file.writer.write_at(memoryview(b"hello"), 0)
        file.writer.extend_to(12)
        file.commit()
    assert (tmp_path / "out").read_bytes() == b"helloworld\0\0"


def test_without_commit_the_old_file_stays_and_the_new_one_goes(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), AtomicFile(target, 3, force=True) as file:
        file.writer.write_at(memoryview(b"new"), 0)
        raise KeyboardInterrupt
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.gguf", b"old")]


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match="--force"):
        write(target, b"new")
    assert target.read_bytes() == b"old"
    write(target, b"new", force=True)
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "out.gguf"
    with pytest.raises(OutputError, match="exists"), AtomicFile(target, 3) as file:
        target.write_bytes(b"theirs")
        file.commit()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.gguf", b"theirs")]


def test_a_file_system_without_hard_links_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / "out", b"whole")
    assert (tmp_path / "out").read_bytes() == b"whole"


def test_an_input_is_never_the_output(tmp_path: Path) -> None:
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(b"weights")
    alias = tmp_path / "alias.gguf"
    alias.symlink_to(shard)
    hard = tmp_path / "hard.gguf"
    os.link(shard, hard)
    for target in (shard, alias, hard):
        with pytest.raises(OutputError, match="one of the inputs"):
            check_target(target, 1, force=True, inputs=[shard])


def test_a_missing_folder_or_a_folder_as_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such folder"):
        check_target(tmp_path / "no" / "out.gguf", 1, force=False, inputs=())
    with pytest.raises(OutputError, match="is a folder"):
        check_target(tmp_path, 1, force=False, inputs=())


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A socket's path has room for about a hundred bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def unix_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    return folder / "socket"


def link_to_a_device(folder: Path) -> Path:
    (folder / "link").symlink_to(os.devnull)
    return folder / "link"


def device(_: Path) -> Path:
    return Path(os.devnull)


@pytest.mark.parametrize("make", [fifo, unix_socket, link_to_a_device, device])
@pytest.mark.parametrize("force", [True, False])
def test_what_is_no_regular_file_is_never_replaced(
    short_folder: Path, make: Callable[[Path], Path], *, force: bool
) -> None:
    target = make(short_folder)
    with pytest.raises(OutputError, match="a device, a pipe or a socket") as caught:
        check_target(target, 1, force=force, inputs=())
    assert "--force" not in str(caught.value)


@pytest.mark.parametrize("leads_to", ["file", "nothing"])
def test_a_link_needs_force_and_is_replaced_itself(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "file").write_bytes(b"old")
    target = tmp_path / "link"
    target.symlink_to(leads_to)
    with pytest.raises(OutputError, match="--force"):
        check_target(target, 1, force=False, inputs=())
    write(target, b"new", force=True)
    assert (target.is_symlink(), target.read_bytes()) == (False, b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["x" * 250 + ".gguf", "\N{GRINNING FACE}" * 62 + ".gguf", "é" * 125 + ".gguf"])
def test_every_name_that_the_disk_takes_can_be_written(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_is_too_long_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="shorter name"):
        check_target(tmp_path / ("x" * 300), 1, force=False, inputs=())


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Permissions do not bind root."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_may_not_be_searched_is_told_before_any_work(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0)
    with ordinary_user(), pytest.raises(OutputError, match=r"Permission denied(.|\n)*permissions"):
        check_target(folder / "out.gguf", 1, force=False, inputs=())


def test_a_file_that_is_too_large_for_the_system_is_told(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OutputError, match="FAT32"), AtomicFile(tmp_path / "out", 5000) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            file.writer.write_at(memoryview(bytes(5000)), 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_left_is_named(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    for name in ("out.gguf.0123abcd.partial", "out.gguf.partial", "other.gguf.0123abcd.partial", "out.gguf"):
        (tmp_path / name).write_bytes(b"half")
    (warning,) = leftover_warnings(target)
    assert warning.startswith(f"{target}.0123abcd.partial (4 bytes) was left by an interrupted run")
    with pytest.raises(OutputError, match=r"0123abcd\.partial \(4 bytes\) was left"):
        check_target(target, shutil.disk_usage(tmp_path).free * 2, force=True, inputs=())


def test_the_name_of_a_leftover_is_that_of_a_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / ("é" * 100)
    with AtomicFile(target, 1):
        assert len(leftover_warnings(target)) == 1
    assert leftover_warnings(target) == ()


def test_a_disk_that_is_too_small_is_refused_before_any_work(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OutputError, match="not enough disk space"), AtomicFile(tmp_path / "out", free * 2):
        pytest.fail("the context must not be entered")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_device() -> Path:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no /dev/full")
    return device


def test_a_disk_that_fills_up_is_reported_as_such(tmp_path: Path, full_device: Path) -> None:
    with pytest.raises(OutputError, match="free some space"), AtomicFile(tmp_path / "out", 1) as file:
        file.writer.close()
        file.writer.path = full_device
        file.writer.write_at(memoryview(b"x"), 0)


def test_a_reader_says_when_the_file_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"12345")
    reader = PositionedReader(path)
    assert reader.read(1, 3) == b"234"
    with pytest.raises(FormatError, match="ends early"):
        reader.read(3, 3)


def test_a_reader_keeps_reading_the_file_it_opened(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"old")
    reader = PositionedReader(path)
    assert reader.read(0, 3) == b"old"
    (tmp_path / "other").write_bytes(b"new")
    (tmp_path / "other").replace(path)
    assert reader.read(0, 3) == b"old"


def test_a_reader_can_be_sent_to_another_process(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"data")
    reader = PositionedReader(path)
    reader.read(0, 1)
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301  # our own value
    assert copy == reader
    assert copy.read(0, 4) == b"data"
