"""Checks of single values: special ids, what is added to a text, where an answer ends, and two traps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gguf import GGUFValueType
from gguf.constants import Keys

from phi4conv.check.case import Case
from phi4conv.check.expectation import BEGIN_OF_TEXT, Origin, is_phi4
from phi4conv.check.faults import Fault
from phi4conv.check.model import Finding, Severity, listed
from phi4conv.check.vocabulary import override
from phi4conv.gguf_file.edit import Change
from phi4conv.gguf_file.layout import boolean, text, u32
from phi4conv.phi3.metadata import ARCHITECTURE, PHI3_IN_NAME, SPECIAL_ID_KEYS, safe_name
from phi4conv.reference.llama_vocab_rules import ID_KEYS

FAIL, WARN, INFO = Severity.FAIL, Severity.WARN, Severity.INFO

# llama.cpp's id for a role without a usable key in a gpt2 vocabulary (llama-vocab.cpp): in Phi-4 a comma.
FALLBACK_ID = 11

ROLE_PURPOSES = {
    "bos": "begins a text",
    "eos": "ends an answer",
    "eot": "ends a turn",
    "unk": "stands for what has no token",
    "sep": "separates two texts",
    "pad": "fills up short texts in training",
    "mask": "stands for a hidden word",
}


def special_ids(case: Case) -> Iterator[Finding]:
    """The ids of tokens with a role, one finding for each that is wrong."""
    right = case.right.special.present()
    for role, key in SPECIAL_ID_KEYS.items():
        finding = role_finding(role, key, right.get(role), case)
        if finding is not None:
            yield finding


def role_finding(role: str, key: str, right: int | None, case: Case) -> Finding | None:
    """What is wrong with one role; None when nothing is."""
    stated = case.file.number(key)
    if key not in case.file.metadata:
        return None if right is None else missing_role(role, key, right, case)
    if right is None:
        return unexpected_role(role, key, stated, case)
    if stated == right or (role == "pad" and stated in case.expected.padding_ids):
        return None
    fault = id_fault(role, key, stated, case)
    changes, hint = (Change(key, u32(key, right)),), override(key, "int", right)
    shown = named(right, case.right.texts), fault.actual
    return Finding(f"tokenizer/{role}-id", FAIL, *fault[:2], key, *shown, changes=changes, override=hint)


def id_fault(role: str, key: str, stated: float | None, case: Case) -> Fault:
    """What an id is instead of the right one."""
    vocabulary, purpose = case.right, ROLE_PURPOSES[role]
    if stated is None:
        pair = case.file.metadata[key]
        message = f"the id of the token that {purpose} is no number: llama.cpp refuses to load the file"
        return Fault("not-a-number", message, "", f"{pair.type.name} {str(pair.value)[:40]!r}")
    if not 0 <= stated < len(vocabulary):
        message = f"the id of the token that {purpose} is not among the tokens; {fallback(role)}"
        return Fault("out-of-range", message, "", f"{stated}")
    first = role in {"eos", "eot", "pad"} and is_phi4(vocabulary.ids) and stated == vocabulary.ids[BEGIN_OF_TEXT]
    code = "first-release" if first else "wrong"
    return Fault(code, wrong_role(role, code), "", named(stated, vocabulary.texts))


def unexpected_role(role: str, key: str, stated: float | None, case: Case) -> Finding:
    """A role that the model has no token for: a fault by its folder, else perhaps a publisher's choice."""
    check_id, texts = f"tokenizer/{role}-id", case.right.texts
    message = f"the file names a token that {ROLE_PURPOSES[role]}, and the model has none"
    changes = (Change(key, None),)
    if stated is None:
        message = f"the id of the token that {ROLE_PURPOSES[role]} is no number: llama.cpp refuses to load the file"
        shown = case.file.metadata[key].type.name
        return Finding(check_id, FAIL, "not-a-number", message, key, "no such key", shown, changes)
    if case.expected.origin is not Origin.MODEL_FOLDER and 0 <= stated < len(texts):
        return Finding(check_id, INFO, "unexpected", message, key, "no such key", named(stated, texts))
    return Finding(check_id, WARN, "unexpected", message, key, "no such key", named(stated, texts), changes)


