"""Checks of the table: which kind of vocabulary a file has, its tokens, their types, and its merges.

Every check compares a file with what is expected of it; what texts become is check.proof's matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from gguf.constants import Keys

from phi4conv.check.case import Case
from phi4conv.check.faults import Fault, merge_fault, model_fault, pre_fault, token_fault, type_fault
from phi4conv.check.model import Finding, Severity, listed
from phi4conv.gguf_file.edit import Change
from phi4conv.gguf_file.layout import i32s, text, texts
from phi4conv.reference.llama_vocab_rules import PRE_SETTINGS
from phi4conv.reference.split import SPLITTERS
from phi4conv.vocab import byte_alphabet


def model(case: Case) -> Iterator[Finding]:
    """The kind of vocabulary."""
    key = Keys.Tokenizer.MODEL
    stated = case.file.text(key)
    if stated != "gpt2":
        only_the_name = case.texts == case.right.texts and case.merges == case.right.merges
        changes = [Change(key, text(key, "gpt2"))] if only_the_name else case.table_changes
        hint = override(key, "str", "gpt2") if only_the_name else ""
        yield failed("tokenizer/model", model_fault(stated, case.texts, case.right), key, changes, hint)


def is_bpe(case: Case) -> bool:
    """Whether merges and split regex matter: llama.cpp looks at them in no other kind of vocabulary."""
    return case.file.text(Keys.Tokenizer.MODEL) == "gpt2"


def pre(case: Case) -> Iterator[Finding]:
    """The name of the split regex."""
    key = Keys.Tokenizer.PRE
    stated, right = case.file.text(key), case.right.pre
    if is_bpe(case) and stated != right and not splits_alike(stated or "", right):
        changes = [Change(key, text(key, right))]
        yield failed("tokenizer/pre", pre_fault(stated, right), key, changes, override(key, "str", right))


def splits_alike(name: str, right: str) -> bool:
    """Whether llama.cpp cuts text alike under two names: dbrx, llama-bpe and smaug-bpe have one regex.

    A name that keeps words which are tokens whole must not be replaced by one that does not.
    """
    if name not in SPLITTERS or right not in SPLITTERS or SPLITTERS[name] != SPLITTERS[right]:
        return False
    return PRE_SETTINGS[name].ignore_merges or not PRE_SETTINGS[right].ignore_merges


def tokens(case: Case) -> Iterator[Finding]:
    """The texts of all tokens, each under its id."""
    key = Keys.Tokenizer.LIST
    if case.texts == case.right.texts:
        return
    changes = [Change(key, texts(key, case.right.texts))]
    if len(case.types) != len(case.right):  # a list that fits neither the wrong tokens nor the right ones
        changes.append(Change(Keys.Tokenizer.TOKEN_TYPE, i32s(Keys.Tokenizer.TOKEN_TYPE, case.right.types)))
    yield failed("tokenizer/tokens", token_fault(case.texts, case.right), key, changes)


def alphabet(case: Case) -> Iterator[Finding]:
    """The 256 tokens of single bytes."""
    known = set(case.texts)
    if missing := [character for character in byte_alphabet() if character not in known]:
        message = f"{len(missing)} bytes have no token: a text with such a byte loses it"
        fault = Fault("missing", message, "256 tokens of one byte", f"without {listed(missing, 8)}")
        yield failed("tokenizer/alphabet", fault, Keys.Tokenizer.LIST)


def token_types(case: Case) -> Iterator[Finding]:
    """What kind of token each one is."""
    key = Keys.Tokenizer.TOKEN_TYPE
    if case.types != case.right.types:
        changes = [Change(key, i32s(key, case.right.types))]
        yield failed("tokenizer/token-types", type_fault(case.types, case.right), key, changes)


def scores(case: Case) -> Iterator[Finding]:
    """The scores, which only a SentencePiece vocabulary needs; llama.cpp reads them wherever they are."""
    key = Keys.Tokenizer.SCORES
    pair, count = case.file.metadata.get(key), len(case.texts)
    if pair is not None and pair.item_type is not None and len(pair.value) < count:
        message = "the file has fewer scores than tokens: llama.cpp refuses to load it, and a BPE vocabulary needs none"
        fault = Fault("short", message, f"none, or {count:,}", f"{len(pair.value):,}")
        yield failed("tokenizer/scores", fault, key, [Change(key, None)])


def merges(case: Case) -> Iterator[Finding]:
    """The merges, in rank order."""
    key = Keys.Tokenizer.MERGES
    if is_bpe(case) and case.merges != case.right.merges:
        changes = [Change(key, texts(key, case.right.merges))]
        yield failed("tokenizer/merges", merge_fault(case.merges, case.right), key, changes)


def merge_order(case: Case) -> Iterator[Finding]:
    """That merge i makes token 256 + i, as in every vocabulary that tiktoken trained: a check within the file alone."""
    first = len(byte_alphabet())
    if not is_bpe(case) or any(
        made_by(merge) != text for merge, text in zip(case.right.merges, case.right.texts[first:], strict=False)
    ):
        return  # the model's own vocabulary is of another kind
    pairs = list(zip(case.merges, case.texts[first:], strict=False))
    if wrong := [rank for rank, (merge, text) in enumerate(pairs) if made_by(merge) != text]:
        rank = wrong[0]
        merge, text = pairs[rank]
        message = f"{len(wrong):,} merges do not make the token at their place"
        fault = Fault("different", message, f"merge {rank:,} makes {text!r}", f"{merge!r}")
        yield failed("tokenizer/merge-order", fault, Keys.Tokenizer.MERGES)


def made_by(merge: str) -> str:
    """The token that a merge makes.

    >>> made_by("Ġ t")
    'Ġt'
    """
    return merge.replace(" ", "")


def failed(check_id: str, fault: Fault, where: str, changes: Sequence[Change] = (), override: str = "") -> Finding:
    """The finding for a fault."""
    return Finding(check_id, Severity.FAIL, *fault[:2], where, *fault[2:], changes=tuple(changes), override=override)


def override(key: str, kind: str, value: object) -> str:
    """The option of llama.cpp's programs that sets a scalar for one run; kind is int, float, bool or str.

    Nothing for a value that a shell, or llama.cpp's list of such options, would take apart.

    >>> override("tokenizer.ggml.pre", "str", "dbrx"), override("general.name", "str", "a; b")
    ('--override-kv tokenizer.ggml.pre=str:dbrx', '')
    """
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return f"--override-kv {key}={kind}:{shown}" if re.fullmatch(r"[\w.-]+", shown, re.ASCII) else ""


CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    model,
    tokens,
    alphabet,
    token_types,
    scores,
    merges,
    merge_order,
    pre,
)
