"""phi4conv verify-tokenizer as a user meets it: verdict, defects, proof, and what it refuses."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TINY, TINY_BROKEN, copy_of_tiny
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType, GGUFValueType, Keys
from vocabulary_files import changed, tiny_pairs, written

from phi4conv.cli.verify_tokenizer import verify_tokenizer
from phi4conv.gguf_file.layout import MetadataPair, f32s, i32s, text, texts, u32
from phi4conv.gguf_file.write import encode_header

K = Keys.Tokenizer
COUNT = len(tiny_pairs()[K.LIST].value)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Phi-4's metadata as phi4conv writes them."""
    return written(tiny_pairs(), tmp_path_factory.mktemp("good") / "tiny.gguf")


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(verify_tokenizer, [*map(str, arguments)])


def changed_file(path: Path, *changes: MetadataPair) -> Path:
    return written(changed(tiny_pairs(), *changes), path)


def test_a_right_file_gives_0_and_the_verdict_first(good: Path) -> None:
    result = run(TINY, good)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny.gguf: the tokenizer is right"
    assert f"  source  {TINY}" in lines
    start = lines.index("compared               tried  alike  known  wrong")
    assert lines[start + 1] == "  ids decoded          1,024  1,024      0      0"
    known = next(place for place, line in enumerate(lines) if "GGUF cannot say it" in line)
    assert "white space around special tokens" in lines[known + 1]
    assert "FAIL" not in result.stdout
    assert "repair it" not in result.stdout


def test_a_wrong_file_gives_1_and_each_defect_once(tmp_path: Path) -> None:
    path = tmp_path / "my broken.gguf"
    shutil.copy(TINY_BROKEN, path)
    result = run(TINY, path)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "my broken.gguf: the tokenizer is wrong, 5 defects"
    assert [line.split()[1] for line in lines if line.startswith("FAIL")] == [
        "tokenizer/model",
        "tokenizer/eos-id",
        "tokenizer/pad-id",
        "phi3/sliding-window",
        "tokenizer/chat-template",
    ]
    place = lines.index("FAIL  tokenizer/model (sentencepiece-from-bpe)")
    assert "a SentencePiece table made from BPE token strings" in lines[place + 1]
    assert lines[place + 2 : place + 7] == [
        "    where:     tokenizer.ggml.model",
        "    expected:  gpt2, 1,024 tokens, 672 merges",
        "    found:     llama, 1,024 tokens, 96 of them right",
        "    remedy:    `phi4conv fix` repairs it",
        "    it follows that",
    ]
    assert "    llama.cpp: --override-kv tokenizer.ggml.eos_token_id=int:937" in lines
    assert lines[-1] == f"repair it: phi4conv fix '{path}' FIXED.gguf --tokenizer {TINY}"


