"""What follows from a file's own tokens, for the repair of files whose model folder nobody has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from gguf import TokenType
from gguf.constants import Keys

from phi4conv.carried import old_templates, phi4_vocabulary
from phi4conv.check.expectation import (
    BEGIN_OF_TEXT,
    END_OF_TURN,
    Expectation,
    Origin,
    has_own_template,
    is_phi4,
    own_padding,
    own_special_ids,
    padding_ids,
    row_count,
    with_own_choices,
)
from phi4conv.check.model import Finding
from phi4conv.errors import FormatError, Problem
from phi4conv.gguf_file.layout import GGUFFile, is_utf8
from phi4conv.hf.pre_tokenizer import LLAMA_CPP_NAMES
from phi4conv.merges import derive_merges
from phi4conv.phi3.metadata import SPECIAL_ID_KEYS
from phi4conv.vocab import SpecialIds, Vocabulary, byte_alphabet, pad_text

# Damage that goes one way only: something is missing, cut short or of the first release. Two things that contradict
# each other, such as whole merges and the order of the tokens, do not tell which of them is wrong.
ROLE_DAMAGE = frozenset({"missing", "out-of-range", "not-a-number", "first-release"})
ONE_WAY_DAMAGE: Mapping[str, frozenset[str]] = {
    "tokenizer/token-types": frozenset(
        {"missing", "short", "special-as-normal", "special-as-unused", "special-as-user-defined"}
    ),
    "tokenizer/merges": frozenset({"missing", "dropped", "malformed", "duplicate"}),
    **{f"tokenizer/{role}-id": ROLE_DAMAGE for role in SPECIAL_ID_KEYS},
}


def contradictions(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings that the file alone cannot settle."""
    for finding in findings:
        if finding.id in ONE_WAY_DAMAGE and finding.code not in ONE_WAY_DAMAGE[finding.id]:
            yield finding


def expected_of_file(file: GGUFFile) -> Expectation:
    """What a file's own tokens tell of the rest of its tokenizer.

    The tokens are taken for right. Merges follow from their order, types from what merges cannot make, and of a
    Phi-4 (known by its separator token) everything else is known too.

    Raises:
        FormatError: The tokens are no byte-level vocabulary, or not as many as the weights have rows, so that nothing
            follows from them.
    """
    texts = tuple(file.strings(Keys.Tokenizer.LIST))
    file_types = file.integers(Keys.Tokenizer.TOKEN_TYPE)
    alphabet = set(byte_alphabet())
    merged = tuple(file.strings(Keys.Tokenizer.MERGES))
    whole = alphabet.issubset(texts) and len(set(texts)) == len(texts) and row_count(file) in {None, len(texts)}
    if not whole or not all(map(is_utf8, (*texts, *merged))):
        raise FormatError(nothing_to_go_by(file))
    # Where the tokens stand in another order than they were made in, the file's own merges are all there is.
    merges = derive_merges(texts, presumed_types(texts)) or merged
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
    notes: tuple[str, ...] = ()
    if phi4:
        vocabulary = as_phi4(vocabulary)
        if has_own_template(file):
            vocabulary, notes = with_own_choices(vocabulary, file)
    elif vocabulary.pre not in LLAMA_CPP_NAMES.values():
        raise FormatError(nothing_to_go_by(file))
    return Expectation(
        vocabulary=vocabulary,
        origin=Origin.FILE_ITSELF,
        origin_text=Origin.FILE_ITSELF.value,
        padding_ids=padding_ids(vocabulary) if phi4 else own_padding(vocabulary),
        sliding_window=0 if phi4 else None,
        known_template=False,
        notes=notes,
    )


def as_phi4(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with the ids, the flags and, where it has an old one, the template of today's Phi-4."""
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
        chat_template=phi4_vocabulary().chat_template if template in old_templates().values() else template,
    )


def presumed_types(texts: Sequence[str]) -> list[int]:
    """CONTROL for every name in angle brackets, as special tokens have; NORMAL for all others."""
    return [int(TokenType.CONTROL if is_special_name(text) else TokenType.NORMAL) for text in texts]


def is_special_name(text: str) -> bool:
    """Whether a token is called as special tokens are.

    >>> is_special_name("<|im_end|>"), is_special_name("<|")
    (True, False)
    """
    return text.startswith("<|") and text.endswith("|>")


def own_types(texts: Sequence[str], merges: Sequence[str], file_types: Sequence[int]) -> tuple[int, ...]:
    """The types of tokens: [PADn] is UNUSED, what bytes and merges make NORMAL, what is called so CONTROL.

    Any other token may be of any type, and keeps the one that the file says; without one it is CONTROL.
    """
    made = {*byte_alphabet(), *(merge.replace(" ", "") for merge in merges)}
    types = []
    for token_id, text in enumerate(texts):
        if text == pad_text(token_id):
            kind: int = TokenType.UNUSED
        elif text in made:
            kind = TokenType.NORMAL
        elif is_special_name(text) or token_id >= len(file_types):
            kind = TokenType.CONTROL
        else:
            kind = file_types[token_id]
        types.append(int(kind))
    return tuple(types)


def nothing_to_go_by(file: GGUFFile) -> Problem:
    """The file's tokens cannot be trusted, and nothing else tells what they should be."""
    return Problem(
        "the file's own tokens do not tell what its tokenizer should be",
        where=str(file.path),
        expected="a byte-level vocabulary, each token once, and one for each row of the weights",
        found=f"{file.text(Keys.Tokenizer.MODEL) or 'no'} vocabulary of {len(file.strings(Keys.Tokenizer.LIST)):,} "
        "tokens",
        next_step="give the folder with the model's tokenizer.json: --tokenizer MODEL_DIR",
    )
