from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from checkpoints import TINY, TINY_BROKEN, copy_of_tiny
from gguf import Keys
from one_change import exchanged, with_merges
from small_tokenizers import end_with
from tokenizers import Tokenizer
from vocabulary_files import Pairs, changed, tiny_pairs, written

from phi4conv.errors import FormatError
from phi4conv.gguf_file.layout import GGUFFile, boolean
from phi4conv.gguf_file.read import read_gguf
from phi4conv.hf.source import read_source
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.verify import prompt_text
from phi4conv.verify.prompt_text import read_text_tokens
from phi4conv.verify.prompts import PromptOptions, PromptReading, read_windows

PROSE = "The quick brown fox jumps over the lazy dog, and <|im_end|> is no token here.\n" * 60

needs_xllamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or not sys.platform.startswith(("linux", "darwin")),
    reason="needs xllamacpp (the extra llama-cpp) under Linux or macOS",
)


def good_file(tmp_path: Path, pairs: Pairs | None = None) -> GGUFFile:
    """A file of metadata alone; the tiny Phi-4's unless told otherwise."""
    return read_gguf(written(pairs or tiny_pairs(), tmp_path / "tiny.gguf"))


def saved(tmp_path: Path, content: str) -> Path:
    """The text in a file."""
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode())
    return path


def reading_of(tmp_path: Path, content: str, window: int = 512, max_tokens: int | None = None) -> PromptReading:
    """The windows of a text by the tiny Phi-4."""
    options = PromptOptions(text=saved(tmp_path, content), window=window, max_tokens=max_tokens)
    return read_windows(TINY, good_file(tmp_path), options)


def plain_ids(content: str) -> list[int]:
    """What the tokenizers library makes of a text in which special tokens mean nothing."""
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(content, add_special_tokens=True).ids
    return ids


def test_a_text_is_cut_into_whole_windows_and_the_rest_is_left_out(tmp_path: Path) -> None:
    reading = reading_of(tmp_path, PROSE)
    ids = plain_ids(PROSE.removesuffix("\n"))
    count, rest = divmod(len(ids), 512)
    assert count > 1 < rest
    assert [list(window.ids) for window in reading.windows] == [ids[at : at + 512] for at in range(0, 512 * count, 512)]
    assert reading.token_count == 512 * count
    (note,) = reading.notes
    assert f"{rest:,} of {len(ids):,} tokens" in note
    assert reading.windows[1].name == f"{tmp_path / 'text.txt'}, window 2 of {count}"
    assert reading.findings == ()


def test_the_second_half_of_a_window_is_scored_as_by_llama_perplexity(tmp_path: Path) -> None:
    """tools/perplexity/perplexity.cpp: n_ctx - first - 1 tokens of each chunk, the ones behind position first."""
    for size in (512, 101, 4, 3):
        for window in reading_of(tmp_path, PROSE, size).windows:
            first = size // 2
            assert window.scored == range(first, size - 1)
            assert window.targets == window.ids[first + 1 :]


