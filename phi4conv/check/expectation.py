"""The vocabulary that a file is held against, and where it comes from.

In order of trust: the model folder that the file was made from; the vocabulary of Phi-4 that phi4conv carries, for
files of Phi-4's shape; and, for repairs alone, what follows from the file itself.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gguf import TokenType
from gguf.constants import Keys

from phi4conv.carried import PHI4_ROWS, PHI4_WIDTH, first_release_template, phi4_vocabulary
from phi4conv.errors import ConversionError, FormatError, Problem
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.hf.config import read_config
from phi4conv.hf.pre_tokenizer import LLAMA_CPP_NAMES
from phi4conv.hf.source import SourceTokenizer, read_source, source_of
from phi4conv.merges import derive_merges
from phi4conv.phi3.metadata import ARCHITECTURE, SPECIAL_ID_KEYS
from phi4conv.vocab import PHI4_SEPARATOR, SpecialIds, Vocabulary, byte_alphabet, pad_text

EMBEDDING = "token_embd.weight"
BEGIN_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
# Microsoft's choice for Phi-4 today, and Unsloth's.
PADDING = ("<|dummy_85|>", "<|dummy_87|>")

# A fine-tune may give these slots of Phi-4 to tokens of its own, as Phi-4-reasoning does for <think>.
SPARE_SLOTS = "<|dummy_"


class Origin(enum.Enum):
    """Where an expectation comes from."""

    MODEL_FOLDER = "the model folder"
    CARRIED = "the vocabulary of Phi-4 that phi4conv carries"
    FILE_ITSELF = "what follows from the file itself"


@dataclass(frozen=True)
class Expectation:
    """What a file's tokenizer should be.

    Attributes:
        vocabulary: One token for each row of the file's embedding.
        origin: Where it comes from.
        origin_text: The same for people, with the folder's path.
        padding_ids: Ids that are right for padding.
        sliding_window: The right value of phi3.attention.sliding_window; None where it is not known.
        known_template: Whether the chat template is beyond doubt; a fine-tune without its folder may have another.
        notes: What the user should know about the choice.
    """

    vocabulary: Vocabulary
    origin: Origin
    origin_text: str
    padding_ids: frozenset[int]
    sliding_window: int | None = None
    known_template: bool = True
    notes: tuple[str, ...] = ()
    given_source: SourceTokenizer | None = None

    @cached_property
    def source(self) -> SourceTokenizer:
        """The tokenizers library's reading of the vocabulary."""
        return self.given_source or source_of(self.vocabulary, self.origin_text)


def row_count(file: GGUFFile) -> int | None:
    """How many tokens the weights have a row for; None without weights."""
    embedding = file.tensor(EMBEDDING)
    return embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else None


def expected_from_folder(file: GGUFFile, folder: Path) -> Expectation:
    """The tokenizer of a model folder, with one token for each row of the file's weights.

    Raises:
        CheckpointError: The folder has no tokenizer that phi4conv understands.
        ConversionError: The tokenizer has more tokens than the file's weights have rows.
    """
    reading = read_source(folder)
    vocabulary = reading.source.vocabulary
    window = None
    if file.architecture == ARCHITECTURE and (folder / "config.json").exists():
        window = read_config(folder).sliding_window or 0
    elif is_phi4(vocabulary.ids):
        window = 0
    return Expectation(
        vocabulary=padded_to_file(vocabulary, file),
        origin=Origin.MODEL_FOLDER,
        origin_text=str(folder),
        padding_ids=own_padding(vocabulary),
        sliding_window=window,
        notes=reading.warnings,
        given_source=reading.source,
    )


def padded_to_file(vocabulary: Vocabulary, file: GGUFFile) -> Vocabulary:
    """The vocabulary with a [PADn] token for every row of the file beyond it.

    Without weights the file's own tokens tell the rows, as far as all beyond the vocabulary are such.

    Raises:
        ConversionError: There are more tokens than rows.
    """
    rows = row_count(file)
    if rows is None:
        texts = file.strings(Keys.Tokenizer.LIST)
        extra = range(len(vocabulary), len(texts))
        rows = len(texts) if extra and all(texts[row] == pad_text(row) for row in extra) else len(vocabulary)
    try:
        return vocabulary.padded(rows)
    except ConversionError as error:
        (problem,) = error.problems
        raise ConversionError(replace(problem, where=str(file.path), next_step=NOT_ITS_SOURCE)) from error


NOT_ITS_SOURCE = "this tokenizer is not the one that the weights were trained with; find the model that they belong to"


