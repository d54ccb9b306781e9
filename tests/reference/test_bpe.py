from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from checkpoints import SHARED_DATA
from gguf import Keys, TokenType
from texts import PLAIN, WITH_SPECIAL_TOKENS, random_texts
from vocabulary_files import PROBE_SPECIALS, Pairs, changed, probe_pairs, tiny_pairs, with_pre, written

from phi4conv.check.fuzz import fuzz_texts
from phi4conv.errors import FormatError
from phi4conv.gguf_file.layout import boolean, i32s, text, texts
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.bpe import BPE, merge, spell
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.llama_vocab import TokenAttribute, load_vocab
from phi4conv.reference.split import SPLITTERS
from phi4conv.reference.unicode_15_1 import category_runs

needs_xllamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or not sys.platform.startswith(("linux", "darwin")),
    reason="needs xllamacpp (the extra llama-cpp) under Linux or macOS",
)
REAL = SHARED_DATA / "phi-4" / "vocab-by-llama.cpp.gguf"

FAMILIES = ("dbrx", "gpt-4o", "qwen2", "gpt-2", "default")
SEED = 20241212
K = Keys.Tokenizer

# Shows in the ids of the probe vocabulary to which of its neighbours a character belongs.
IN_CONTEXT = "a{0}a1{0}1!{0}! {0}\n{0}'{0}A{0}\n"
SURROGATES = range(0xD800, 0xE000)
# Beyond the third plane only tags and variation selectors are assigned, from U+E0000 on; the dense part ends here.
LAST_IDEOGRAPH = 0x323AF


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


def tokenizer(path: Path) -> BPE:
    return BPE(load_vocab(read_gguf(path)))


def tokenizer_of(pairs: Pairs, folder: Path) -> BPE:
    return tokenizer(written(pairs, folder / "vocabulary.gguf"))


@pytest.fixture(scope="module")
def real() -> BPE:
    return tokenizer(REAL)


def special_texts(ours: BPE) -> list[str]:
    return [ours.vocab.texts[token] for token in ours.vocab.special_tokens]


def assert_equal_to(llama: LlamaCpp, ours: BPE, examples: Sequence[str]) -> None:
    """Ids of all examples with every setting, and the way back."""
    for add_special in (False, True):
        for parse_special in (False, True):
            theirs = llama.tokenize(examples, add_special=add_special, parse_special=parse_special)
            for example, ids in zip(examples, theirs, strict=True):
                found = ours.encode(example, add_special=add_special, parse_special=parse_special)
                assert found == ids, (ascii(example), add_special, parse_special)
    for ids in theirs[:300]:
        assert ours.pieces(ids) == llama.pieces(ids)
        for remove_special in (False, True):
            for unparse_special in (False, True):
                flags = {"remove_special": remove_special, "unparse_special": unparse_special}
                assert ours.decode(ids, **flags) == llama.detokenize(ids, **flags), (ids, flags)


def character_texts(*, all_of_them: bool) -> Iterator[str]:
    """Texts of many characters each, every one in several contexts."""
    starts = [start for start, _ in category_runs()]
    ends = {*starts, *(start - 1 for start in starts[1:]), sys.maxunicode}
    points = range(sys.maxunicode + 1) if all_of_them else sorted({*range(LAST_IDEOGRAPH + 2), *ends})
    characters = [chr(point) for point in points if point not in SURROGATES]
    for first in range(0, len(characters), 256):
        yield "".join(IN_CONTEXT.format(character) for character in characters[first : first + 256])