def wrong_role(role: str, code: str) -> str:
    """What a wrong id does to the user."""
    messages = {
        "bos": "another token than the model's is taken to begin a text",
        "eos": "the model ends its answers with another token: llama.cpp does not stop where it should",
        "eot": "the model ends its turns with another token: llama.cpp does not stop where it should",
        "pad": "another token than the model's fills up short texts, so that fine-tuning learns from the wrong one",
    }
    message = messages.get(role, f"another token than the model's {ROLE_PURPOSES[role]}")
    if code == "first-release" and role == "eos":
        message += "; so it was in Phi-4's first release, which was corrected in January 2025"
    return message


def missing_role(role: str, key: str, right: int, case: Case) -> Finding | None:
    """A role without a key, which llama.cpp fills in its own way."""
    texts = case.right.texts
    check_id = f"tokenizer/{role}-id"
    right_text, changes = named(right, texts), (Change(key, u32(key, right)),)
    if role in {"bos", "eos"}:
        message = f"the file does not say which token {ROLE_PURPOSES[role]}; {fallback(role)}"
        hint = override(key, "int", right)
        return Finding(check_id, FAIL, "missing", message, key, right_text, "no such key", changes, hint)
    if role == "eot":
        guessed = guessed_end_of_turn(case)
        if guessed == right:
            message = "the file does not say which token ends a turn; llama.cpp guesses, and guesses right"
            return Finding(check_id, INFO, "guessed", message, key, right_text, "no such key", changes)
        message = "the file does not say which token ends a turn, and llama.cpp's guess is wrong"
        shown = "no guess" if guessed is None else named(guessed, texts)
        return Finding(check_id, FAIL, "missing", message, key, right_text, shown, changes, override(key, "int", right))
    message = f"the file does not say which token {ROLE_PURPOSES[role]}; llama.cpp does without, fine-tuning may not"
    return Finding(check_id, WARN, "missing", message, key, right_text, "no such key", changes)


def guessed_end_of_turn(case: Case) -> int | None:
    """The token that llama.cpp takes for the end of a turn when the table is right and no key says so."""
    vocab = case.with_right_table.loaded
    return vocab.special.get("eot") if vocab else None


def fallback(role: str) -> str:
    """What llama.cpp does without a usable id."""
    if role in {"bos", "eos"}:
        ends = ", which then ends every answer" if role == "eos" else ""
        return f"llama.cpp takes token {FALLBACK_ID} instead, in Phi-4 a comma{ends}"
    return "llama.cpp ignores it"


def named(token_id: float, texts: tuple[str, ...]) -> str:
    """An id with its text.

    >>> named(1, ("a", "<|im_end|>"))
    '1 <|im_end|>'
    """
    known = isinstance(token_id, int) and 0 <= token_id < len(texts)
    return f"{token_id} {texts[int(token_id)]}" if known else f"{token_id}"


def is_role_key(key: str) -> bool:
    """Whether a metadata key gives a token a role: "tokenizer.ggml.eos_token_id"."""
    return key.startswith("tokenizer.ggml.") and key.endswith("_token_id")


def other_roles(case: Case) -> Iterator[Finding]:
    """Ids of roles that are no business of a Phi's, such as eom, and those for filling in the middle."""
    for key in filter(is_role_key, case.file.metadata):
        if key not in SPECIAL_ID_KEYS.values():
            yield from other_role(key, case)


def other_role(key: str, case: Case) -> Iterator[Finding]:
    """A role whose token is not there, or is not the one that llama.cpp knows for it by its text."""
    check_id = "tokenizer/other-role-ids"
    stated, count, removal = case.file.number(key), len(case.texts), (Change(key, None),)
    if stated is None or not 0 <= stated < count:
        message = "the file gives a role to a token that it does not have; llama.cpp ignores it"
        shown = "no number" if stated is None else str(stated)
        yield Finding(check_id, WARN, "out-of-range", message, key, f"an id below {count:,}", shown, removal)
        return
    fim_role = next((role for role, known in ID_KEYS if known == key and role.startswith("fim_")), "")
    without = case.with_right_table.after(removal).loaded if fim_role else None
    by_text = without.special.get(fim_role) if without else None
    if by_text is not None and by_text != stated:
        message = "the file names another token for filling in the middle than the one that is called so"
        texts = case.right.texts
        yield Finding(check_id, WARN, "wrong", message, key, named(by_text, texts), named(stated, texts), removal)