def test_the_document_is_complete() -> None:
    result = run(TINY, TINY_BROKEN, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (1, "")
    document = json.loads(result.stdout)
    assert (document["schema"], document["command"]) == ("phi4conv.verify-tokenizer/1", "verify-tokenizer")
    assert document["verdict"] == {"right": False, "text": "the tokenizer is wrong, 5 defects"}
    assert document["source"] == {"kind": "model_folder", "origin": str(TINY)}
    root = document["findings"][0]
    assert (root["id"], root["severity"], root["code"]) == ("tokenizer/model", "FAIL", "sentencepiece-from-bpe")
    assert {"message", "where", "expected", "actual", "override", "repairs", "consequences"} < set(root)
    below = {consequence["id"] for consequence in root["consequences"]}
    assert below > {"tokenizer/tokens", "tokenizer/ids", "tokenizer/texts"}
    assert {name: each["equal"] for name, each in document["digests"].items()} == {"tokens": False, "merges": False}
    texts_compared = {each["name"]: each for each in document["comparisons"]}
    assert texts_compared["ids decoded"]["wrong"] == 928
    wrong = texts_compared["built-in texts"]
    assert len(wrong["mismatches"]) + wrong["mismatches_left_out"] == wrong["wrong"] > 100


def on_a_terminal(*arguments: object, columns: int) -> list[str]:
    """The lines on a terminal of so many columns."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"NO_COLOR": "1"}
    command = [sys.executable, "-m", "phi4conv", "verify-tokenizer", *map(str, arguments), "--quiet"]
    with subprocess.Popen(command, stdout=other, env=environment):
        os.close(other)
        parts = []
        with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
            while part := os.read(main, 4096):
                parts.append(part)
    os.close(main)
    return b"".join(parts).decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize(("columns", "width"), [(80, 80), (100, 100), (200, 100)])
def test_messages_are_wrapped_at_words_on_a_terminal(columns: int, width: int) -> None:
    lines = on_a_terminal(TINY, TINY_BROKEN, columns=columns)
    place = lines.index("FAIL  tokenizer/model (sentencepiece-from-bpe)")
    end = next(index for index, line in enumerate(lines) if line.startswith("    where:"))
    message = lines[place + 1 : end]
    assert len(message) > 1
    assert all(line.startswith("  ") and len(line) <= width for line in message)
    assert len(message[0]) > width - 15
    whole = run(TINY, TINY_BROKEN, "--quiet").stdout.splitlines()
    assert "  " + " ".join(line.strip() for line in message) in whole


def test_without_a_folder_only_phi_4_itself_is_proved(good: Path) -> None:
    result = run(good)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "verify-tokenizer MODEL_DIR" in result.stderr


# The pair that is hostile, and the root finding that names it.
HOSTILE: dict[str, tuple[MetadataPair, str]] = {
    "tokens are numbers": (i32s(K.LIST, range(COUNT)), K.LIST),
    "tokens are a string": (text(K.LIST, "a b"), K.LIST),
    "tokens are one text 100,000 times": (texts(K.LIST, ["same"] * 100_000), K.LIST),
    "a token is no UTF-8": (texts(K.LIST, ["\udcff", *list(tiny_pairs()[K.LIST].value)[1:]]), K.LIST),
    "a token has a megabyte": (texts(K.LIST, ["x" * 1_000_000, *list(tiny_pairs()[K.LIST].value)[1:]]), K.LIST),
    "no tokens": (texts(K.LIST, []), K.LIST),
    "merges are a string": (text(K.MERGES, "a b"), K.MERGES),
    "types are floats": (f32s(K.TOKEN_TYPE, [1.0] * COUNT), K.TOKEN_TYPE),
    "types are strings": (texts(K.TOKEN_TYPE, ["1"] * COUNT), K.TOKEN_TYPE),
    "eos is a string": (text(K.EOS_ID, "<|im_end|>"), K.EOS_ID),
    "eos is a number among others": (i32s(K.EOS_ID, [937]), K.EOS_ID),
    "eos is of 64 bits": (MetadataPair(K.EOS_ID, GGUFValueType.UINT64, 937), K.EOS_ID),
    "pre is a number": (u32(K.PRE, 1), K.PRE),
    "add_bos is a string": (text(K.ADD_BOS, "true"), K.ADD_BOS),
    "the template has 5 MB": (text(K.CHAT_TEMPLATE, "x" * 5_000_000), K.CHAT_TEMPLATE),
    "the template grows": (text(K.CHAT_TEMPLATE, "{{ 'a' * 4000000000 }}"), K.CHAT_TEMPLATE),
    "the template is a number": (u32(K.CHAT_TEMPLATE, 1), K.CHAT_TEMPLATE),
    "the window is a string": (text("phi3.attention.sliding_window", "0"), "phi3.attention.sliding_window"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata_are_one_defect_and_no_crash(tmp_path: Path, case: str) -> None:
    pair, where = HOSTILE[case]
    path = changed_file(tmp_path / "hostile.gguf", pair)
    before = path.read_bytes()
    result = run(TINY, path, "--json", "--quiet")
    assert result.exit_code == 1, result.output
    failed = [finding for finding in json.loads(result.stdout)["findings"] if finding["severity"] == "FAIL"]
    assert [finding["where"] for finding in failed] == [where]
    assert path.read_bytes() == before


def test_a_hostile_text_is_shown_short_and_without_orders(tmp_path: Path) -> None:
    spoiled = ["\x1b]0;title\x07\nFAIL  forged" + "x" * 99_999, *list(tiny_pairs()[K.LIST].value)[1:]]
    result = run(TINY, changed_file(tmp_path / "hostile.gguf", texts(K.LIST, spoiled)))
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert not any(line.startswith("FAIL  forged") for line in result.output.splitlines())
    assert max(map(len, result.output.splitlines())) < 2000


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "empty": (lambda _: b"", ("not a GGUF", "an empty file")),
    "an archive": (lambda _: b"PK\3\4" * 99, ("not a GGUF", "zip archive")),
    "header cut": (lambda data: data[:5000], ("truncated-header", "5,000", "download")),
    "version 1": (lambda data: data[:4] + b"\1" + data[5:], ("unsupported-version", "phi4conv convert")),
    "other byte order": (lambda data: data[:4] + b"\0\0\0\3" + data[8:], ("big-endian", "phi4conv convert")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_file_that_cannot_be_read_gives_2(good: Path, tmp_path: Path, case: str) -> None:
    spoil, words = DAMAGE[case]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(spoil(good.read_bytes()))
    result = run(TINY, path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr


def with_weights(path: Path, rows: int = COUNT) -> Path:
    """The tiny Phi-4's metadata and an embedding of zeros."""
    header = encode_header(tiny_pairs().values(), [("token_embd.weight", (rows, 256), GGMLQuantizationType.F16)])
    path.write_bytes(header.data)
    os.truncate(path, header.size_bytes)
    return path


def test_missing_weights_leave_the_tokenizer_to_be_examined(tmp_path: Path) -> None:
    path = with_weights(tmp_path / "cut.gguf")
    os.truncate(path, path.stat().st_size - 1000)
    result = run(TINY, path)
    assert result.exit_code == 0
    assert "warning: token_embd.weight: the tensors need a file of" in result.stderr
    assert "(truncated-data); only the tokenizer was examined" in result.stderr
    document = json.loads(run(TINY, path, "--json", "--quiet").stdout)
    assert "truncated-data" in document["notes"][0]


def test_missing_weights_do_not_hide_a_wrong_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(TINY_BROKEN.read_bytes()[:-1000])
    result = run(TINY, path)
    assert result.exit_code == 1
    assert result.stdout.startswith("cut.gguf: the tokenizer is wrong, 5 defects\n")


def without_tokenizer(folder: Path) -> tuple[Any, ...]:
    copy_of_tiny(folder / "model")
    (folder / "model" / "tokenizer.json").unlink()
    return folder / "model", folder / "good.gguf"


def with_text(content: bytes | None) -> Callable[[Path], tuple[Any, ...]]:
    def arguments(folder: Path) -> tuple[Any, ...]:
        if content is not None:
            (folder / "text.txt").write_bytes(content)
        return TINY, folder / "good.gguf", "--text", folder / "text.txt"

    return arguments


# Arguments, and words of the message.
REFUSED: Mapping[str, tuple[Callable[[Path], tuple[Any, ...]], tuple[str, ...]]] = {
    "nothing": (lambda _: (), ("Missing argument",)),
    "three paths": (lambda folder: (TINY, folder / "good.gguf", folder), ("found 3 paths",)),
    "folder and file exchanged": (lambda folder: (folder / "good.gguf", TINY), ("the folder comes first",)),
    "folder alone": (lambda _: (TINY,), ("a folder",)),
    "missing file": (lambda folder: (TINY, folder / "none.gguf"), ("none.gguf", "nothing of that name")),
    "missing folder": (lambda folder: (folder / "none", folder / "good.gguf"), ("none",)),
    "folder is a file": (lambda folder: (folder / "good.gguf", folder / "good.gguf"), ("good.gguf",)),
    "no tokenizer.json": (without_tokenizer, ("no tokenizer.json", "download")),
    "missing text": (with_text(None), ("cannot be read", "text.txt")),
    "text is no UTF-8": (with_text(b"caf\xe9"), ("not UTF-8", "0xe9 at offset 3")),
    "negative fuzz": (lambda folder: (TINY, folder / "good.gguf", "--fuzz", "-1"), ("--fuzz",)),
    "no such runtime": (lambda folder: (TINY, folder / "good.gguf", "--runtime", "onnx"), ("llama.cpp",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_use_gives_2_and_one_clear_message(good: Path, tmp_path: Path, case: str) -> None:
    arguments, words = REFUSED[case]
    shutil.copy(good, tmp_path / "good.gguf")
    result = run(*arguments(tmp_path), "--quiet")
    assert (result.exit_code, result.stdout) == (2, "")
    for word in words:
        assert word in result.stderr


def rows(result: Result) -> dict[str, list[int]]:
    """The table of a proof: for each name tried, alike, known and wrong."""
    cells = [line.rsplit(maxsplit=4) for line in result.stdout.splitlines() if line.startswith("  ")]
    return {
        name.strip(): [int(count.replace(",", "")) for count in counts]
        for name, *counts in (row for row in cells if len(row) == 5)
        if all(count.replace(",", "").isdigit() for count in counts)
    }


@pytest.mark.parametrize(
    ("content", "known"),
    [(b"", 0), ("Grüße, 世界!\r\n\ttab".encode(), 0), (b"a <|im_end|> b", 1), (b"\xef\xbb\xbfx", 0)],
)
def test_your_texts_are_compared_both_as_chat_and_as_plain_text(
    good: Path, tmp_path: Path, content: bytes, known: int
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    result = run(TINY, good, "--text", tmp_path / "text.txt", "--quiet")
    assert result.exit_code == 0
    assert rows(result)["your texts"] == [2, 2 - known, known, 0]


def test_a_wrong_text_of_yours_is_shown_by_name(tmp_path: Path) -> None:
    path = changed_file(tmp_path / "wrong.gguf", text(K.PRE, "gpt-2"))
    (tmp_path / "mine.txt").write_text("12345 67890\n\n\n\nend")
    result = run(TINY, path, "--text", tmp_path / "mine.txt", "--json", "--quiet")
    assert result.exit_code == 1
    (root,) = json.loads(result.stdout)["findings"]
    assert root["id"] == "tokenizer/pre"
    (mine,) = [found for found in root["consequences"] if found["id"] == "tokenizer/your-texts"]
    assert "mine.txt" in mine["where"]


@pytest.mark.slow
def test_a_text_of_many_special_tokens_takes_time_in_proportion(good: Path, tmp_path: Path) -> None:
    """2.4 MB with white space around 80,000 special tokens: once this took minutes. The limit is no measurement."""
    (tmp_path / "text.txt").write_text("Hello wörld, 123 <|im_end|> \n" * 80_000)
    command = [sys.executable, "-m", "phi4conv", "verify-tokenizer", TINY, good, "--text", tmp_path / "text.txt", "-q"]
    finished = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0
    assert "  your texts               2      1      1      0" in finished.stdout.splitlines()


def test_random_texts_depend_on_the_seed_alone(good: Path) -> None:
    first, again, other = (run(TINY, good, "--fuzz", "300", "--seed", seed, "--json", "-q") for seed in (1, 1, 2))
    counted = [
        {each["name"]: (each["texts"], each["tokens"]) for each in json.loads(result.stdout)["comparisons"]}
        for result in (first, again, other)
    ]
    assert counted[0] == counted[1] != counted[2]
    assert counted[0]["random texts"][0] == 600


def test_no_random_texts_is_no_group(good: Path) -> None:
    assert "random texts" not in rows(run(TINY, good, "--fuzz", "0", "-q"))


def test_real_llama_cpp_is_asked_too(good: Path) -> None:
    pytest.importorskip("xllamacpp")
    result = run(TINY, good, "--runtime", "llama.cpp", "--quiet")
    assert result.exit_code == 0, result.output
    tried, alike, known, wrong = rows(result)["texts through llama.cpp"]
    assert tried > 8000
    assert (alike, known, wrong) == (tried, 0, 0)


def test_real_llama_cpp_refuses_with_us(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = changed_file(tmp_path / "wrong.gguf", text(K.PRE, "phi-4"))
    result = run(TINY, path, "--runtime", "llama.cpp", "--json", "--quiet")
    assert result.exit_code == 1
    (root,) = json.loads(result.stdout)["findings"]
    assert (root["id"], root["code"]) == ("tokenizer/pre", "unknown")


def test_a_file_with_fewer_rows_than_the_tokenizer_has_tokens_gives_1(tmp_path: Path) -> None:
    result = run(TINY, with_weights(tmp_path / "small.gguf", 1000))
    assert result.exit_code == 1
    for word in ("more tokens than the embedding has rows", "1,000", "1,024"):
        assert word in result.stderr