def has_phi4_shape(file: GGUFFile) -> bool:
    """Whether the weights, or without weights the metadata, have Phi-4's number of tokens and width."""
    embedding = file.tensor(EMBEDDING)
    if embedding is not None:
        return embedding.shape == (PHI4_ROWS, PHI4_WIDTH)
    width = file.number(f"{file.architecture}.embedding_length")
    return len(file.strings(Keys.Tokenizer.LIST)) == PHI4_ROWS and width == PHI4_WIDTH


def expected_of_phi4(file: GGUFFile) -> Expectation:
    """The carried vocabulary, with the file's own names for slots that Phi-4 leaves free.

    Raises:
        FormatError: The file has not Phi-4's shape.
    """
    if not has_phi4_shape(file):
        raise FormatError(no_source(file))
    vocabulary = phi4_vocabulary()
    renamed = renamed_slots(file, vocabulary)
    notes: tuple[str, ...] = ()
    if renamed:
        names = ", ".join(f"{token_id} {text!r}" for token_id, text in list(renamed.items())[:4])
        note = f"{len(renamed)} tokens that Phi-4 leaves free have names of their own ({names})"
        notes = (f"{note}: they cannot be proved without the model folder",)
        vocabulary = with_renamed(vocabulary, renamed, file.integers(Keys.Tokenizer.TOKEN_TYPE))
    return Expectation(
        vocabulary=vocabulary,
        origin=Origin.CARRIED,
        origin_text=Origin.CARRIED.value,
        padding_ids=padding_ids(vocabulary),
        sliding_window=0,
        known_template=False,
        notes=notes,
    )


def renamed_slots(file: GGUFFile, vocabulary: Vocabulary) -> dict[int, str]:
    """The file's names for Phi-4's free slots, by id; none unless every other token is where it belongs."""
    texts = file.strings(Keys.Tokenizer.LIST)
    if len(texts) != len(vocabulary) or file.text(Keys.Tokenizer.MODEL) != "gpt2":
        return {}
    renamed = {}
    for token_id, (text, right) in enumerate(zip(texts, vocabulary.texts, strict=True)):
        if text != right:
            if not right.startswith(SPARE_SLOTS) or text in vocabulary.ids:
                return {}
            renamed[token_id] = text
    return renamed if len(set(renamed.values())) == len(renamed) else {}


def with_renamed(vocabulary: Vocabulary, renamed: Mapping[int, str], file_types: Sequence[int]) -> Vocabulary:
    """The vocabulary with other texts for some tokens, which may also be USER_DEFINED."""
    texts, types = list(vocabulary.texts), list(vocabulary.types)
    for token_id, text in renamed.items():
        texts[token_id] = text
        if token_id < len(file_types) and file_types[token_id] == TokenType.USER_DEFINED:
            types[token_id] = TokenType.USER_DEFINED
    return replace(vocabulary, texts=tuple(texts), types=tuple(types))


def no_source(file: GGUFFile) -> Problem:
    """There is nothing to hold a file against."""
    embedding = file.tensor(EMBEDDING)
    tokens = len(file.strings(Keys.Tokenizer.LIST))
    found = f"{tokens:,} tokens" if embedding is None else f"{EMBEDDING} of {' x '.join(map(str, embedding.shape))}"
    return Problem(
        "without a model folder only Phi-4 itself can be proved, and this file has not its shape",
        where=str(file.path),
        expected=f"{PHI4_ROWS:,} tokens of {PHI4_WIDTH:,} weights each",
        found=found,
        next_step="give the folder with the model's tokenizer.json: phi4conv verify-tokenizer MODEL_DIR FILE.gguf",
    )


