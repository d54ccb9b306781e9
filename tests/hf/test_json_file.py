from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.json_file import parse_json_object, read_at_most, read_json_object

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4247\n"


def refusal(data: bytes, tmp_path: Path, *, max_bytes: int = 1000) -> Problem:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_json_object(path, max_bytes=max_bytes)
    (problem,) = caught.value.problems
    assert problem.where == str(path)
    assert problem.next_step
    return problem


def test_objects_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        '{"name": "naïve 🙂", "escaped": "\\ud83d\\ude42", "nested": {"a": [1, 2.5, null]}}\n', encoding="utf-8"
    )
    assert read_json_object(path) == {"name": "naïve 🙂", "escaped": "🙂", "nested": {"a": [1, 2.5, None]}}


def test_the_huge_number_that_tokenizers_write_is_read() -> None:
    text = b'{"model_max_length": 1000000000000000019884624838656}'
    assert parse_json_object(text, "here") == {"model_max_length": 1000000000000000019884624838656}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty file"),
        (b" \n ", "empty file"),
        (LFS_POINTER, "a Git LFS pointer, not the file itself"),
        (b"<!DOCTYPE html><title>Log in</title>", "an HTML page, probably a login or error page saved by a download"),
        (b"\xef\xbb\xbf\n<!-- x --> <HTML lang='en'>", "an HTML page, probably a login or error page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML page"),
        (b"PK\x03\x04\x00\x00\x08\x08", "a ZIP archive"),
        (b"\x80\x02}q\x00.", "a Python pickle"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"\x1f\x8b\x08\x00", "a gzip archive"),
        (bytes(64), "zeros at the start"),
        (b'{"a": "\xe9"}', "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "starts with a byte order mark"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' appears twice"),
        (b'{"x": [{"a": 1, "a": 1}]}', "the key 'a' appears twice"),
        (b'{"a": "\\ud800"}', "a string that is no Unicode text"),
        (b'{"a": ' + b"9" * 500 + b"}", "a number of 500 digits"),
        (b"Entry not found", "broken JSON at line 1, column 1"),
        (b'{"a": 1,\n "b": }', "broken JSON at line 2, column 7"),
        (b'{"a": 1, "b"', "JSON that stops before its end"),
        (b'{"a": 1, "bcd', "JSON that stops before its end"),
        (b'{"a": [1,\n', "JSON that stops before its end"),
    ],
)
def test_each_mistake_has_its_message(data: bytes, what: str, tmp_path: Path) -> None:
    assert refusal(data, tmp_path).what.startswith(what)


def test_lfs_pointers_say_how_to_get_the_file(tmp_path: Path) -> None:
    assert "git lfs pull" in refusal(LFS_POINTER, tmp_path).next_step


def test_broken_json_shows_what_is_there(tmp_path: Path) -> None:
    assert refusal(b'{"a": nope}', tmp_path).found == "'nope}'"


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    assert refusal(b'{"a":' * 100_000, tmp_path, max_bytes=1 << 20).what == "JSON nested too deeply"


def test_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json_object(path, max_bytes=8) == {"a": 1}
    problem = refusal(b'{"a": 12}', tmp_path, max_bytes=8)
    assert (problem.what, problem.found) == ("too large to be a JSON file of a model", "9 bytes")


def test_the_start_of_a_larger_file_is_read_when_that_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(b"0123456789")
    assert read_at_most(path, 10) == b"0123456789"
    assert read_at_most(path, 4, cut=True) == b"0123"
    with pytest.raises(CheckpointError, match="too large"):
        read_at_most(path, 4)


def test_long_texts_do_not_fill_the_screen(tmp_path: Path) -> None:
    key = b"k" * 5000
    error = refusal(b'{"%b": 1, "%b": 2}' % (key, key), tmp_path, max_bytes=20_000)
    assert len("".join(error.lines())) < 500


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="file not found"):
        read_json_object(tmp_path / "config.json")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder, not a file"):
        read_json_object(tmp_path)


def test_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json_object(tmp_path / "model" / "config.json")


def test_broken_link(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.symlink_to("../blobs/4d7a")
    with pytest.raises(CheckpointError, match="a link to a file that is not there"):
        read_json_object(path)


def test_link_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.symlink_to(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json_object(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="a pipe or device, not a file"):
        read_json_object(tmp_path / "config.json")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    path.chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json_object(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values), st.booleans())
def test_what_json_writes_is_read_back(value: dict[str, object], ascii_only: bool) -> None:
    assert parse_json_object(json.dumps(value, ensure_ascii=ascii_only).encode(), "here") == value


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = parse_json_object(data, "here")
    except CheckpointError:
        return
    assert value == json.loads(data)
