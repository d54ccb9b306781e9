"""SPM gives what real llama.cpp gives, and refuses the texts that bring it down."""

from __future__ import annotations

import importlib.util
import io
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
from checkpoints import SHARED_DATA, TINY_BROKEN
from gguf import Keys, TokenType
from texts import PLAIN, WITH_SPECIAL_TOKENS, random_texts
from vocabulary_changes import SCORES, respelled, retyped, tokens_of, without
from vocabulary_files import Pairs, changed, written

from phi4conv.errors import EngineError, FormatError
from phi4conv.gguf_file.layout import boolean, f32s, i32s, text, texts, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.llama_vocab import RefusedByLlamaCpp, load_vocab
from phi4conv.reference.spm import SPM, merge

needs_xllamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or not sys.platform.startswith(("linux", "darwin")),
    reason="needs xllamacpp (the extra llama-cpp) under Linux or macOS",
)
follows_gnu = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="GNU's C++ library is that of Linux builds"
)

PUBLISHED_BROKEN = SHARED_DATA / "broken" / "phi4-vocab-broken-spm.gguf"
PHI3 = SHARED_DATA / "phi-3-mini" / "tokenizer.json"
SEED = 20241212
K = Keys.Tokenizer
# Numbers by which SentencePiece and GGUF call the same types.
SPECIALS = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


def broken_pairs() -> Pairs:
    return read_gguf(TINY_BROKEN).metadata


