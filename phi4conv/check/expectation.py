"""The vocabulary that a file is held against, and where it comes from.

In order of trust: the model folder that the file was made from; the vocabulary of Phi-4 that phi4conv carries, for
files of Phi-4's shape; and, for repairs alone, what follows from the file itself (check/inferred.py).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gguf import TokenType
from gguf.constants import Keys

from phi4conv.carried import PHI4_ROWS, PHI4_WIDTH, old_templates, phi4_vocabulary
from phi4conv.errors import ConversionError, FormatError, Problem, RepairError
from phi4conv.gguf_file.layout import GGUFFile, is_utf8
from phi4conv.hf.chat_template import is_there
from phi4conv.hf.json_file import read_json_object
from phi4conv.hf.source import SourceTokenizer, read_source, source_of
from phi4conv.phi3.metadata import SPECIAL_ID_KEYS
from phi4conv.vocab import PHI4_SEPARATOR, SpecialIds, Vocabulary, pad_text

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
        RepairError: The tokenizer has more tokens than the file's weights have rows.
    """
    reading = read_source(folder)
    vocabulary = reading.source.vocabulary
    return Expectation(
        vocabulary=padded_to_file(vocabulary, file),
        origin=Origin.MODEL_FOLDER,
        origin_text=str(folder),
        padding_ids=own_padding(vocabulary),
        sliding_window=window_of_folder(folder, vocabulary),
        notes=reading.warnings,
        given_source=reading.source,
    )


def window_of_folder(folder: Path, vocabulary: Vocabulary) -> int | None:
    """The sliding window of a model, 0 for none; None where nothing tells. Of config.json no more is asked."""
    path = folder / "config.json"
    if is_there(path):
        window = read_json_object(path).get("sliding_window")
        return window if isinstance(window, int) else 0
    return 0 if is_phi4(vocabulary.ids) else None


def padded_to_file(vocabulary: Vocabulary, file: GGUFFile) -> Vocabulary:
    """The vocabulary with a [PADn] token for every row of the file beyond it.

    Without weights the file's own tokens tell the rows, as far as all beyond the vocabulary are such.

    Raises:
        RepairError: There are more tokens than rows.
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
        raise RepairError(replace(problem, where=str(file.path), next_step=NOT_ITS_SOURCE)) from error


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
        note = f"tokens that Phi-4 leaves free have names of their own ({names})"
        notes = (f"{note}: they cannot be proved without the model folder",)
        vocabulary = with_renamed(vocabulary, renamed, file.integers(Keys.Tokenizer.TOKEN_TYPE))
    if renamed or has_own_template(file):
        vocabulary, more = with_own_choices(vocabulary, file)
        notes += more
    return Expectation(
        vocabulary=vocabulary,
        origin=Origin.CARRIED,
        origin_text=Origin.CARRIED.value,
        padding_ids=padding_ids(vocabulary),
        sliding_window=0,
        known_template=False,
        notes=notes,
    )


def has_own_template(file: GGUFFile) -> bool:
    """Whether the chat template is neither Phi-4's nor one of its old ones: a sign of a fine-tune."""
    template = file.text(Keys.Tokenizer.CHAT_TEMPLATE)
    return bool(template) and template not in {phi4_vocabulary().chat_template, *old_templates().values()}


def with_own_choices(vocabulary: Vocabulary, file: GGUFFile) -> tuple[Vocabulary, tuple[str, ...]]:
    """The vocabulary with the special ids and flags of a file that is a fine-tune, and a note for each.

    A fine-tune may end its answers with a token of its own. Only tokens that are special in the vocabulary can be
    meant; any other id is a fault.
    """
    right = vocabulary.special.present()
    notes = []
    for role, stated in own_special_ids(file).present().items():
        if stated != right.get(role) and vocabulary.types[stated] != TokenType.NORMAL:
            right[role] = stated
            notes.append(
                f"{role} is {stated} {vocabulary.texts[stated]}, unlike Phi-4's; right for a fine-tune that says so"
            )
    flags = {"add_bos": vocabulary.add_bos, "add_eos": vocabulary.add_eos}
    for name, key in (("add_bos", Keys.Tokenizer.ADD_BOS), ("add_eos", Keys.Tokenizer.ADD_EOS)):
        stated_flag = file.flag(key)
        if stated_flag is not None and stated_flag != flags[name]:
            flags[name] = stated_flag
            notes.append(f"{key} is {str(stated_flag).lower()}, unlike Phi-4's; right for a fine-tune that says so")
    special = SpecialIds(**right)
    own = replace(vocabulary, special=special, add_bos=flags["add_bos"], add_eos=flags["add_eos"])
    return own, tuple(notes)


def own_special_ids(file: GGUFFile) -> SpecialIds:
    """The special ids as the file states them, those that are tokens."""
    stated = {role: file.number(key) for role, key in SPECIAL_ID_KEYS.items()}
    count = len(file.strings(Keys.Tokenizer.LIST))
    return SpecialIds(
        **{role: value for role, value in stated.items() if isinstance(value, int) and 0 <= value < count}
    )


def renamed_slots(file: GGUFFile, vocabulary: Vocabulary) -> dict[int, str]:
    """The file's names for Phi-4's free slots, by id; none unless every other token is where it belongs."""
    texts = file.strings(Keys.Tokenizer.LIST)
    if len(texts) != len(vocabulary) or file.text(Keys.Tokenizer.MODEL) != "gpt2":
        return {}
    renamed = {}
    for token_id, (text, right) in enumerate(zip(texts, vocabulary.texts, strict=True)):
        if text != right:
            if not right.startswith(SPARE_SLOTS) or text in vocabulary.ids or not text.strip() or not is_utf8(text):
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


def is_phi4(ids: Mapping[str, int]) -> bool:
    """Whether a vocabulary is of Phi-4's family, small ones for tests included."""
    return PHI4_SEPARATOR in ids and BEGIN_OF_TEXT in ids and END_OF_TURN in ids


def padding_ids(vocabulary: Vocabulary) -> frozenset[int]:
    """The ids that Microsoft and Unsloth use for padding."""
    return frozenset(vocabulary.ids[text] for text in PADDING if text in vocabulary.ids)


def own_padding(vocabulary: Vocabulary) -> frozenset[int]:
    """The id that the vocabulary itself names for padding."""
    return frozenset() if vocabulary.special.pad is None else frozenset({vocabulary.special.pad})
