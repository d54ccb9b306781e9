"""A target appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phi4conv.errors import FormatError, OutputError
from phi4conv.files import AtomicFile, PositionedReader, check_target, leftover_warnings, reading


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


@pytest.fixture
def common_folder() -> Iterator[Path]:
    """A folder that every user may reach, which pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def replace_in_place(target: Path, data: bytes = b"new") -> None:
    with AtomicFile(target, len(data), in_place=True) as file:
        file.writer.write_at(memoryview(data), 0)
        file.commit()


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o444, 0o777])
def test_a_file_replaced_in_place_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old bytes")
    target.chmod(mode)
    replace_in_place(target)
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [target]


def test_nobody_else_reads_a_private_file_while_it_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old")
    with AtomicFile(target, 3, in_place=True) as file:
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_replaced_in_place_keeps_owner_and_group(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old")
    target.chmod(0o640)
    os.chown(target, 1234, 4321)
    replace_in_place(target)
    status = target.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o640)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file of another user")
def test_an_owner_that_cannot_be_kept_does_not_stop_the_replacement(common_folder: Path) -> None:
    target = common_folder / "model.gguf"
    target.write_bytes(b"old")
    os.chown(common_folder, 65534, -1)
    with ordinary_user():
        replace_in_place(target)
    assert target.read_bytes() == b"new"
    assert target.stat().st_uid == 65534


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    file, other, link = tmp_path / "blobs" / "model", tmp_path / "other.gguf", tmp_path / "link.gguf"
    file.write_bytes(b"old")
    link.symlink_to("blobs/model")
    other.symlink_to("link.gguf")
    replace_in_place(other)
    assert (link.is_symlink(), other.is_symlink(), file.is_symlink()) == (True, True, False)
    assert (file.read_bytes(), other.read_bytes()) == (b"new", b"new")
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == ["model"]


def test_without_commit_a_file_in_place_stays(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old")
    before = target.stat()
    with pytest.raises(KeyboardInterrupt), AtomicFile(target, 3, in_place=True) as file:
        file.writer.write_at(memoryview(b"new"), 0)
        raise KeyboardInterrupt
    assert (target.read_bytes(), target.stat().st_ino) == (b"old", before.st_ino)
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_changes_while_it_is_replaced_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old")
    reason = "changed while its replacement was made"
    with pytest.raises(OutputError, match=reason), AtomicFile(target, 3, in_place=True) as file:
        target.write_bytes(b"theirs")
        file.commit()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.gguf", b"theirs")]


def test_in_place_other_inputs_are_protected_still(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old")
    os.link(target, tmp_path / "other.gguf")
    with pytest.raises(OutputError, match="one of the inputs"):
        AtomicFile(target, 3, in_place=True, inputs=[tmp_path / "other.gguf"])


def test_what_is_no_file_is_not_replaced_in_place(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        AtomicFile(tmp_path / "none.gguf", 3, in_place=True)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="symbolic links"):
        AtomicFile(tmp_path / "loop", 3, in_place=True)
    with pytest.raises(OutputError, match="is a folder"):
        AtomicFile(tmp_path, 3, in_place=True)
    with pytest.raises(OutputError, match="a device, a pipe or a socket"):
        AtomicFile(Path(os.devnull), 3, in_place=True)


def test_a_folder_that_lets_nothing_be_replaced_is_told_before_any_work(common_folder: Path) -> None:
    folder = common_folder / "locked"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"old")
    folder.chmod(0o555)
    with ordinary_user(), pytest.raises(OutputError, match=r"replaced in place(.|\n)*cannot be written to") as caught:
        AtomicFile(folder / "model.gguf", 3, in_place=True)
    assert "name another file" in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file of another user")
def test_another_users_file_in_a_shared_folder_is_told_before_any_work(common_folder: Path) -> None:
    (common_folder / "model.gguf").write_bytes(b"old")
    common_folder.chmod(0o1777)
    with ordinary_user(), pytest.raises(OutputError, match="another user's"):
        AtomicFile(common_folder / "model.gguf", 3, in_place=True)


def test_a_disk_that_is_read_only_is_told_before_any_work(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no program to mount with")
    if made.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (folder / "model.gguf").write_bytes(b"old")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(OutputError, match="cannot be written to"):
            AtomicFile(folder / "model.gguf", 3, in_place=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_refusal_to_read_is_told_with_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(FormatError, match=r"the file cannot be read(.|\n)*shard(.|\n)*Is a directory"),
        reading(tmp_path / "shard"),
    ):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")


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