@needs_xllamacpp
def test_the_tokens_are_llama_cpps(tmp_path: Path) -> None:
    content = PROSE + "Grüße aus Köln, 世界!  12345\r\n\r\n\tend\n"
    reading = reading_of(tmp_path, content, 3)
    with LlamaCpp() as llama:
        llama.load(good_file(tmp_path).path, vocab_only=True)
        expected = llama.tokenize([content.removesuffix("\n")], add_special=True, parse_special=False)[0]
    assert [token for window in reading.windows for token in window.ids] == expected[: len(expected) // 3 * 3]


def test_a_text_that_fills_its_windows_needs_no_note(tmp_path: Path) -> None:
    ids = plain_ids(PROSE[:-1])
    reading = reading_of(tmp_path, PROSE, len(ids))
    assert [window.ids for window in reading.windows] == [tuple(ids)]
    assert reading.windows[0].scored == range(len(ids) // 2, len(ids) - 1)
    assert reading.notes == ()


def test_a_short_text_is_one_shorter_window_with_a_note(tmp_path: Path) -> None:
    reading = reading_of(tmp_path, "Once upon a time.")
    (window,) = reading.windows
    assert list(window.ids) == plain_ids("Once upon a time.")
    assert window.scored == range(len(window.ids) // 2, len(window.ids))
    (note,) = reading.notes
    assert note.endswith(f"{len(window.ids)} tokens make one window, shorter than 512")


def test_of_a_long_text_the_first_tokens_are_used_with_a_note(tmp_path: Path) -> None:
    reading = reading_of(tmp_path, PROSE, 100, 250)
    assert [list(window.ids) for window in reading.windows] == [plain_ids(PROSE)[:100], plain_ids(PROSE)[100:200]]
    (note,) = reading.notes
    characters = len(Tokenizer.from_file(str(TINY / "tokenizer.json")).decode(plain_ids(PROSE)[:200]))
    assert f"its first 200 tokens are used, {characters} of {len(PROSE) - 1:,} characters" in note
    assert "--max-tokens" in note


def test_fewer_tokens_than_a_window_are_one_shorter_window(tmp_path: Path) -> None:
    reading = reading_of(tmp_path, PROSE, 512, 10)
    assert [list(window.ids) for window in reading.windows] == [plain_ids(PROSE)[:10]]
    assert len(reading.notes) == 2


def test_by_default_eight_windows_are_used(tmp_path: Path) -> None:
    path = saved(tmp_path, PROSE * 20)
    reading = read_windows(TINY, good_file(tmp_path), PromptOptions(text=path))
    assert reading.token_count == 4096
    assert [len(window.ids) for window in reading.windows] == [512] * 8


def test_of_a_very_long_text_only_the_beginning_is_tokenized(tmp_path: Path) -> None:
    source = read_source(TINY).source
    tokens = read_text_tokens(saved(tmp_path, PROSE * 1000), source, 512, 512)
    assert tokens.windows == (tuple(plain_ids(PROSE)[:512]),)
    assert len(tokens.sample.text) < 10_000


def test_a_text_of_long_tokens_is_read_far_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_text, "CHARACTERS_PER_TOKEN", 1)
    assert len(PROSE) > 1.5 * len(plain_ids(PROSE))
    tokens = read_text_tokens(saved(tmp_path, PROSE * 2), read_source(TINY).source, 100, 700)
    assert [token for window in tokens.windows for token in window] == plain_ids(PROSE)[:700]


def test_bos_takes_the_place_of_each_windows_first_token(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "model", single_file=False)
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    end_with(data, "<|endoftext|>", None)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    pairs = changed(tiny_pairs(), boolean(Keys.Tokenizer.ADD_BOS, value=True))
    options = PromptOptions(text=saved(tmp_path, PROSE), window=100, max_tokens=None)
    reading = read_windows(folder, good_file(tmp_path, pairs), options)
    assert reading.findings == ()
    bos = int(tiny_pairs()[Keys.Tokenizer.BOS_ID].value)
    ids = [bos, *plain_ids(PROSE[:-1])]
    assert [list(window.ids) for window in reading.windows] == [
        [bos, *ids[at + 1 : at + 100]] for at in range(0, len(ids) // 100 * 100, 100)
    ]


def test_a_text_and_prompts_are_both_asked(tmp_path: Path) -> None:
    options = PromptOptions(prompts=("Hi",), text=saved(tmp_path, PROSE), window=100, max_tokens=100)
    reading = read_windows(TINY, good_file(tmp_path), options)
    assert [window.name for window in reading.windows] == ["'Hi'", f"{tmp_path / 'text.txt'}, window 1 of 1"]


def test_another_tokenizer_is_told_by_the_text(tmp_path: Path) -> None:
    path = saved(tmp_path, PROSE)
    reading = read_windows(TINY, read_gguf(TINY_BROKEN), PromptOptions(text=path, window=100))
    (finding,) = reading.findings
    assert (finding.code, finding.where) == ("other-tokens", str(path))
    assert finding.expected != finding.actual
    assert list(reading.windows[0].ids) == plain_ids(PROSE)[:100]


def test_a_difference_behind_the_tokens_that_are_used_does_not_matter(tmp_path: Path) -> None:
    """Two merges are exchanged that only the end of the text has."""
    merges = list(tiny_pairs()[Keys.Tokenizer.MERGES].value)
    file = good_file(tmp_path, with_merges(lambda given: exchanged(given, 0, len(merges) - 1))(tiny_pairs()))
    path = saved(tmp_path, "1 2 3 4 5 6 7 8 9 " * 20 + PROSE)
    for count, codes in ((100, []), (2000, ["other-tokens"])):
        reading = read_windows(TINY, file, PromptOptions(text=path, window=50, max_tokens=count))
        assert [finding.code for finding in reading.findings] == codes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the text is empty"),
        (b"\n", "the text is empty"),
        (b"caf\xe9", "the text is not UTF-8"),
    ],
)
def test_a_text_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as error:
        read_windows(TINY, good_file(tmp_path), PromptOptions(text=path))
    assert error.value.problems[0].where == str(path)


def test_a_text_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the text cannot be read"):
        read_windows(TINY, good_file(tmp_path), PromptOptions(text=tmp_path / "none.txt"))


@pytest.mark.parametrize("options", [PromptOptions(window=2), PromptOptions(max_tokens=0)])
def test_windows_in_which_nothing_could_be_scored_are_refused(tmp_path: Path, options: PromptOptions) -> None:
    with pytest.raises(ValueError, match="below"):
        read_windows(TINY, good_file(tmp_path), options)