def added_tokens(case: Case) -> Iterator[Finding]:
    """Whether llama.cpp puts bos before and eos behind a text by itself."""
    vocabulary = case.right
    # Without a key the name of the split regex decides, so the file is judged by its own as far as it loads.
    own = case.loaded or case.with_right_table.loaded
    if own is None:
        return
    for role, key, does, should in (
        ("bos", Keys.Tokenizer.ADD_BOS, own.add_bos, vocabulary.add_bos),
        ("eos", Keys.Tokenizer.ADD_EOS, own.add_eos, vocabulary.add_eos),
    ):
        if does == should:
            continue
        cause = "no such key" if key not in case.file.metadata else str(case.file.metadata[key].value).lower()
        cause += f"; pre is {case.file.text(Keys.Tokenizer.PRE)!r}" if key not in case.file.metadata else ""
        place = "before" if role == "bos" else "behind"
        message = (
            f"llama.cpp puts a {role} token {place} every text, and the model was trained without"
            if does
            else f"llama.cpp puts no {role} token {place} a text, and the model was trained with one"
        )
        yield Finding(
            f"tokenizer/add-{role}",
            FAIL,
            "added" if does else "not-added",
            message,
            key,
            str(should).lower(),
            cause,
            (Change(key, boolean(key, should)),),
            override(key, "bool", should),
        )


def end_of_generation(case: Case) -> Iterator[Finding]:
    """The tokens after which llama.cpp stops generating."""
    own, right = case.loaded, case.mended.loaded
    if own is None or right is None or own.end_of_generation == right.end_of_generation:
        return
    texts = case.right.texts
    lacking = sorted(right.end_of_generation - own.end_of_generation)
    extra = sorted(own.end_of_generation - right.end_of_generation)
    causes = case.ends_at_words
    message = (
        f"llama.cpp does not stop at {listed(named(token, texts) for token in lacking)}: answers run on"
        if lacking
        else f"llama.cpp stops at {listed(named(token, texts) for token in extra)}: answers break off"
    )
    yield Finding(
        "tokenizer/end-of-generation",
        FAIL,
        "lacking" if lacking else "extra",
        message,
        ", ".join(causes),
        listed((named(token, texts) for token in sorted(right.end_of_generation)), 6),
        listed((named(token, texts) for token in sorted(own.end_of_generation)), 6),
        tuple(Change(key, None) for key in causes),
    )


def general_name(case: Case) -> Iterator[Finding]:
    """The name by which llama.cpp takes a model for a Phi-3."""
    key = Keys.General.NAME
    name = case.file.text(key) or ""
    if PHI3_IN_NAME.search(name):
        better, _ = safe_name(name, asked_for=False)
        yield Finding(
            "general/name",
            FAIL,
            "phi-3-in-name",
            "by this name llama.cpp expects Phi-3's SentencePiece vocabulary, looks for '</s>' and refuses the file",
            key,
            repr(better),
            repr(name),
            (Change(key, text(key, better)),),
            override(key, "str", "Phi-4"),
        )


def sliding_window(case: Case) -> Iterator[Finding]:
    """The attention window: 0 for Phi-4, which has none."""
    key = Keys.Attention.SLIDING_WINDOW.format(arch=ARCHITECTURE)
    file, right = case.file, case.expected.sliding_window
    if file.architecture != ARCHITECTURE or right is None:
        return
    stated = file.number(key)
    if stated == right and file.metadata[key].type == GGUFValueType.UINT32:
        return
    if key not in file.metadata:
        code, shown = "missing", "no such key"
        message = "without it llama.cpp of early 2025 takes a window for granted and stops with an assertion"
    elif file.metadata[key].type != GGUFValueType.UINT32:
        code, shown = "wrong-type", file.metadata[key].type.name
        message = "llama.cpp reads the attention window as UINT32 alone, and may refuse the file"
    else:
        code, shown = "wrong", str(stated)
        message = (
            "the model has a window; programs that respect it let the model see too much of a text, or too little"
            if right
            else "the model attends to all of a text; programs that respect this window cut it off, others warn"
        )
    change = (Change(key, u32(key, right)),)
    yield Finding(
        "phi3/sliding-window", FAIL, code, message, key, str(right), shown, change, override(key, "int", right)
    )


CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    general_name,  # before the rest, for which llama.cpp must load the file
    special_ids,
    other_roles,
    added_tokens,
    end_of_generation,
    sliding_window,
)
