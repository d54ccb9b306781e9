"""phi4conv fix as a user meets it: what it says, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import TINY, TINY_BROKEN, copy_of_tiny
from click.testing import CliRunner, Result
from gguf import Keys
from vocabulary_files import with_changes

from phi4conv.cli.fix import fix
from phi4conv.convert import convert
from phi4conv.gguf_file.layout import text, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.phi3 import ConversionOptions

K = Keys.Tokenizer
PHI4CONV = (sys.executable, "-m", "phi4conv")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Phi-4 as phi4conv converts it."""
    path = tmp_path_factory.mktemp("good") / "tiny.gguf"
    convert(TINY, path, ConversionOptions(file_type="Q8_0"))
    return path


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    """The same without its pre and with an older end of turn."""
    return with_changes(good, tmp_path / "broken.gguf", {K.PRE: None, K.EOS_ID: u32(K.EOS_ID, 929)})


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(fix, [*map(str, arguments)])


State = dict[str, tuple[bytes, int, int]]


def state(folder: Path) -> State:
    """Bytes, time and inode of every file in a folder."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.iterdir()
        if path.is_file()
    }


def test_a_repair_says_what_it_changed_and_what_was_proved(broken: Path, tmp_path: Path, good: Path) -> None:
    before = state(tmp_path)
    out = tmp_path / "fixed.gguf"
    result = run(broken, out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"wrote {out}: the tokenizer is right"
    assert "repaired  tokenizer/eos-id (first-release)" in lines
    assert "repaired  tokenizer/pre (missing)" in lines
    assert "  tokenizer.ggml.eos_token_id  929 → 937" in lines
    assert "  tokenizer.ggml.pre           absent → dbrx" in lines
    assert "  ids decoded          1,024  1,024      0      0" in lines
    assert lines[-1] == "weights: 27 tensors, their bytes untouched"
    assert out.read_bytes() == good.read_bytes()
    assert {name: each for name, each in state(tmp_path).items() if name != "fixed.gguf"} == before


def test_the_document_is_complete(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed.gguf"
    result = run(broken, out, "--json", "--quiet")
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert (document["schema"], document["command"]) == ("phi4conv.fix/1", "fix")
    assert (document["file"], document["out"], document["dry_run"]) == (str(broken), str(out), False)
    assert document["verdict"] == {"right": True, "text": "the tokenizer is right"}
    assert {(found["id"], found["code"]) for found in document["findings"]} == {
        ("tokenizer/pre", "missing"),
        ("tokenizer/eos-id", "first-release"),
    }
    assert set(document["findings"][0]) >= {"severity", "message", "where", "expected", "actual", "consequences"}
    assert document["source"]["kind"] == "file_itself"
    assert (document["tensors"], document["size_bytes"]) == (27, out.stat().st_size)
    assert all(comparison["wrong"] == 0 for comparison in document["comparisons"])


def test_quiet_says_nothing(broken: Path, tmp_path: Path) -> None:
    result = run(broken, tmp_path / "fixed.gguf", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_a_dry_run_needs_no_output_and_writes_none(broken: Path, tmp_path: Path) -> None:
    before = state(tmp_path)
    result = run(broken, "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.startswith("broken.gguf would be changed; nothing was written: the tokenizer is right\n")
    assert state(tmp_path) == before


def test_nothing_to_repair_gives_a_copy(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.gguf"
    result = run(good, out)
    assert result.exit_code == 0
    head = f"tiny.gguf: nothing to repair; {out} is a copy, byte for byte: the tokenizer is right"
    assert result.stdout.splitlines()[0] == head
    assert out.read_bytes() == good.read_bytes()


def test_in_place_replaces_the_file_and_leaves_nothing_else(broken: Path, tmp_path: Path, good: Path) -> None:
    inode = broken.stat().st_ino
    assert run(broken, "--in-place").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]
    assert broken.read_bytes() == good.read_bytes()
    assert broken.stat().st_ino != inode


def test_in_place_with_nothing_to_repair_touches_nothing(good: Path) -> None:
    before = state(good.parent)
    result = run(good, "--in-place")
    assert result.exit_code == 0
    assert result.stdout.startswith("tiny.gguf: nothing to repair; nothing was written")
    assert state(good.parent) == before


def test_a_link_to_the_file_is_followed_and_stays(broken: Path, tmp_path: Path, good: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(broken.name)
    assert run(link, tmp_path / "fixed.gguf").exit_code == 0
    assert (tmp_path / "fixed.gguf").read_bytes() == good.read_bytes()
    assert run(link, "--in-place").exit_code == 0
    assert link.is_symlink()
    assert broken.read_bytes() == good.read_bytes()


def test_a_fault_that_was_asked_for_is_shown_as_such(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    result = run(good, out, "--set", f"{K.PRE}=gpt-2")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"wrote {out}: the tokenizer is wrong, 1 defect, by what --set asked for\n")
    assert "FAIL  tokenizer/pre (wrong)" in result.stdout
    assert read_gguf(out).text(K.PRE) == "gpt-2"


# What is done to the good file's bytes, the exit code, and words of the message.
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], int, tuple[str, ...]]] = {
    "empty": (lambda _: b"", 2, ("not a GGUF", "an empty file")),
    "an archive": (lambda _: b"PK\3\4" * 99, 2, ("not a GGUF", "zip archive")),
    "header cut": (lambda data: data[:5000], 1, ("cut short", "5,000", "download")),
    "weights cut": (lambda data: data[:-5000], 1, ("cut short", "ffn_up", "download")),
    "version 1": (lambda data: data[:4] + b"\1" + data[5:], 1, ("unsupported-version",)),
    "other byte order": (lambda data: data[:4] + b"\0\0\0\3" + data[8:], 1, ("big-endian",)),
}


@pytest.mark.parametrize("options", [(), ("--in-place",), ("--dry-run",)])
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_refused_and_left_alone(
    good: Path, tmp_path: Path, case: str, options: tuple[str, ...]
) -> None:
    spoil, exit_code, words = DAMAGE[case]
    source = tmp_path / "in.gguf"
    source.write_bytes(spoil(good.read_bytes()))
    before = state(tmp_path)
    result = run(source, *(options or [tmp_path / "out.gguf"]))
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr
    assert state(tmp_path) == before


def test_version_2_is_read_and_a_repair_makes_it_3(broken: Path, tmp_path: Path, good: Path) -> None:
    data = broken.read_bytes()
    broken.write_bytes(data[:4] + b"\2" + data[5:])
    assert run(broken, tmp_path / "out.gguf").exit_code == 0
    assert (tmp_path / "out.gguf").read_bytes() == good.read_bytes()


def missing_folder(folder: Path) -> tuple[object, ...]:
    return (folder / "none" / "out.gguf",)


def existing(folder: Path) -> tuple[object, ...]:
    (folder / "out.gguf").write_bytes(b"mine")
    return (folder / "out.gguf",)


def linked(folder: Path) -> tuple[object, ...]:
    os.link(folder / "broken.gguf", folder / "other.gguf")
    return (folder / "other.gguf", "--force")


def no_tokenizer(folder: Path) -> tuple[object, ...]:
    copy_of_tiny(folder / "model")
    (folder / "model" / "tokenizer.json").unlink()
    return (folder / "out.gguf", "--tokenizer", folder / "model")


# Arguments after IN, and words of the message.
REFUSED: dict[str, tuple[Callable[[Path], tuple[object, ...]], tuple[str, ...]]] = {
    "no output": (lambda _: (), ("IN.gguf OUT.gguf, or IN.gguf --in-place",)),
    "output and in place": (lambda folder: (folder / "out.gguf", "--in-place"), ("or IN.gguf --in-place",)),
    "output is the input": (lambda folder: (folder / "broken.gguf", "--force"), ("never overwritten",)),
    "output is the input by another name": (linked, ("one of the inputs", "never overwritten")),
    "output exists": (existing, ("the output exists", "--force")),
    "output is a folder": (lambda folder: (folder,), ("is a folder", "OUT.gguf")),
    "missing folder": (missing_folder, ("no such folder", "create it first")),
    "device": (lambda _: (os.devnull, "--force"), ("no file that could be replaced",)),
    "no such setting": (lambda folder: (folder / "out.gguf", "--set", "a.b=1"), ("--set a.b", "no such key")),
    "no value": (lambda folder: (folder / "out.gguf", "--set", "a.b"), ("'a.b' is not KEY=VALUE",)),
    "wrong value": (
        lambda folder: (folder / "out.gguf", "--set", f"{K.EOS_ID}=x"),
        (f"--set {K.EOS_ID}: 'x' is no UINT32", "whole number"),
    ),
    "tokenizer is no folder": (lambda folder: (folder / "out.gguf", "--tokenizer", folder / "none"), ("none",)),
    "tokenizer is a file": (lambda folder: (folder / "out.gguf", "--tokenizer", folder / "broken.gguf"), ("folder",)),
    "no tokenizer.json": (no_tokenizer, ("tokenizer.json", "download")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_use_gives_2_and_one_clear_message(broken: Path, tmp_path: Path, case: str) -> None:
    arguments, words = REFUSED[case]
    given = arguments(tmp_path)
    before = state(tmp_path)
    result = run(broken, *given, "--quiet")
    assert (result.exit_code, result.stdout) == (2, "")
    for word in words:
        assert word in result.stderr
    assert state(tmp_path) == before


def test_a_refusal_of_the_output_comes_before_the_work(tmp_path: Path) -> None:
    """A big file is examined for half a minute: nobody should wait so long for a typing error."""
    (tmp_path / "out.gguf").touch()
    result = run(TINY_BROKEN, tmp_path / "out.gguf", "--tokenizer", TINY)
    assert "examining" not in result.stderr


def test_what_cannot_be_repaired_gives_1_and_a_document(tmp_path: Path) -> None:
    result = run(TINY_BROKEN, tmp_path / "out.gguf", "--json", "--quiet")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["error"]["problems"]
    assert "--tokenizer MODEL_DIR" in problem["next_step"]
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_name_gives_no_orders_to_the_terminal(good: Path, tmp_path: Path) -> None:
    name = "phi-3 \x1b]0;title\x07\nrepaired  everything"
    source = with_changes(good, tmp_path / "in.gguf", {Keys.General.NAME: text(Keys.General.NAME, name * 2000)})
    result = run(source, tmp_path / "out.gguf")
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "repaired  everything" not in result.output.splitlines()
    assert max(map(len, result.output.splitlines())) < 1000


def test_a_disk_that_is_too_small_is_told(broken: Path, small_disk: Path) -> None:
    result = run(broken, small_disk / "out.gguf", "--quiet")
    assert result.exit_code == 2
    assert "not enough disk space" in result.stderr
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    broken: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("files", "fix"):
        monkeypatch.setattr(f"phi4conv.{module}.check_target", lambda *_, **__: None)
    result = run(broken, small_disk / "out.gguf", "--quiet")
    assert result.exit_code == 2
    assert "No space left" in result.stderr
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("in_place", [True, False])
def test_a_disk_that_is_read_only_is_told_before_the_work(small_disk: Path, in_place: bool) -> None:
    source = small_disk / "in.gguf"  # a header alone fits
    convert(TINY, source, ConversionOptions(vocab_only=True))
    arguments = [source, "--in-place" if in_place else small_disk / "out.gguf"]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    before = state(small_disk)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "its folder cannot be written to" in result.stderr
    assert "examining" not in result.stderr
    assert state(small_disk) == before


# A copy that takes its time: each piece of a tensor 0.2 s.
SLOW_FIX = """
import sys, time
from phi4conv import cli, copying
from phi4conv.gguf_file import edit
def slowly(*arguments, copy_range=edit.copy_range, **options):
    print("working", flush=True)
    time.sleep(0.2)
    copy_range(*arguments, **options)
