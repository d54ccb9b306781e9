from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from phi4conv.errors import CheckpointError
from phi4conv.hf.front_matter import MAX_CARD_BYTES, read_front_matter


def read(folder: Path, data: bytes) -> dict[str, Any]:
    (folder / "README.md").write_bytes(data)
    return read_front_matter(folder / "README.md")


@pytest.mark.parametrize(
    "data",
    [
        b"---\nlicense: mit\ntags: [a]\n---\n# Title\n",
        b"---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\n",
        b"\xef\xbb\xbf---\nlicense: mit\ntags: [a]\n---",
        b"--- \nlicense:\tmit\ntags: [a]\n---\nAndr\xe9 wrote this in Latin-1.\n",
        b"---\nlicense: mit\ntags: [a]\n---\n" + b"long " * MAX_CARD_BYTES,
    ],
)
def test_front_matter_is_read(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path, data) == {"license": "mit", "tags": ["a"]}


@pytest.mark.parametrize(
    "data", [b"", b"# Title\n", b"\xff\xfe-\x00", b"---\n---\n", b"---\n# a comment\n---\n", b"----\n"]
)
def test_a_readme_without_front_matter_says_nothing(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path, data) == {}


def test_no_readme_says_nothing(tmp_path: Path) -> None:
    assert read_front_matter(tmp_path / "README.md") == {}


def bomb(merge: str) -> bytes:
    lines = ["a0: &a0 {x: y}"]
    lines += [f"a{level}: &a{level} {merge % ', '.join([f'*a{level - 1}'] * 10)}" for level in range(1, 10)]
    return "\n".join(["---", *lines, "license: *a9", "---", ""]).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"---\nA rule at the top, and no front matter.\n", "front matter without an end"),
        (b"---\nlicense: mit\n" + b"x: yyyyyy\n" * (MAX_CARD_BYTES // 10) + b"---\n", "front matter without an end"),
        (b"---\nA rule.\n\n---\nAnother.\n", "front matter that is no YAML mapping"),
        (b"---\n- a\n---\n", "front matter that is no YAML mapping"),
        (b"---\nlicense: [mit\n---\n", "front matter that is no YAML\n"),
        (b"---\nauthor: Andr\xe9\n---\n", "front matter that is no YAML\n(.|\n)*utf-8"),
        (b"---\na: !!python/object/apply:os.system [ls]\n---\n", "front matter that is no YAML\n"),
        (b'---\na: "\\UFFFFFFFF"\n---\n', "front matter that is no YAML\n"),
        (b"---\na: !!map [b]\n---\n", "front matter that is no YAML\n"),
        (b"---\na: !!int 4\n---\n", "tag:yaml.org,2002:int"),
        (b"---\na: !!set {b, c}\n---\n", "tag:yaml.org,2002:set"),
        (b"---\na: !!int " + b"1:" * 120_000 + b"1\n---\n", "tag:yaml.org,2002:int"),
        (b"---\n? [a]\n: b\n---\n", "front matter that is no YAML\n"),
        (b"---\na: " + b"[" * 100_000 + b"\n---\n", "nested too deeply"),
        (b"---\n" + b"- " * 100_000 + b"\n---\n", "nested too deeply"),
        (bomb("[%s]"), r"the alias \*a0"),
        (bomb("{<<: [%s]}"), r"the alias \*a0"),
    ],
)
def test_what_is_no_front_matter_is_refused_in_little_time(tmp_path: Path, data: bytes, words: str) -> None:
    before = time.process_time()
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path, data)
    assert time.process_time() - before < 5


def test_a_folder_or_a_lost_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(CheckpointError, match="a folder, not a file"):
        read_front_matter(tmp_path / "a")
    try:
        (tmp_path / "b").symlink_to("nowhere")
    except OSError:
        pytest.skip("no symbolic links on this system")
    with pytest.raises(CheckpointError, match="a link to a file that is not there"):
        read_front_matter(tmp_path / "b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "README.md")
    with pytest.raises(CheckpointError, match="a pipe or device, not a file"):
        read_front_matter(tmp_path / "README.md")
