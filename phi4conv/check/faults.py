"""What happened to a list of tokens, of types or of merges: the fault that explains it, in words.

Each function takes the file's list and the right vocabulary, and knows that they differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from gguf import TokenType

from phi4conv.check.model import listed
from phi4conv.reference.llama_vocab_rules import PRE_SETTINGS
from phi4conv.vocab import Vocabulary

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for a space


class Fault(NamedTuple):
    """A fault with its code, what it means for the user, and what is expected and found."""

    code: str
    message: str
    expected: str
    actual: str


def model_fault(stated: str | None, found: Sequence[str], vocabulary: Vocabulary) -> Fault:
    """What is wrong with a kind of vocabulary that is not gpt2's."""
    right = vocabulary.texts
    same = sum(mine == theirs for mine, theirs in zip(found, right, strict=False))
    shown = (
        f"gpt2, {len(right):,} tokens, {len(vocabulary.merges):,} merges",
        f"{stated or 'no such key'}, {len(found):,} tokens, {same:,} of them right",
    )
    if stated is None:
        message = "the file does not say what kind of vocabulary it has; llama.cpp refuses to load it"
        return Fault("missing", message, *shown)
    if stated == "llama" and any(SPACE + "Ġ" in text for text in found):
        special = sum(kind == TokenType.CONTROL for kind in vocabulary.types)
        carrying = f"only {same:,} ids carry" if same > special else "no id carries"
        message = (
            f"a SentencePiece table made from BPE token strings: the file loads and runs, but {carrying} the right "
            "text, so that the model reads and writes garbage; the weights are fine"
        )
        return Fault("sentencepiece-from-bpe", message, *shown)
    if same == len(right):
        message = "the tokens are byte-level BPE, but the file calls them something else: the merges are never used"
    else:
        message = "another kind of vocabulary than the model was trained with: every text becomes other tokens"
    return Fault("wrong", message, *shown)


def pre_fault(stated: str | None, right: str) -> Fault:
    """What is wrong with the name of a split regex."""
    elsewhere = "cuts text in other places than the model was trained with"
    shown = right, "no such key" if stated is None else repr(stated)
    if not stated:
        message = f"llama.cpp falls back to its default split regex, which {elsewhere}, and only warns"
        return Fault("missing" if stated is None else "empty", message, *shown)
    if stated == "default":
        return Fault("default", f"llama.cpp's default split regex {elsewhere}, silently", *shown)
    if stated not in PRE_SETTINGS:
        return Fault("unknown", "llama.cpp has no split regex of this name, and refuses to load the file", *shown)
    return Fault("wrong", f"this split regex {elsewhere}, silently", *shown)


def token_fault(found: Sequence[str], vocabulary: Vocabulary) -> Fault:
    """What is wrong with a list of tokens."""
    right = vocabulary.texts
    if not found:
        return Fault("missing", "the file lists no tokens; llama.cpp refuses to load it", count_of(right), "none")
    return next(token_faults(found, right))


def token_faults(found: Sequence[str], right: Sequence[str]) -> Iterator[Fault]:
    """The faults that fit, the most telling one first."""
    wrong = differing(found, right)
    many = f"{len(wrong):,} ids"
    shown = (at(right, wrong[:2]), at(found, wrong[:2])) if wrong else (count_of(right), count_of(found))
    if looks_raw(found, right):
        message = (
            f"tokens are written as plain text instead of byte-level characters (a space as ' ', not 'Ġ'), {many} of "
            "them: they are never found in a text, and llama.cpp aborts"
        )
        yield Fault("raw-text", message, *shown)
    twice = [text for text, count in Counter(found).items() if count > 1]
    if twice and len(found) == len(right):
        ids = [str(token_id) for token_id, text in enumerate(found) if text == twice[0]]
        stand = counted(len(twice), "text stands", "texts stand")
        message = f"{stand} for more than one id ({listed(map(repr, twice))}): llama.cpp aborts"
        yield Fault("duplicate", message, shown[0], f"{twice[0]!r} is {listed(ids)}")
    if len(found) != len(right):
        message = "the file has another number of tokens than the model: ids and rows of the weights do not go together"
        yield Fault("count", message, count_of(right), count_of(found))
    if shift := shifted_by(found, right):
        yield Fault("shifted", f"tokens are {shift:+d} ids off their place: {many} stand for another's text", *shown)
    if Counter(found) == Counter(right):
        if len(wrong) == 2:
            yield Fault("swapped", "two tokens are exchanged; the model reads and writes one for the other", *shown)
        yield Fault("reordered", f"the right tokens in another order: {many} stand for another's text", *shown)
    if len(wrong) == 1:
        yield Fault("different", "one id carries another text than the model was trained with", *shown)
    yield Fault("different", f"{many} carry another text than the model was trained with", *shown)


def looks_raw(found: Sequence[str], right: Sequence[str]) -> bool:
    """Whether byte-level spelling was undone: tokens hold characters that stand in no byte-level text."""
    return sum(" " in text or "\n" in text for text in found) > len(right) // 100


def shifted_by(found: Sequence[str], right: Sequence[str]) -> int:
    """By how many ids most tokens have moved up, 0 when it is something else."""
    for shift in (1, 2):
        for sign, (later, earlier) in ((1, (found, right)), (-1, (right, found))):
            same = sum(mine == theirs for mine, theirs in zip(later[shift:], earlier, strict=False))
            if same > len(right) // 2:
                return sign * shift
    return 0


