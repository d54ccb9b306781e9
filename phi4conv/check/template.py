"""The check of the chat template, which turns a conversation into a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gguf import GGUFValueType
from gguf.constants import Keys

from phi4conv.carried import old_templates
from phi4conv.check.case import Case
from phi4conv.check.expectation import Origin
from phi4conv.check.faults import Fault
from phi4conv.check.model import Finding, Severity
from phi4conv.gguf_file.edit import Change
from phi4conv.gguf_file.layout import MetadataPair, text, texts

CHECK_ID = "tokenizer/chat-template"
KEY = Keys.Tokenizer.CHAT_TEMPLATE

NAMED_ID = "tokenizer/named-templates"
NAMES_KEY = Keys.Tokenizer.CHAT_TEMPLATES

# What is wrong with each of carried.old_templates().
OLD_TEMPLATES = {
    "first-release": "the template of Phi-4's first release: it opens an answer of the assistant after every user "
    "turn, asked for or not",
    "no-generation-prompt": "the template ignores add_generation_prompt: the model is never told that it is its "
    "turn, and may go on writing the user's",
}


def chat_template(case: Case) -> Iterator[Finding]:
    """The default template. Without a model folder any template that is not known to be wrong may be a fine-tune's."""
    right, stated = case.right.chat_template, case.file.text(KEY)
    if stated == right:
        return
    if right is None:
        if case.expected.origin is Origin.MODEL_FOLDER:
            yield Finding(CHECK_ID, Severity.WARN, "unexpected", "the model folder has no chat template", KEY)
        return
    fault = template_fault(stated, right)
    if stated is None and KEY in case.file.metadata:
        kind = case.file.metadata[KEY].type.name
        fault = Fault("no-text", "the chat template is no text: programs guess one", "STRING", kind)
    changes = (Change(KEY, text(KEY, right)),)
    if fault.code != "different" or case.expected.known_template:
        yield Finding(CHECK_ID, Severity.FAIL, *fault[:2], KEY, *fault[2:], changes=changes)
        return
    message = (
        "the chat template is not Phi-4's: right for a fine-tune with a template of its own, which only the model "
        "folder can tell"
    )
    yield Finding(CHECK_ID, Severity.WARN, "not-phi-4", message, KEY, *fault[2:])


def template_fault(stated: str | None, right: str) -> Fault:
    """What is wrong with a template."""
    shown = f"{len(right):,} characters", "no such key" if stated is None else f"{len(stated):,} characters"
    if not stated:
        message = "the file has no chat template: programs guess one, and Phi-4's separator token is in none of them"
        return Fault("missing", message, *shown)
    name = next((name for name, old in old_templates().items() if old == stated), None)
    if name is not None:
        return Fault(name, OLD_TEMPLATES[name], *shown)
    place = first_difference(right, stated)
    message = f"the chat template is not the model's: the two part at character {place:,}"
    return Fault("different", message, around(right, place), around(stated, place))


def named_templates(case: Case) -> Iterator[Finding]:
    """The templates beside the default one, such as tool_use, and the list of their names.

    Only the model folder tells them. A list that is wrong beside a template is mended with it.
    """
    right = case.right.named_templates
    if case.expected.origin is not Origin.MODEL_FOLDER or not right:
        return
    listing = names_changes(case)
    wrong = False
    for name, template in right.items():
        key = Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name)
        stated = case.file.text(key)
        if stated != template:
            wrong = True
            fault = named_fault(name, stated, template, case.file.metadata.get(key))
            changes = (Change(key, text(key, template)), *listing)
            yield Finding(NAMED_ID, Severity.WARN, *fault[:2], key, *fault[2:], changes=changes)
    if listing and not wrong:
        message = "the file's list of chat templates is not the model's: programs look there for their names"
        code = "names" if NAMES_KEY in case.file.metadata else "names-missing"
        shown = ", ".join(right), ", ".join(case.file.strings(NAMES_KEY)) or "no list of names"
        yield Finding(NAMED_ID, Severity.WARN, code, message, NAMES_KEY, *shown, changes=listing)


def names_changes(case: Case) -> tuple[Change, ...]:
    """What mends the list of names; nothing where it is right. Its order is arbitrary in llama.cpp's converter."""
    names = list(case.right.named_templates)
    if sorted(case.file.strings(NAMES_KEY)) == sorted(names):
        return ()
    return (Change(NAMES_KEY, texts(NAMES_KEY, names)),)


def named_fault(name: str, stated: str | None, right: str, stored: MetadataPair | None) -> Fault:
    """What is wrong with a template that has a name."""
    fault = template_fault(stated, right)
    if stored is not None and stored.type is not GGUFValueType.STRING:
        return Fault("no-text", f"the chat template {name} is no text", "STRING", stored.type.name)
    if fault.code == "missing":
        return fault._replace(message=f"the file lacks the chat template {name} of the model")
    return fault._replace(message=f"the chat template {name} is not the model's")


def first_difference(one: str, other: str) -> int:
    """The place where two texts part; the end of the shorter one when it begins the longer.

    >>> first_difference("abc", "abd"), first_difference("ab", "abc")
    (2, 2)
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, theirs) in pairs if mine != theirs), min(len(one), len(other)))


def around(content: str, place: int, reach: int = 24) -> str:
    """The neighbourhood of a place in a text.

    >>> around("abcdefgh", 4, 2)
    "'…cdef…'"
    """
    start, end = max(0, place - reach), place + reach
    before, after = "…" * (start > 0), "…" * (end < len(content))
    return repr(f"{before}{content[start:end]}{after}")


CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (chat_template, named_templates)