edit.copy_range = slowly
edit.clone = lambda *_: False
sys.argv[0] = "phi4conv"
cli.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("in_place", [True, False])
def test_an_interrupted_copy_leaves_nothing(broken: Path, tmp_path: Path, name: str, in_place: bool) -> None:
    before = state(tmp_path)
    target = ["--in-place"] if in_place else [str(tmp_path / "out.gguf")]
    command = [sys.executable, "-c", SLOW_FIX, "fix", str(broken), *target, "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "working\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.strip()) == (130, "interrupted")
    assert state(tmp_path) == before


def test_of_two_at_once_one_wins_and_the_other_says_so(broken: Path, tmp_path: Path, good: Path) -> None:
    out = tmp_path / "out.gguf"
    command = [*PHI4CONV, "fix", str(broken), str(out), "--quiet"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert sorted(code for _, code in ends) == [0, 2], ends
    (loser,) = [errors for errors, code in ends if code]
    assert "the output exists" in loser
    assert out.read_bytes() == good.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.gguf", "out.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors as on POSIX")
def test_a_closed_stdout_changes_nothing_about_the_work(broken: Path, tmp_path: Path, good: Path) -> None:
    out = tmp_path / "out.gguf"
    command = 'exec "$@" >&-'
    finished = subprocess.run(
        ["sh", "-c", command, "sh", *PHI4CONV, "fix", str(broken), str(out)], capture_output=True, check=False
    )
    assert finished.returncode == 0
    assert b"Traceback" not in finished.stderr
    assert out.read_bytes() == good.read_bytes()
