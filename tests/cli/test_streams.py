"""Standard output and standard error that are closed, full, left by their reader, or of another encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from checkpoints import TINY, copy_of_tiny, edit_json

from phi4conv.gguf_file import layout
from phi4conv.gguf_file.write import encode_header
from phi4conv.progress import Silent, choose_progress

PHI4CONV = (sys.executable, "-m", "phi4conv")


def phi4conv(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*PHI4CONV, *map(str, arguments)], check=False, **options)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A GGUF with a character that Windows' encodings lack, and bytes that are no UTF-8."""
    path = tmp_path / "foreign.gguf"
    path.write_bytes(encode_header([layout.text("general.name", "Ġ輸 *@"), layout.u32("é", 1)], []).data)
    path.write_bytes(path.read_bytes().replace(b"*@", b"\xff\xfe"))
    return path


@pytest.fixture
def unread() -> Iterator[IO[bytes]]:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as file:
        yield file


@pytest.fixture
def full() -> Iterator[IO[bytes]]:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no /dev/full")
    with device.open("wb", buffering=0) as file:
        yield file


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "utf-16"])
def test_json_survives_every_encoding(foreign: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    finished = phi4conv("inspect", foreign, "--json", env=environment)
    assert (finished.returncode, finished.stderr) == (0, b"")
    document = json.loads(finished.stdout.decode(encoding))
    assert document["metadata"]["general.name"]["value"].startswith("Ġ輸 ")
    assert phi4conv("inspect", foreign, env=environment).returncode == 0


def test_a_conversion_ends_well_in_another_encoding(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "輸入")
    edit_json(folder / "tokenizer_config.json", lambda data: data.update(chat_template="{{ '輸' }}"))
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    finished = phi4conv("convert", folder, tmp_path / "輸出.gguf", "--vocab-only", env=environment)
    assert finished.returncode == 0
    assert rb"\u8f38\u51fa.gguf" in finished.stdout
    finished = phi4conv("convert", folder, tmp_path / "輸出.gguf", "--vocab-only", "--force", "--json", env=environment)
    assert finished.returncode == 0
    assert json.loads(finished.stdout)["out"] == str(tmp_path / "輸出.gguf")


@pytest.mark.parametrize("closing", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(tmp_path: Path, closing: str) -> None:
    out = tmp_path / "out.gguf"
    command = ["sh", "-c", f'"$@" {closing}', "sh", *PHI4CONV, "convert", str(TINY), str(out)]
    finished = subprocess.run(command, check=False, capture_output=True)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert out.exists()
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2  # the output exists


def test_what_a_library_prints_reaches_no_file_that_we_write(tmp_path: Path) -> None:
    script = (
        "import os, sys; from phi4conv import stream, cli\n"
        "run = stream.convert_chunk\n"
        "def loudly(chunk):\n"
        "    os.write(2, b'panic'); os.write(1, b'panic'); return run(chunk)\n"
        "stream.convert_chunk = loudly\n"
        "sys.argv[0] = 'phi4conv'; cli.main()"
    )
    expected, out = tmp_path / "expected.gguf", tmp_path / "out.gguf"
    assert phi4conv("convert", TINY, expected).returncode == 0
    command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script, "convert", str(TINY), str(out)]
    assert subprocess.run(command, check=False).returncode == 0
    assert out.read_bytes() == expected.read_bytes()


def test_there_is_no_progress_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(choose_progress(quiet=False), Silent)


def test_a_full_stdout_is_an_error_that_says_so(tmp_path: Path, foreign: Path, full: IO[bytes]) -> None:
    for arguments in (
        ["convert", TINY, tmp_path / "out.gguf"],
        ["convert", TINY, tmp_path / "out.gguf", "--dry-run"],
        ["convert", tmp_path / "missing", tmp_path / "out.gguf", "--json"],
        ["inspect", foreign],
        ["inspect", foreign, "--json"],
    ):
        finished = phi4conv(*arguments, stdout=full)
        assert finished.returncode == 2
        assert finished.stderr == b"Error: standard output cannot be written: No space left on device\n"
    assert (tmp_path / "out.gguf").exists()


def test_a_full_stderr_stops_nothing(tmp_path: Path, full: IO[bytes]) -> None:
    finished = phi4conv("convert", TINY, tmp_path / "out-F16.gguf", "--type", "BF16", stderr=full)
    assert finished.returncode == 0
    assert (tmp_path / "out-F16.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["convert", TINY, "out-F16.gguf", "--type", "BF16"], 0),  # with a warning
        (["convert", TINY, "out.gguf", "--dry-run"], 0),
        (["convert", "missing", "out.gguf", "--json"], 2),
        (["inspect", "foreign.gguf"], 0),
        (["inspect", "foreign.gguf", "--json"], 0),
        (["convert", "--help"], 0),
        (["--no-such-option"], 2),
    ],
)
@pytest.mark.usefixtures("foreign")
def test_a_reader_that_has_gone_changes_no_exit_code(
    tmp_path: Path, unread: IO[bytes], arguments: list[object], exit_code: int
) -> None:
    finished = phi4conv(*arguments, cwd=tmp_path, stdout=unread)
    assert finished.returncode == exit_code
    assert b"Traceback" not in finished.stderr
    for path in tmp_path.glob("out*"):
        path.unlink()
    assert phi4conv(*arguments, cwd=tmp_path, stdout=unread, stderr=unread).returncode == exit_code
