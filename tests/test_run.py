"""phi4conv.run as a library: the text of tokens, estimates, and what is no model that runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY_BROKEN
from gguf import GGMLQuantizationType, Keys
from good_files import good_file
from vocabulary_files import tiny_pairs, with_changes, written
from weight_files import WeightFile, encoded, read_weight_file, write_weight_file

from phi4conv import run as running
from phi4conv.errors import EngineError, FormatError, Phi4ConvError
from phi4conv.gguf_file.layout import GGUFFile, f32, i32s, text, texts, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.progress import Silent
from phi4conv.reference.tokenizer import file_tokenizer
from phi4conv.run import Answer, Ending, RunOptions, TextSoFar, run
from phi4conv.runnable import require_whole_model, runnable_model

ARCHITECTURE = "phi3"
IM_END = 937


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several."""
    torch = pytest.importorskip("torch", reason="a run needs torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Told(Silent):
    """Progress that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total = 0
        self.layers: list[tuple[int, str]] = []
        self.ended = 0

    def note(self, message: str) -> None:
        self.notes.append(message)

    def begin(self, total: int) -> None:
        self.total = total

    def advance(self, count: int, label: str) -> None:
        self.layers.append((count, label))

    def end(self) -> None:
        self.ended += 1


def said(path: Path, shown: list[str] | None = None, **options: object) -> Answer:
    given = RunOptions(**{"prompt": "Tell me a joke.", "chat": True, **options})  # type: ignore[arg-type]
    return run(path, given, Silent(), ([] if shown is None else shown).append)


def test_text_comes_piece_by_piece() -> None:
    shown: list[str] = []
    answer = said(good_file("F32").path, shown)
    assert answer.text == "Why did the tokenizer leave the sentence? It needed some space."
    assert shown[:3] == ["Why", " did", " the"]
    assert "".join(shown) == answer.text
    assert len(shown) == len(answer.ids) - 1
    assert answer.ids[-1] == IM_END
    assert answer.ending is Ending.END_OF_GENERATION
    assert 0 < answer.seconds_to_first <= answer.seconds


def test_a_character_is_held_back_until_it_is_whole() -> None:
    tokenizer = file_tokenizer(read_gguf(good_file("F32").path))
    shown: list[str] = []
    so_far = TextSoFar(tokenizer, shown.append)
    ids = tokenizer.encode("a한é")
    assert len(ids) > 3  # else no character is cut
    lengths = []
    for token in ids:
        so_far.add(token)
        lengths.append(len("".join(shown)))
    so_far.end()
    assert "".join(shown) == "a한é"
    assert lengths == [1, 1, 1, 2, *[2] * (len(ids) - 5), 3]
    assert "\ufffd" not in shown


def test_half_a_character_at_the_end_and_bytes_that_are_no_utf8_read_as_such() -> None:
    tokenizer = file_tokenizer(read_gguf(good_file("F32").path))
    shown: list[str] = []
    so_far = TextSoFar(tokenizer, shown.append)
    han = tokenizer.encode("한")
    for token in (*han[:-1], *tokenizer.encode("b"), *han[:-1]):
        so_far.add(token)
    assert "".join(shown) == "\ufffdb"
    so_far.end()
    assert "".join(shown) == "\ufffdb\ufffd"


def test_control_tokens_give_no_text_and_spaces_stay() -> None:
    tokenizer = file_tokenizer(read_gguf(good_file("F32").path))
    shown: list[str] = []
    so_far = TextSoFar(tokenizer, shown.append)
    for token in tokenizer.encode("It <|im_end|> is , so"):
        so_far.add(token)
    assert "".join(shown) == "It  is , so"


@pytest.mark.parametrize("kind", ["Q8_0", "llama Q8_0"])
def test_the_broken_file_speaks_garbage_and_the_good_ones_the_joke(kind: str) -> None:
    joke = said(good_file(kind).path).text
    assert joke.startswith("Why did the tokenizer")
    for chat in (True, False):
        garbage = said(TINY_BROKEN, chat=chat, count=30)
        assert garbage.text
        assert "tokenizer" not in garbage.text


def test_weights_that_are_not_held_give_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    path = good_file("Q6_K").path
    expected = said(path)
    monkeypatch.setattr(running, "MOST_HELD_BYTES", 0)
    assert running.held_bytes(runnable_model(read_gguf(path)), 1 << 40) == 0
    assert said(path).ids == expected.ids


def test_all_weights_are_held_or_none() -> None:
    from phi4conv.reference.generate import total_weights  # noqa: PLC0415  # loads torch

    model = runnable_model(read_gguf(good_file("Q8_0").path))
    needed = 4 * total_weights(model)
    assert running.held_bytes(model, 1 << 40) == needed
    assert running.held_bytes(model, 2 * needed) == needed
    assert running.held_bytes(model, 2 * needed - 2) == 0


def test_a_long_run_is_announced_and_its_first_pass_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    path = good_file("F32").path
    told = Told()
    run(path, RunOptions("Tell me a joke.", chat=True), told, lambda _: None)
    assert (told.notes, told.layers, told.ended) == ([], [], 0)
    monkeypatch.setattr(running, "LONG", 0.0)
    run(path, RunOptions("Tell me a joke.", chat=True, count=64), told, lambda _: None)
    (note,) = told.notes
    assert note.startswith("about ")
    assert note.endswith("for 64 tokens; Ctrl-C stops it")
    assert [label for _, label in told.layers] == [f"layer {number} of 4" for number in (1, 2, 3, 4)]
    assert sum(count for count, _ in told.layers) == told.total
    assert told.ended == 1


def test_the_count_ends_it() -> None:
    answer = said(good_file("F32").path, count=3)
    assert (answer.text, len(answer.ids), answer.ending) == ("Why did the", 3, Ending.COUNT)
    assert said(good_file("F32").path, count=1).tokens_per_second is None


def test_the_end_of_the_context_ends_it() -> None:
    path = good_file("F32").path
    whole = said(path)
    answer = said(path, n_ctx=len(whole.prompt_ids) + 4)
    assert (answer.ids, answer.ending) == (whole.ids[:4], Ending.CONTEXT)


def test_the_files_context_length_ends_it_whatever_n_ctx_says(tmp_path: Path) -> None:
    key = f"{ARCHITECTURE}.context_length"
    source = good_file("F32").path
    whole = said(source)
    path = with_changes(source, tmp_path / "short.gguf", {key: u32(key, len(whole.prompt_ids) + 2)})
    answer = said(path, n_ctx=4096)
    assert (answer.ids, answer.ending) == (whole.ids[:2], Ending.CONTEXT)


@pytest.mark.parametrize("n_ctx", [1, 5])
def test_a_prompt_that_fills_the_context_is_refused(n_ctx: int) -> None:
    with pytest.raises(Phi4ConvError, match=f"fewer than {n_ctx} tokens, --n-ctx"):
        said(good_file("F32").path, n_ctx=n_ctx)


def test_the_files_own_end_of_generation_counts(tmp_path: Path) -> None:
    source = good_file("F32").path
    whole = said(source)
    key = Keys.Tokenizer.EOT_ID
    path = with_changes(source, tmp_path / "early.gguf", {key: u32(key, whole.ids[3])})
    answer = said(path)
    assert (answer.ids, answer.ending) == (whole.ids[:4], Ending.END_OF_GENERATION)


def test_the_files_suppressed_tokens_are_passed_over(tmp_path: Path) -> None:
    source = good_file("F32").path
    first = said(source, count=1).ids[0]
    key = "tokenizer.ggml.suppress_tokens"
    path = with_changes(source, tmp_path / "suppressed.gguf", {key: i32s(key, [first])})
    assert said(path, count=1).ids[0] != first


Changed = Callable[[WeightFile], WeightFile]
BLOCK = "blk.1.ffn_down.weight"


def shorter_vocabulary(file: WeightFile) -> WeightFile:
    tokens = list(file.pairs[Keys.Tokenizer.LIST].value)[:-1]
    return file.with_pairs(texts(Keys.Tokenizer.LIST, tokens))


def transposed(file: WeightFile) -> WeightFile:
    values = file.tensors[BLOCK].values.T
    return file.with_tensor(BLOCK, encoded(values, values.shape, GGMLQuantizationType.F32))


def with_nan(file: WeightFile) -> WeightFile:
    values = file.tensors[BLOCK].values.copy()
    values[3, 4] = np.nan
    return file.with_tensor(BLOCK, encoded(values, values.shape, GGMLQuantizationType.F32))


def with_a_bias(file: WeightFile) -> WeightFile:
    name = "blk.0.attn_qkv.bias"
    return file.with_tensor(name, encoded(np.zeros(384, np.float32), (384,), GGMLQuantizationType.F32))


UNFIT: dict[str, tuple[Changed, str, str]] = {
    "a part": (
        lambda file: file.with_pairs(u32("split.no", 0), u32("split.count", 3)),
        "the model is split over several files",
        "llama-gguf-split --merge",
    ),
    "a later part": (
        lambda file: file.with_pairs(u32("split.no", 1), u32("split.count", 3)),
        "part 2 of 3",
        "llama-gguf-split --merge",
    ),
    "no tensors": (
        lambda file: replace(file, tensors={}),
        "the file has a vocabulary and no weights",
        "without --vocab-only",
    ),
    "a tensor missing": (lambda file: file.without_tensors(BLOCK), f"{BLOCK}\n", "a tensor is missing"),
    "a layer too few": (
        lambda file: file.with_pairs(u32(f"{ARCHITECTURE}.block_count", 5)),
        "blk.4.attn_norm.weight",
        "and 1 more such problems",
    ),
    "a layer too many": (
        lambda file: file.with_pairs(u32(f"{ARCHITECTURE}.block_count", 3)),
        "blk.3.attn_norm.weight",
        "no use for",
    ),
    "a bias": (with_a_bias, "blk.0.attn_qkv.bias", "no model with biases"),
    "another shape": (transposed, BLOCK, "shape (256, 512)"),
    "a shorter vocabulary": (shorter_vocabulary, "token_embd.weight", "shape (1023, 256)"),
    "NaN": (with_nan, "NaN or infinity", "phi4conv verify"),
    "no kv heads": (
        lambda file: file.with_pairs(u32(f"{ARCHITECTURE}.attention.head_count_kv", 0)),
        "head_count_kv",
        "convert",
    ),
    "absurd layers": (
        lambda file: file.with_pairs(u32(f"{ARCHITECTURE}.block_count", 4_000_000_000)),
        "block_count",
        "4000000000",
    ),
    "absurd heads": (
        lambda file: file.with_pairs(u32(f"{ARCHITECTURE}.attention.head_count", 4_000_000_000)),
        "head_count",
        "4000000000",
    ),
    "no base": (lambda file: file.with_pairs(f32(f"{ARCHITECTURE}.rope.freq_base", 0.0)), "NaN or infinity", "verify"),
    "no context": (
        lambda file: file.with_pairs(u32(f"{ARCHITECTURE}.context_length", 0)),
        "the prompt does not fit",
        "context_length",
    ),
    "another architecture": (
        lambda file: file.with_pairs(text("general.architecture", "gemma")),
        "general.architecture",
        "gemma",
    ),
    "a list of tokens missing": (lambda file: file.without_pairs(Keys.Tokenizer.LIST), "no tokens", "llama.cpp"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_no_model_that_runs_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    change, *expected = UNFIT[name]
    file = change(read_weight_file(good_file("F32").path))
    path = write_weight_file(tmp_path / "unfit.gguf", file.pairs.values(), file.tensors)
    with pytest.raises(FormatError if name != "no context" else Phi4ConvError) as caught:
        said(path, count=2)
    message = f"{caught.value}\n"
    for words in expected:
        assert words in message


def test_cut_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(good_file("F32").path.read_bytes()[:-1000])
    with pytest.raises(FormatError, match="truncated-data"):
        said(path)


def test_every_refusal_of_a_shape_is_llama_cpps_too(tmp_path: Path) -> None:
    from phi4conv.reference.llama_cpp import LlamaCpp  # noqa: PLC0415  # only here

    with LlamaCpp(threads=1) as llama:
        for name in (
            "a tensor missing",
            "a layer too few",
            "a layer too many",
            "another shape",
            "a shorter vocabulary",
        ):
            file = UNFIT[name][0](read_weight_file(good_file("F32").path))
            path = write_weight_file(tmp_path / "unfit.gguf", file.pairs.values(), file.tensors)
            with pytest.raises(FormatError, match=r"llama\.cpp refuses the file"):
                llama.load(path)


def test_a_type_that_cannot_be_decoded_is_refused_before_anything_runs() -> None:
    file = read_gguf(good_file("Q4_K_M").path)
    tensors = tuple(
        replace(entry, qtype=GGMLQuantizationType.IQ4_XS) if entry.name == BLOCK else entry for entry in file.tensors
    )
    other: GGUFFile = replace(file, tensors=tensors)
    require_whole_model(other)
    with pytest.raises(FormatError, match=f"no decoder for IQ4_XS\n.*{BLOCK}"):
        runnable_model(other)


def test_a_missing_torch_is_said_before_the_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineError) as caught:
        said(tmp_path / "missing.gguf")
    (problem,) = caught.value.problems
    assert problem.next_step == "pip install 'phi4conv[torch]'"
    assert problem.what.startswith("torch cannot be loaded")


def test_a_vocabulary_alone_is_refused(tmp_path: Path) -> None:
    path = written(tiny_pairs(), tmp_path / "vocabulary.gguf")
    with pytest.raises(FormatError, match="a vocabulary and no weights"):
        said(path)
