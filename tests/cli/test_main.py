"""The exit codes of what nobody foresaw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import TINY

RAISING = """
import sys
from phi4conv import cli, stream
class Panic(BaseException):
    pass
def fail(*_, **__):
    raise {error}
stream.convert_chunk = fail
sys.argv[0] = "phi4conv"
cli.main()
"""


def run(error: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RAISING.format(error=error), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("error", ["Panic('index out of range')", "ZeroDivisionError", "OSError(5, 'no such thing')"])
def test_whatever_is_not_foreseen_is_a_bug_of_ours(tmp_path: Path, error: str) -> None:
    finished = run(error, "convert", TINY, tmp_path / "out.gguf")
    expected = 2 if error.startswith("OSError") else 3  # a disk that fails meanwhile is none
    assert finished.returncode == expected
    assert ("This is a bug in phi4conv" in finished.stderr) == (expected == 3)
    assert list(tmp_path.iterdir()) == []


def test_shell_completion_still_works() -> None:
    environment = {"_PHI4CONV_COMPLETE": "bash_source"}
    command = [sys.executable, "-m", "phi4conv"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert finished.returncode == 0
    assert "complete" in finished.stdout


@pytest.mark.parametrize("as_json", [True, False])
def test_too_little_memory_is_said(tmp_path: Path, *, as_json: bool) -> None:
    options = ["--json"] if as_json else []
    finished = run("MemoryError", "convert", TINY, tmp_path / "out.gguf", *options)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: out of memory\n  next:     ")
    assert "Traceback" not in finished.stderr
    assert list(tmp_path.iterdir()) == []
    if as_json:
        assert json.loads(finished.stdout)["error"]["problems"][0]["what"] == "out of memory"