# What a wrong type does, by the right one and the file's; {these} are the tokens concerned, with a verb.
TYPE_FAULTS: Mapping[tuple[int, int], tuple[str, str]] = {
    (TokenType.CONTROL, TokenType.NORMAL): (
        "special-as-normal",
        "{these} typed as ordinary text: llama.cpp cuts {them} into pieces that the model never saw",
    ),
    (TokenType.CONTROL, TokenType.UNUSED): (
        "special-as-unused",
        "{these} typed as unused: llama.cpp cuts {them} into pieces that the model never saw",
    ),
    (TokenType.CONTROL, TokenType.USER_DEFINED): (
        "special-as-user-defined",
        "{these} typed as user-defined: llama.cpp reads {them} out of any text, so that a message can forge a turn",
    ),
    (TokenType.NORMAL, TokenType.CONTROL): (
        "normal-as-special",
        "{these} typed as special: llama.cpp cuts texts at {them}, and does not print {them}",
    ),
}


def type_fault(found: Sequence[int], vocabulary: Vocabulary) -> Fault:
    """What is wrong with a list of token types."""
    right = vocabulary.types
    counts = f"{len(right):,} types", f"{len(found):,} types"
    if not found:
        message = "the file has no token types: llama.cpp refuses to load it, or takes special tokens for ordinary text"
        return Fault("missing", message, counts[0], "none")
    if len(found) != len(right):
        message = (
            "the file has another number of types than tokens: llama.cpp refuses to load it, or reads past the end"
        )
        return Fault("short" if len(found) < len(right) else "long", message, *counts)
    wrong = differing(found, right)
    first = wrong[0]
    text = vocabulary.texts[first]
    shown = f"{first} {text!r} {type_name(right[first])}", f"{first} {text!r} {type_name(found[first])}"
    kinds = {(right[token_id], found[token_id]) for token_id in wrong}
    code, message = TYPE_FAULTS.get(kinds.pop(), ("", "")) if len(kinds) == 1 else ("", "")
    these, them = (f"{len(wrong):,} tokens are", "them") if len(wrong) > 1 else (f"the token {text!r} is", "it")
    if code:
        return Fault(code, message.format(these=these, them=them), *shown)
    return Fault("different", f"{these} of another type than the model's tokenizer says", *shown)


def type_name(number: int) -> str:
    """A token type by name.

    >>> type_name(3), type_name(77)
    ('CONTROL', 'type 77')
    """
    return TokenType(number).name if number in set(TokenType) else f"type {number}"


def merge_fault(found: Sequence[str], vocabulary: Vocabulary) -> Fault:
    """What is wrong with a list of merges."""
    if not found:
        message = "a BPE vocabulary without its merges: llama.cpp refuses to load it"
        return Fault("missing", message, f"{len(vocabulary.merges):,} merges", "none")
    return next(merge_faults(found, vocabulary))


def merge_faults(found: Sequence[str], vocabulary: Vocabulary) -> Iterator[Fault]:
    """The faults that fit, the most telling one first."""
    right = vocabulary.merges
    wrong = differing(found, right)
    lost = len(right) - len(found)
    counts = f"{len(right):,} merges", f"{len(found):,} merges"
    shown = (at(right, wrong[:2]), at(found, wrong[:2])) if wrong else counts
    malformed = [merge for merge in found if merge.count(" ") != 1 or merge.startswith(" ") or merge.endswith(" ")]
    if malformed:
        are = counted(len(malformed), "merge is", "merges are")
        message = f"{are} not two parts with a space between: {never_made(len(malformed))}"
        yield Fault("malformed", message, "two parts and one space", repr(malformed[0]))
    if lost > 0 and not wrong:
        last = "the last merge is" if lost == 1 else f"the last {lost:,} merges are"
        message = f"{last} missing: {never_made(lost)}"
        yield Fault("dropped", message, f"{counts[0]}, then {right[len(found)]!r}", counts[1])
    if lost > 0 and set(found) <= set(right):
        are = counted(lost, "merge is", "merges are")
        yield Fault("dropped", f"{are} missing: {never_made(lost)}", *shown)
    if len(set(found)) < len(found):
        stand = counted(len(found) - len(set(found)), "merge stands", "merges stand")
        yield Fault("duplicate", f"{stand} twice", *shown)
    if Counter(found) == Counter(right):
        message = "where both apply, text becomes other tokens than the model was trained with"
        if len(wrong) == 2:
            yield Fault("swapped", f"two merges are exchanged: {message}", *shown)
        yield Fault("reordered", f"the right merges in another order, {len(wrong):,} of them: {message}", *shown)
    are = counted(len(wrong) + abs(lost), "merge is", "merges are")
    yield Fault("different", f"{are} not the model's: text becomes other tokens", *shown)


def differing(found: Sequence[object], right: Sequence[object]) -> list[int]:
    """The places at which two lists differ, up to the end of the shorter one."""
    return [place for place, (mine, theirs) in enumerate(zip(found, right, strict=False)) if mine != theirs]


def at(items: Sequence[str], places: Sequence[int]) -> str:
    """Items with their places.

    >>> at(["a", "b", "c"], [0, 2])
    "0 'a', 2 'c'"
    """
    return ", ".join(f"{place} {items[place]!r}" for place in places)


def counted(count: int, one: str, many: str) -> str:
    """A count with the words for one, or for many.

    >>> counted(1, "merge is", "merges are"), counted(2000, "merge is", "merges are")
    ('1 merge is', '2,000 merges are')
    """
    return f"{count:,} {one if count == 1 else many}"


def never_made(merges: int) -> str:
    """What the loss of so many merges does."""
    return "its token is never made" if merges == 1 else "their tokens are never made"


def count_of(tokens: Sequence[str]) -> str:
    """How many tokens there are."""
    return f"{len(tokens):,} tokens"