def sentencepiece_pairs(pieces: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> Pairs:
    """A SentencePiece vocabulary in which 0 is <unk>, 1 is <s> and 2 is </s>."""
    base = without(broken_pairs(), K.EOT_ID, K.PAD_ID)
    tables = (texts(K.LIST, pieces), i32s(K.TOKEN_TYPE, types), f32s(SCORES, scores))
    return changed(base, *tables, u32(K.UNK_ID, 0), u32(K.BOS_ID, 1), u32(K.EOS_ID, 2))


@cache
def trained_pairs(kind: str) -> Pairs:
    """A small vocabulary that SentencePiece has trained, with byte tokens; kind is "bpe" or "unigram"."""
    model = io.BytesIO()
    sentences = [line for plain in PLAIN for line in plain.splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type=kind,
        vocab_size=700,
        character_coverage=0.98,  # the rest is spelled in bytes
        byte_fallback=True,
        user_defined_symbols=["<|user|>", "  "],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(trained.get_piece_size())
    pieces = [trained.id_to_piece(token) for token in ids]
    types = [
        SPECIALS.get(piece, TokenType.BYTE if trained.is_byte(token) else TokenType.NORMAL)
        for token, piece in enumerate(pieces)
    ]
    user = [
        TokenType.USER_DEFINED if piece in ("<|user|>", "▁▁") else kind
        for piece, kind in zip(pieces, types, strict=True)
    ]
    return sentencepiece_pairs(pieces, user, [trained.get_score(token) for token in ids])


@cache
def phi3_pairs() -> Pairs:
    """Phi-3-mini's vocabulary as llama.cpp's converter writes it; for its name white space behind tokens goes."""
    tokenizer = json.loads(PHI3.read_text(encoding="utf-8"))
    pieces = dict(tokenizer["model"]["vocab"])
    pieces.update({token["content"]: token["id"] for token in tokenizer["added_tokens"]})
    added = {token["content"] for token in tokenizer["added_tokens"]}
    types = [
        TokenType.UNKNOWN
        if piece == "<unk>"
        else TokenType.CONTROL
        if piece in added
        else TokenType.BYTE
        if piece.startswith("<0x")
        else TokenType.NORMAL
        for piece in sorted(pieces, key=pieces.__getitem__)
    ]
    pairs = sentencepiece_pairs(
        sorted(pieces, key=pieces.__getitem__), types, [-float(rank) for rank in range(len(pieces))]
    )
    return changed(pairs, text(Keys.General.NAME, "Phi-3-mini"))


def made_of(pairs: Pairs, count: int, seed: int) -> list[str]:
    """Texts of the vocabulary's own tokens, its special tokens and what only looks like them, and any characters."""
    choice = random.Random(seed)
    tokens = [token for token in tokens_of(pairs) if token.isprintable()]
    special = [token for token in tokens if token.startswith("<")]
    parts: list[Callable[[], str]] = [
        lambda: choice.choice(tokens).replace("▁", " "),
        lambda: choice.choice(tokens),
        lambda: choice.choice([" ", "  ", "\n", "\t", " \r\n", "", "▁"]),
        lambda: choice.choice(special)[: choice.choice([None, -1])],
        lambda: chr(
            choice.choice(
                [choice.randrange(32, 127), choice.randrange(160, 0xD800), choice.randrange(0x1F300, 0x1F700)]
            )
        ),
    ]
    return ["".join(choice.choice(parts)() for _ in range(choice.randrange(16))) for _ in range(count)]


def tokenizer(path: Path) -> SPM:
    return SPM(load_vocab(read_gguf(path)))


def assert_equal(llama: LlamaCpp, path: Path, candidates: Sequence[str]) -> set[str]:
    """SPM and llama.cpp agree on every text that does not bring llama.cpp down; those that do are returned."""
    llama.load(path, vocab_only=True)
    ours = tokenizer(path)
    refused = {each for each in candidates if any(refuses(ours, each, parse_special=parse) for parse in (True, False))}
    good = [candidate for candidate in candidates if candidate not in refused]
    for parse in (True, False):
        for add in (True, False):
            found = [ours.encode(each, add_special=add, parse_special=parse) for each in good]
            expected = llama.tokenize(good, add_special=add, parse_special=parse)
            assert dict(zip(good, found, strict=True)) == dict(zip(good, expected, strict=True))
    assert_equal_decoding(llama, ours, found)
    return refused


def refuses(ours: SPM, candidate: str, *, parse_special: bool) -> bool:
    try:
        ours.encode(candidate, parse_special=parse_special)
    except RefusedByLlamaCpp:
        return True
    return False


def assert_equal_decoding(llama: LlamaCpp, ours: SPM, encoded: Sequence[Sequence[int]]) -> None:
    choice = random.Random(SEED)
    every = range(len(ours.vocab))
    assert ours.pieces(every) == llama.pieces(every)
    bos, eos = (ours.vocab.special[role] for role in ("bos", "eos"))
    sequences = [
        *encoded[:100],
        *(choice.choices(every, k=6) for _ in range(100)),
        [],
        [bos],
        [eos],
        [bos, bos, eos, eos],
    ]
    for ids in [*sequences, *([bos, *ids, eos] for ids in sequences)]:
        for remove in (True, False):
            for unparse in (True, False):
                flags = {"remove_special": remove, "unparse_special": unparse}
                assert ours.decode(ids, **flags) == llama.detokenize(ids, **flags), (ids, flags)


@needs_xllamacpp
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_trained_vocabulary_is_run_as_llama_cpp_runs_it(llama: LlamaCpp, tmp_path: Path, kind: str) -> None:
    pairs = trained_pairs(kind)
    candidates = [*PLAIN, *WITH_SPECIAL_TOKENS, *random_texts(300, SEED), *made_of(pairs, 700, SEED)]
    assert assert_equal(llama, written(pairs, tmp_path / "trained.gguf"), candidates) == set()


@needs_xllamacpp
@pytest.mark.parametrize(
    "change",
    [
        lambda g: changed(g, boolean(K.ADD_PREFIX, value=False)),
        lambda g: changed(g, boolean(K.ADD_EOS, value=True)),
        lambda g: changed(g, boolean(K.ADD_BOS, value=False)),
        lambda g: without(g, SCORES),
        lambda g: changed(g, f32s(SCORES, [0.0, -0.0] * (len(tokens_of(g)) // 2 + 1))),
        lambda g: retyped(g, dict.fromkeys(range(300, 400), TokenType.UNUSED)),
        pytest.param(lambda g: retyped(g, dict.fromkeys(range(300, 400), TokenType.UNKNOWN)), marks=follows_gnu),
        pytest.param(lambda g: retyped(g, dict.fromkeys(range(259, 700), TokenType.USER_DEFINED)), marks=follows_gnu),
        lambda g: changed(g, text(Keys.General.NAME, "modern-bert"), texts(K.LIST, ["[MASK]", *tokens_of(g)[1:]])),
        lambda g: respelled(retyped(g, {"<0x0A>": TokenType.NORMAL}), {"<0x0A>": "\n"}),
        lambda g: retyped(respelled(g, {400: "\udcc3", 401: "\udca9 ", 402: "\udce2\udc96"}), {400: 4, 401: 4, 402: 1}),
        lambda g: retyped(respelled(g, {400: "<0xAé>", 401: "<0x-1>", 402: "byte"}), {400: 6, 401: 6, 402: 6}),
    ],
)
def test_a_changed_vocabulary_is_run_as_llama_cpp_runs_it(
    llama: LlamaCpp, tmp_path: Path, change: Callable[[Pairs], Pairs]
) -> None:
    pairs = change(trained_pairs("bpe"))
    candidates = [*PLAIN, *made_of(trained_pairs("bpe"), 300, SEED)]
    assert assert_equal(llama, written(pairs, tmp_path / "changed.gguf"), candidates) == set()


@needs_xllamacpp
def test_the_broken_tiny_file_is_run_as_llama_cpp_runs_it(llama: LlamaCpp) -> None:
    refused = assert_equal(llama, TINY_BROKEN, [*PLAIN, *WITH_SPECIAL_TOKENS, *made_of(broken_pairs(), 700, SEED)])
    assert {each for each in PLAIN if "\n" in each} <= refused


@needs_xllamacpp
@pytest.mark.skipif(not PUBLISHED_BROKEN.exists(), reason="needs the published tokenizer files beside the checkout")
def test_the_broken_phi_4_is_run_as_llama_cpp_runs_it(llama: LlamaCpp) -> None:
    joke = tokenizer(PUBLISHED_BROKEN).encode("Tell me a joke.", add_special=True)
    assert joke == [100257, 37209, 7499, 173, 501, 1510, 100124]
    assert_equal(llama, PUBLISHED_BROKEN, made_of(read_gguf(PUBLISHED_BROKEN).metadata, 300, SEED))


@needs_xllamacpp
@pytest.mark.skipif(not PHI3.exists(), reason="needs the published tokenizer files beside the checkout")
def test_phi_3_mini_is_run_as_llama_cpp_runs_it(llama: LlamaCpp, tmp_path: Path) -> None:
    candidates = [*PLAIN, *WITH_SPECIAL_TOKENS, *random_texts(300, SEED), *made_of(phi3_pairs(), 700, SEED)]
    turns = ["<|user|>\n Hi<|end|>\n\t<|assistant|> <s> x</s>  y <|end|>", "<|end|>   ", " \n<|end|>"]
    assert assert_equal(llama, written(phi3_pairs(), tmp_path / "phi-3.gguf"), [*candidates, *turns]) == set()


@needs_xllamacpp
def test_a_character_without_tokens_is_refused_and_ends_llama_cpp(llama: LlamaCpp) -> None:
    ours = tokenizer(TINY_BROKEN)
    with pytest.raises(RefusedByLlamaCpp) as error:
        ours.encode("Tell me\na joke.")
    assert (error.value.reason, error.value.aborts) == ("no-byte-token", True)
    assert r"no token spells '\n'" in str(error.value)
    assert "character 7 of the text" in str(error.value)
    assert "<0x0A>" in str(error.value)
    llama.load(TINY_BROKEN, vocab_only=True)
    with pytest.raises(EngineError):
        llama.tokenize(["Tell me\na joke."])


@pytest.mark.parametrize(
    ("before", "place"), [("", 0), ("a", 1), ("<|im_end|>", 10), ("<|im_end|>  ", 12), ("Ġ▁", 2), ("a<|im_end|>b ", 13)]
)
def test_the_place_of_a_refused_character_counts_the_characters_ahead_of_it(before: str, place: int) -> None:
    for behind in ("", "\n", " <|im_end|>"):
        with pytest.raises(RefusedByLlamaCpp, match=f"character {place} of the text"):
            tokenizer(TINY_BROKEN).encode(f"{before}\n{behind}")


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_missing_token_that_is_to_be_added_is_refused(tmp_path: Path, role: str) -> None:
    pairs = changed(broken_pairs(), boolean(K.ADD_BOS, value=role == "bos"), boolean(K.ADD_EOS, value=role == "eos"))
    # The defaults, 1 and 2, are no tokens of a vocabulary of one.
    tables = (texts(K.LIST, ["a"]), i32s(K.TOKEN_TYPE, [1]), f32s(SCORES, [0.0]))
    path = written(without(changed(pairs, *tables), K.BOS_ID, K.EOS_ID), tmp_path / "one.gguf")
    assert tokenizer(path).encode("", add_special=False) == []
    with pytest.raises(RefusedByLlamaCpp, match=f"{role}_token_id") as error:
        tokenizer(path).encode("", add_special=True)
    assert (error.value.reason, error.value.aborts) == (f"{role}-missing", True)


def test_ids_outside_of_the_vocabulary_and_lone_surrogates_are_refused() -> None:
    ours = tokenizer(TINY_BROKEN)
    for ids in ([-1], [len(ours.vocab)]):
        with pytest.raises(ValueError, match="outside of the vocabulary"):
            ours.pieces(ids)
        with pytest.raises(ValueError, match="outside of the vocabulary"):
            ours.decode(ids)
    with pytest.raises(ValueError, match="surrogates"):
        ours.encode("a\ud800")


def test_merging_takes_the_highest_score_and_of_equal_ones_the_leftmost() -> None:
    characters = [b"a", b"b", b"c"]
    assert merge(characters, {b"ab": -2.0, b"bc": -1.0}) == [b"a", b"bc"]
    assert merge(characters, {b"ab": -1.0, b"bc": -1.0}) == [b"ab", b"c"]
    assert merge(characters, {b"abc": 9.0}) == [b"a", b"b", b"c"]
    assert merge([], {}) == []


def test_a_long_text_is_merged_without_a_quadratic_number_of_steps() -> None:
    class CountedScores(dict[bytes, float]):
        looked_up = 0

        def __contains__(self, pair: object) -> bool:
            CountedScores.looked_up += 1
            return super().__contains__(pair)

    powers = CountedScores({b"a" * (1 << power): -power for power in range(1, 12)})
    assert merge([b"a"] * 4096, powers) == [b"a" * 2048] * 2
    assert CountedScores.looked_up < 4 * 4096


@needs_xllamacpp
@follows_gnu
def test_more_special_tokens_of_one_length_than_a_short_sort_takes_are_found_in_llama_cpps_order(
    llama: LlamaCpp, tmp_path: Path
) -> None:
    choice = random.Random(SEED)
    spellings = sorted({"".join(choice.choices("xyz", k=choice.randrange(3, 6))) for _ in range(200)})
    choice.shuffle(spellings)
    pairs = respelled(trained_pairs("bpe"), dict(enumerate(spellings, 300)))
    pairs = retyped(pairs, dict.fromkeys(range(300, 300 + len(spellings)), TokenType.USER_DEFINED))
    candidates = ["".join(choice.choices("xyz ", k=30)) for _ in range(300)]
    assert assert_equal(llama, written(pairs, tmp_path / "overlapping.gguf"), candidates) == set()
    found = tokenizer(tmp_path / "overlapping.gguf")
    assert len(found.vocab.special_tokens) > len(spellings)


def test_other_errors_of_the_format_are_format_errors() -> None:
    assert issubclass(RefusedByLlamaCpp, FormatError)