def expected_of_file(file: GGUFFile) -> Expectation:
    """What a file's own tokens tell of the rest of its tokenizer.

    The tokens are taken for right. Merges follow from their order, types from what merges cannot make, and of a
    Phi-4 (known by its separator token) everything else is known too.

    Raises:
        FormatError: The tokens are no byte-level vocabulary, so that nothing follows from them.
    """
    texts = tuple(file.strings(Keys.Tokenizer.LIST))
    file_types = file.integers(Keys.Tokenizer.TOKEN_TYPE)
    alphabet = set(byte_alphabet())
    if not alphabet.issubset(texts) or len(set(texts)) != len(texts):
        raise FormatError(nothing_to_go_by(file))
    # Where the tokens stand in another order than they were made in, the file's own merges are all there is.
    merges = derive_merges(texts, presumed_types(texts)) or tuple(file.strings(Keys.Tokenizer.MERGES))
    ids = {text: token_id for token_id, text in enumerate(texts)}
    phi4 = is_phi4(ids)
    vocabulary = Vocabulary(
        texts=texts,
        types=own_types(texts, merges, file_types),
        merges=merges,
        pre=file.text(Keys.Tokenizer.PRE) or "",
        special=own_special_ids(file),
        add_bos=bool(file.flag(Keys.Tokenizer.ADD_BOS)),
        add_eos=bool(file.flag(Keys.Tokenizer.ADD_EOS)),
        chat_template=file.text(Keys.Tokenizer.CHAT_TEMPLATE),
    )
    if phi4:
        vocabulary = as_phi4(vocabulary)
    elif vocabulary.pre not in LLAMA_CPP_NAMES.values():
        raise FormatError(nothing_to_go_by(file))
    return Expectation(
        vocabulary=vocabulary,
        origin=Origin.FILE_ITSELF,
        origin_text=Origin.FILE_ITSELF.value,
        padding_ids=padding_ids(vocabulary) if phi4 else own_padding(vocabulary),
        sliding_window=0 if phi4 else None,
        known_template=False,
    )


def is_phi4(ids: Mapping[str, int]) -> bool:
    """Whether a vocabulary is of Phi-4's family, small ones for tests included."""
    return PHI4_SEPARATOR in ids and BEGIN_OF_TEXT in ids and END_OF_TURN in ids


def as_phi4(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with the ids, flags and, for the first release's, the template that Phi-4 has today."""
    ids = vocabulary.ids
    allowed = padding_ids(vocabulary)
    pad = vocabulary.special.pad if vocabulary.special.pad in allowed else min(allowed, default=None)
    template = vocabulary.chat_template
    return replace(
        vocabulary,
        pre="dbrx",
        special=SpecialIds(bos=ids[BEGIN_OF_TEXT], eos=ids[END_OF_TURN], eot=ids[END_OF_TURN], pad=pad),
        add_bos=False,
        add_eos=False,
        chat_template=phi4_vocabulary().chat_template if template == first_release_template() else template,
    )


def padding_ids(vocabulary: Vocabulary) -> frozenset[int]:
    """The ids that Microsoft and Unsloth use for padding."""
    return frozenset(vocabulary.ids[text] for text in PADDING if text in vocabulary.ids)


def own_padding(vocabulary: Vocabulary) -> frozenset[int]:
    """The id that the vocabulary itself names for padding."""
    return frozenset() if vocabulary.special.pad is None else frozenset({vocabulary.special.pad})


def presumed_types(texts: Sequence[str]) -> list[int]:
    """CONTROL for every name in angle brackets, as special tokens have; NORMAL for all others."""
    return [
        int(TokenType.CONTROL if text.startswith("<|") and text.endswith("|>") else TokenType.NORMAL) for text in texts
    ]


def own_types(texts: Sequence[str], merges: Sequence[str], file_types: Sequence[int]) -> tuple[int, ...]:
    """The types of tokens: what bytes and merges make is NORMAL, names in angle brackets are CONTROL.

    A type that the file has stays where it can be meant: USER_DEFINED for any added token, UNUSED for [PADn].
    """
    made = {*byte_alphabet(), *(merge.replace(" ", "") for merge in merges)}
    types = []
    for token_id, text in enumerate(texts):
        stated = file_types[token_id] if token_id < len(file_types) else None
        if text == pad_text(token_id):
            types.append(int(TokenType.UNUSED))
        elif text in made:
            types.append(int(TokenType.NORMAL))
        elif stated == TokenType.USER_DEFINED and not text.startswith("<|"):
            types.append(int(TokenType.USER_DEFINED))
        else:
            types.append(int(TokenType.CONTROL))
    return tuple(types)


def own_special_ids(file: GGUFFile) -> SpecialIds:
    """The special ids as the file states them."""
    stated = {role: file.number(key) for role, key in SPECIAL_ID_KEYS.items()}
    return SpecialIds(**{role: int(value) for role, value in stated.items() if value is not None})


def nothing_to_go_by(file: GGUFFile) -> Problem:
    """The file's tokens cannot be trusted, and nothing else tells what they should be."""
    return Problem(
        "the file's own tokens do not tell what its tokenizer should be",
        where=str(file.path),
        expected="a byte-level vocabulary, each token once",
        found=f"{file.text(Keys.Tokenizer.MODEL) or 'no'} vocabulary of {len(file.strings(Keys.Tokenizer.LIST)):,} "
        "tokens",
        next_step="give the folder with the model's tokenizer.json: --tokenizer MODEL_DIR",
    )