class TestByHand:
    def test_merges_in_rank_order_whatever_the_length(self) -> None:
        ranks = {("h", "e"): 0, ("l", "l"): 1, ("he", "ll"): 2, ("hell", "o"): 3, ("l", "o"): 4}
        assert merge("hello", ranks) == ["hello"]
        assert merge("helo", ranks) == ["he", "lo"]
        assert merge("hellhello", ranks) == ["hell", "hello"]
        assert merge("", ranks) == []
        assert merge("x", ranks) == ["x"]

    def test_a_pair_of_low_rank_that_arises_late_still_goes_first(self) -> None:
        # After b+c, a+bc (rank 0) is merged before d+e.
        assert merge("abcde", {("a", "bc"): 0, ("b", "c"): 1, ("d", "e"): 2, ("c", "d"): 3}) == ["abc", "de"]

    def test_equal_pairs_are_merged_from_the_left(self) -> None:
        assert merge("aaaaa", {("a", "a"): 0}) == ["aa", "aa", "a"]

    def test_the_example_of_wikipedia(self) -> None:
        # https://en.wikipedia.org/wiki/Byte-pair_encoding: aaabdaaabac, Z=aa, Y=ab, X=ZY; X d X a c.
        ranks = {("a", "a"): 0, ("a", "b"): 1, ("aa", "ab"): 2}
        assert merge("aaabdaaabac", ranks) == ["aaab", "d", "aaab", "a", "c"]

    def test_spelling_of_bytes(self) -> None:
        assert spell("a \n\x00é") == "aĠĊĀÃ©"

    def test_a_joke_in_the_tiny_vocabulary(self, tmp_path: Path) -> None:
        ours = tokenizer_of(tiny_pairs(), tmp_path)
        ids = ours.encode("Tell me a joke.<|im_end|>")
        assert ids[-1] == 937
        assert b"".join(ours.pieces(ids)) == b"Tell me a joke.<|im_end|>"
        assert ours.encode("<|im_end|>", parse_special=False) != [937]

    def test_merging_agrees_with_the_plainest_algorithm(self) -> None:
        generator = random.Random(SEED)

        def plainly_merged(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
            parts = list(word)
            while True:
                pairs = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
                if not pairs:
                    return parts
                at = min(pairs)[1]
                parts[at : at + 2] = [parts[at] + parts[at + 1]]

        for _ in range(2000):
            strings = ["".join(generator.choices("abc", k=generator.randrange(1, 4))) for _ in range(14)]
            ranks = {(strings[at], strings[at + 1]): generator.randrange(9) for at in range(13)}
            word = "".join(generator.choices("abc", k=generator.randrange(1, 25)))
            assert merge(word, ranks) == plainly_merged(word, ranks)


class TestSpecialTokens:
    @pytest.fixture
    def ours(self, tmp_path: Path) -> BPE:
        return tokenizer_of(probe_pairs(), tmp_path)

    def ids(self, ours: BPE, *texts: str) -> list[int]:
        return [ours.vocab.ids[text] for text in texts]

    def test_the_longest_text_wins_even_where_another_begins_earlier(self, ours: BPE) -> None:
        whole = self.ids(ours, "<|user|><|end|>")
        assert ours.encode("<|user|><|end|>") == whole
        assert ours.encode("<|end|><|end|>") == self.ids(ours, "<|end|>") * 2

    def test_without_parsing_only_user_defined_tokens_are_found(self, ours: BPE) -> None:
        assert ours.encode("<|user|>", parse_special=False) == self.ids(ours, "<|user|>")
        assert ours.encode("<|end|>", parse_special=False) == self.ids(ours, *"<|end|>")
        assert ours.encode("<|user|><|end|>", parse_special=False) == self.ids(ours, "<|user|>", *"<|end|>")
        assert ours.encode("<unk>", parse_special=False) == self.ids(ours, *"<unk>")

    def test_unused_tokens_are_never_found(self, ours: BPE) -> None:
        (spare,) = self.ids(ours, "<spare>")
        assert spare not in ours.encode("<spare>")
        assert b"".join(ours.pieces(ours.encode("<spare>"))) == b"<spare>"

    def test_ends_are_added_twice_if_the_text_has_them(self, ours: BPE) -> None:
        (end,) = self.ids(ours, "<|end|>")
        assert ours.encode("", add_special=True) == [end, end]
        assert ours.encode("<|end|>", add_special=True) == [end, end, end]

    def test_unused_tokens_stand_for_nothing_and_unknown_ids_are_refused(self, ours: BPE) -> None:
        assert ours.pieces(self.ids(ours, "<spare>", "né", "Ġ")) == [b"", "né".encode(), b" "]
        for wrong in (-1, len(ours.vocab)):
            with pytest.raises(ValueError, match=f"token id {wrong} is outside of the vocabulary"):
                ours.pieces([wrong])
            with pytest.raises(ValueError, match=f"token id {wrong} is outside of the vocabulary"):
                ours.decode([wrong])

    def test_white_space_goes_where_a_token_asks_for_it(self, ours: BPE) -> None:
        (end,) = self.ids(ours, "<|end|>")
        attributes = list(ours.vocab.attributes)
        attributes[end] |= TokenAttribute.LSTRIP | TokenAttribute.RSTRIP
        stripping = BPE(replace(ours.vocab, attributes=attributes))
        assert stripping.encode("b \n<|end|>\t b") == self.ids(stripping, "b", "<|end|>", "b")
        assert stripping.encode(" <|end|> <|end|> ") == [end, end]

    def test_a_vocabulary_that_asks_for_an_end_that_it_lacks_is_refused(self, ours: BPE) -> None:
        special = {role: token for role, token in ours.vocab.special.items() if role != "eos"}
        lacking = BPE(replace(ours.vocab, special=special))
        assert lacking.encode("b")
        with pytest.raises(FormatError, match="EOS"):
            lacking.encode("b", add_special=True)


def test_another_splitter_can_take_the_place_of_the_vocabularys(tmp_path: Path) -> None:
    vocab = tokenizer_of(probe_pairs(), tmp_path).vocab
    single = BPE(vocab, split=iter)
    assert single.encode("ab") == [vocab.ids["a"], vocab.ids["b"]]
    assert BPE(vocab).encode("ab") == [vocab.ids["ab"]]


def test_a_regex_that_is_not_known_here_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the split regex 'deepseek-v3' is not known here"):
        tokenizer_of(with_pre(tiny_pairs(), "deepseek-v3"), tmp_path)


def test_lone_surrogates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        tokenizer_of(tiny_pairs(), tmp_path).encode("a\udc80")


def test_nothing_that_knows_another_unicode_is_imported() -> None:
    program = (
        "import sys; import phi4conv.reference.bpe; "
        "print([name for name in ('regex', 'unicodedata', 'tokenizers', 'phi4conv.hf') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


@needs_xllamacpp
class TestAgainstLlamaCpp:
    @pytest.mark.parametrize("pre", FAMILIES)
    @pytest.mark.parametrize("pairs", [tiny_pairs, probe_pairs], ids=["tiny", "probe"])
    def test_all_texts(self, llama: LlamaCpp, tmp_path: Path, pairs: Callable[[], Pairs], pre: str) -> None:
        path = written(changed(pairs(), text(K.PRE, pre)), tmp_path / "vocabulary.gguf")
        llama.load(path, vocab_only=True)
        ours = tokenizer(path)
        count = 60 if pre == "gpt-4o" else 400  # std::regex takes milliseconds for each text
        examples = [*random_texts(count, SEED), *fuzz_texts(count, SEED, special_texts(ours))]
        assert_equal_to(llama, ours, [*PLAIN, *WITH_SPECIAL_TOKENS, *examples])

    @pytest.mark.parametrize("pre", SPLITTERS)
    def test_every_name(self, llama: LlamaCpp, tmp_path: Path, pre: str) -> None:
        path = written(with_pre(probe_pairs(), pre), tmp_path / "vocabulary.gguf")
        llama.load(path, vocab_only=True)
        assert_equal_to(llama, tokenizer(path), [*PLAIN, *fuzz_texts(20, SEED, list(PROBE_SPECIALS))])

    def test_every_end_of_a_run_of_characters(self, llama: LlamaCpp, tmp_path: Path) -> None:
        path = written(with_pre(probe_pairs(), "dbrx"), tmp_path / "vocabulary.gguf")
        llama.load(path, vocab_only=True)
        ours = tokenizer(path)
        runs = category_runs()
        examples = [IN_CONTEXT.format(chr(start)) for start, category in runs if category != "Cs"]
        for example, ids in zip(examples, llama.tokenize(examples), strict=True):
            assert ours.encode(example) == ids, ascii(example)

    @pytest.mark.slow
    @pytest.mark.parametrize("pre", FAMILIES)
    def test_every_character(self, llama: LlamaCpp, tmp_path: Path, pre: str) -> None:
        path = written(with_pre(probe_pairs(), pre), tmp_path / "vocabulary.gguf")
        llama.load(path, vocab_only=True)
        ours = tokenizer(path)
        examples = list(character_texts(all_of_them=pre == "dbrx"))
        for example, ids in zip(examples, llama.tokenize(examples), strict=True):
            assert ours.encode(example) == ids, ascii(example)
        alone = [chr(point) for point in range(LAST_IDEOGRAPH + 1) if point not in SURROGATES][
            :: 1 if pre == "dbrx" else 41
        ]
        assert [ours.encode(character) for character in alone] == llama.tokenize(alone)

    def test_a_token_that_cuts_a_character_apart_leaves_replacement_characters(
        self, llama: LlamaCpp, tmp_path: Path
    ) -> None:
        half = b"\xc3".decode("utf-8", "surrogateescape")
        tokens = [half if spelling == "né" else spelling for spelling in probe_pairs()[K.LIST].value]
        path = written(changed(probe_pairs(), texts(K.LIST, tokens)), tmp_path / "vocabulary.gguf")
        llama.load(path, vocab_only=True)
        assert_equal_to(llama, tokenizer(path), ["é", "née", "aéa", "日本é", "<|end|>é"])

    def test_parts_that_are_no_tokens_fall_apart_alike(self, llama: LlamaCpp, tmp_path: Path) -> None:
        # Words merge to parts that the table no longer has: of ASCII, of other bytes, and of both.
        gone = {"aa", "1!", "Ġa", "aÃ", "©", "z"}
        tokens = [f"<gone {at}>" if token in gone else token for at, token in enumerate(probe_pairs()[K.LIST].value)]
        path = written(changed(probe_pairs(), texts(K.LIST, tokens)), tmp_path / "vocabulary.gguf")
        llama.load(path, vocab_only=True)
        assert_equal_to(llama, tokenizer(path), ["aa", "1!", " a", "aé", "é", "z", "zaa 1! aé", "é©", *PLAIN])

    def test_tokens_of_every_type_give_the_same_bytes(self, llama: LlamaCpp, tmp_path: Path) -> None:
        kinds = list(probe_pairs()[K.TOKEN_TYPE].value)
        tokens = list(probe_pairs()[K.LIST].value)
        spellings = {
            "<0x41>": TokenType.BYTE,
            "<0xzz>": TokenType.BYTE,
            "中文": TokenType.NORMAL,
            "é中": TokenType.CONTROL,
        }
        for at, (spelling, kind) in enumerate(spellings.items(), start=300):
            tokens[at], kinds[at] = spelling, int(kind)
        pairs = changed(probe_pairs(), texts(K.LIST, tokens), i32s(K.TOKEN_TYPE, kinds))
        path = written(pairs, tmp_path / "vocabulary.gguf")
        llama.load(path, vocab_only=True)
        ours = tokenizer(path)
        everything = range(len(ours.vocab))
        assert ours.pieces(everything) == llama.pieces(everything)
        assert ours.pieces([300, 301]) == [b"A", b"\0"]

    @pytest.mark.parametrize("add_space", [False, True])
    def test_sequences_are_cleaned_alike(self, llama: LlamaCpp, tmp_path: Path, add_space: bool) -> None:
        pairs = changed(probe_pairs(), boolean(K.ADD_PREFIX, value=add_space))
        path = written(pairs, tmp_path / "vocabulary.gguf")
        llama.load(path, vocab_only=True)
        ours = tokenizer(path)
        generator = random.Random(SEED)
        characters = [ours.vocab.ids[character] for character in "Ġ'?!.,stmdrevlaĀ"] + [ours.vocab.ids["<|end|>"]]
        for _ in range(3000):
            ids = generator.choices(characters, k=generator.randrange(12))
            assert ours.decode(ids, remove_special=True) == llama.detokenize(ids, remove_special=True), ids

    @pytest.mark.parametrize("character", ["a", " ", "é", "=", "ab"])
    def test_long_words(self, llama: LlamaCpp, tmp_path: Path, character: str) -> None:
        path = written(tiny_pairs(), tmp_path / "vocabulary.gguf")
        llama.load(path, vocab_only=True)
        word = character * 30_000
        assert tokenizer(path).encode(word) == llama.tokenize([word])[0]


@pytest.mark.skipif(not REAL.is_file(), reason="needs the published tokenizer files beside the checkout")
class TestRealVocabulary:
    def test_the_joke(self, real: BPE) -> None:
        assert real.encode("Tell me a joke.") == [41551, 757, 264, 22380, 13]
        assert real.encode("x\n<|im_end|>\ny") == [87, 198, 100265, 198, 88]
        assert real.decode(real.encode("Hello , world .")) == b"Hello, world."

    @needs_xllamacpp
    def test_all_texts(self, llama: LlamaCpp, real: BPE) -> None:
        llama.load(REAL, vocab_only=True)
        fuzz = fuzz_texts(2000, SEED, special_texts(real))
        assert_equal_to(llama, real, [*PLAIN, *WITH_SPECIAL_TOKENS, *random_texts(1000, SEED), *fuzz])

    @pytest.mark.slow
    @needs_xllamacpp
    def test_every_tokens_bytes_and_its_own_text(self, llama: LlamaCpp, real: BPE) -> None:
        llama.load(REAL, vocab_only=True)
        pieces = real.pieces(range(len(real.vocab)))
        assert pieces == llama.pieces(range(len(real.vocab)))
        readable = [piece.decode() for piece in pieces if piece.isascii()]
        assert [real.encode(example) for example in readable] == llama.tokenize(readable)
