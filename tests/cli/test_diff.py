"""phi4conv diff as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import TINY_BROKEN
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType

from phi4conv.cli.diff import SHOWN_TENSORS, diff
from phi4conv.files import AtomicFile
from phi4conv.gguf_file import layout
from phi4conv.gguf_file.edit import Change, edited_size, write_edited
from phi4conv.gguf_file.layout import MetadataPair
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.write import encode_header
from phi4conv.progress import Silent


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner(env={"COLUMNS": "80", **environment}).invoke(diff, [*map(str, arguments)])


def changed(target: Path, *changes: MetadataPair | str) -> Path:
    """The broken fixture with other pairs, and without the keys that are named."""
    file = read_gguf(TINY_BROKEN)
    edits = [Change(each, None) if isinstance(each, str) else Change(each.key, each) for each in changes]
    with AtomicFile(target, edited_size(file, edits)) as out:
        write_edited(file, edits, out, Silent())
        out.commit()
    return target


TEMPLATE = read_gguf(TINY_BROKEN).text("tokenizer.chat_template") or ""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    tokens = list(read_gguf(TINY_BROKEN).strings("tokenizer.ggml.tokens"))
    tokens[7] = "\x1b[31mred"
    return changed(
        tmp_path / "other.gguf",
        "tokenizer.ggml.padding_token_id",
        layout.text("general.name", "other"),
        layout.u64("phi3.block_count", 4),
        layout.texts("tokenizer.ggml.tokens", tokens),
        layout.texts("tokenizer.ggml.merges", ["a b"]),
        layout.text("tokenizer.chat_template", TEMPLATE + "{# more #}"),
    )


def test_equal_files_give_0(tmp_path: Path) -> None:
    copy = changed(tmp_path / "copy.gguf")
    result = run(TINY_BROKEN, copy)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "equal: same metadata, same tensors",
        f"  A  {TINY_BROKEN}  2.82 MiB, 24 keys, 27 tensors",
        f"  B  {copy}  2.82 MiB, 24 keys, 27 tensors",
    ]


def test_different_files_give_1_and_every_difference(other: Path) -> None:
    result = run(TINY_BROKEN, other)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == "same tensors, other metadata: 6 keys"
    end = len(TEMPLATE) + 1
    lengths = f"{end - 1:,} characters in A, {end + 9:,} in B"
    for line in [
        "  general.name",
        "    B  other",
        "  phi3.block_count  (other type)",
        "    A  UINT32 4",
        "    B  UINT64 4",
        f"  tokenizer.chat_template  ({lengths}; they differ from line 1, column {end} on)",
        f"    A  …{TEMPLATE[-30:]}",
        f"    B  …{TEMPLATE[-30:]}{{# more #}}",
        "vocabulary",
        "  tokens: 1,024 in A, 1,024 in B; 1 ids differ",
        r"    1 only in B: \x1b[31mred",
        "  merges: 0 in A, 1 in B; 1 ranks differ",
        "    1 only in B: a b",
    ]:
        assert line in lines
    assert any(line.startswith("  padding  A 929 ") and line.endswith("B not given") for line in lines)
    assert "tokenizer.ggml.tokens" not in result.output  # the vocabulary tells of it
    assert "\x1b" not in result.output


def test_a_key_of_the_vocabulary_that_has_another_type_is_not_lost(tmp_path: Path) -> None:
    eos = read_gguf(TINY_BROKEN).number("tokenizer.ggml.eos_token_id")
    assert isinstance(eos, int)
    result = run(TINY_BROKEN, changed(tmp_path / "b.gguf", layout.i32("tokenizer.ggml.eos_token_id", eos)))
    assert result.exit_code == 1
    assert "  tokenizer.ggml.eos_token_id  (other type)" in result.output.splitlines()


def test_a_broken_vocabulary_is_shown_beside_a_right_one_in_a_few_lines(tmp_path: Path) -> None:
    texts = layout.texts("tokenizer.ggml.tokens", [f"t{number}" for number in range(1024)])
    result = run(TINY_BROKEN, changed(tmp_path / "b.gguf", texts, "tokenizer.ggml.scores"))
    assert result.exit_code == 1
    assert "    … and 1,019 more; --json lists all" in result.output.splitlines()
    assert len(result.output.splitlines()) < 30


def test_items_of_an_array_are_shown_with_their_places(tmp_path: Path) -> None:
    scores = list(read_gguf(TINY_BROKEN).floats("tokenizer.ggml.scores"))
    result = run(TINY_BROKEN, changed(tmp_path / "b", layout.f32s("tokenizer.ggml.scores", [*scores[:-2], 0.5, 1.5])))
    assert "  tokenizer.ggml.scores  (2 of 1,024 items differ)" in result.output.splitlines()
    assert f"    [1022]  A {scores[-2]}  B 0.5" in result.output.splitlines()


def test_tensors_that_differ_are_listed_up_to_a_bound(tmp_path: Path) -> None:
    names = [f"blk.{number}.ffn_up.weight" for number in range(SHOWN_TENSORS + 3)]
    for path, qtype in ((tmp_path / "a", GGMLQuantizationType.F32), (tmp_path / "b", GGMLQuantizationType.F16)):
        header = encode_header([], [(name, (2, 32), qtype) for name in names])
        path.write_bytes(header.data + bytes(header.size_bytes - header.data_offset))
    lines = run(tmp_path / "a", tmp_path / "b").output.splitlines()
    assert "  blk.0.ffn_up.weight  A F32 2 x 32, B F16 2 x 32" in lines
    assert lines[-1] == "    … and 3 more; --json lists all"
    documents = json.loads(run(tmp_path / "a", tmp_path / "b", "--json").stdout)["tensors"]
    assert [tensor["name"] for tensor in documents] == names


def test_bytes_that_differ_are_told_and_not_read_with_no_data(tmp_path: Path) -> None:
    data = bytearray(TINY_BROKEN.read_bytes())
    entry = read_gguf(TINY_BROKEN).tensors[3]
    data[read_gguf(TINY_BROKEN).data_offset + entry.offset + 5] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    result = run(TINY_BROKEN, other)
    assert result.exit_code == 1
    assert result.output.splitlines()[0] == "same metadata, other tensors: 1 of 27"
    assert f"  {entry.name}  bytes differ from byte 5 of {entry.size_bytes:,} on" in result.output.splitlines()
    unread = run(TINY_BROKEN, other, "--no-data")
    assert unread.exit_code == 0
    assert "(the bytes of 27 tensors were not compared)" in unread.output.splitlines()[0]


def test_one_file_under_two_names_is_said_to_be_one(tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(TINY_BROKEN)
    result = run(TINY_BROKEN, link)
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == "equal: one and the same file"
    assert "     both names lead to one file" in result.output.splitlines()


def test_defects_and_facts_of_one_side_are_shown(tmp_path: Path) -> None:
    data = TINY_BROKEN.read_bytes()
    other = tmp_path / "old.gguf"
    other.write_bytes(data[:4] + (2).to_bytes(4, "little") + data[8:-100])
    lines = run(TINY_BROKEN, other).output.splitlines()
    assert "  version  A 3, B 2" in lines
    assert lines[lines.index("only B has") + 1] == "1 defect in the format"


def test_a_file_that_cannot_be_read_gives_2(tmp_path: Path) -> None:
    page = tmp_path / "page.gguf"
    page.write_text("<!DOCTYPE html>")
    for files in ((TINY_BROKEN, page), (page, TINY_BROKEN), (TINY_BROKEN, tmp_path / "none.gguf")):
        result = run(*files)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
    result = run(TINY_BROKEN, page, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["schema"] == "phi4conv.error/1"


def test_json_is_one_document(other: Path) -> None:
    result = run(TINY_BROKEN, other, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["schema"], document["command"]) == ("phi4conv.diff/1", "diff")
    assert document["equal"] is False
    assert [pair["key"] for pair in document["metadata"] if pair["kind"] == "type"] == ["phi3.block_count"]
    assert document["tensors_equal"] == 27
    assert result.stderr == ""


def test_quiet_still_shows_the_result(other: Path) -> None:
    assert run(TINY_BROKEN, other, "--quiet").output == run(TINY_BROKEN, other).output


def test_colours_are_for_those_who_want_them(other: Path) -> None:
    assert run(TINY_BROKEN, other, FORCE_COLOR="1", NO_COLOR="").output.startswith("\x1b[31m\x1b[1msame tensors")
    assert run(TINY_BROKEN, TINY_BROKEN, FORCE_COLOR="1", NO_COLOR="").output.startswith("\x1b[32m\x1b[1mequal")
