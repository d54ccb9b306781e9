"""Conversations through chat template and tokenizer of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gguf.constants import Keys

from phi4conv.check.attribution import Attribution
from phi4conv.check.chats import CHATS
from phi4conv.check.comparison import Comparison, FileSide, Mismatch, Sample
from phi4conv.check.expectation import Origin
from phi4conv.check.mismatch import mismatch_finding
from phi4conv.check.model import Finding, Severity
from phi4conv.check.template import around, first_difference
from phi4conv.template import Rendering, render_chats
from phi4conv.vocab import Vocabulary

CHECK_ID = "tokenizer/conversations"


def compare_chats(attribution: Attribution, first: int) -> Comparison | None:
    """Every conversation into tokens, both ways; None where there is no template that works.

    The right template is the one that the mended file has: a fine-tune's own, where no model folder tells another.
    """
    vocabulary = attribution.source.vocabulary
    cases = attribution.diagnosis.cases
    template = cases[-1].file.text(Keys.Tokenizer.CHAT_TEMPLATE)
    if template is None:
        return None
    prompts = {template: rendered(template, vocabulary)}
    right = prompts[template]
    if all(rendering.text is None for rendering in right):
        of_file = cases[0].expected.origin is not Origin.MODEL_FOLDER
        attribution.roots.append(cannot_be_rendered(right[0], of_file=of_file))
        return None
    expected = attribution.source.encode([rendering.text or "" for rendering in right], parse_special=True)
    outcome = Comparison("conversations", texts=len(CHATS), tokens=sum(map(len, expected)))
    left: dict[str, Finding] = {}
    for number in attribution.loadable(first):
        own = cases[number].file.text(Keys.Tokenizer.CHAT_TEMPLATE) or ""
        if own not in prompts:
            prompts[own] = rendered(own, vocabulary)
        wrong = wrong_chats(attribution.side(number), right, prompts[own], expected)
        if number == first:
            outcome.wrong = len(wrong)
            outcome.known.update(known_chats(attribution.side(number), right, prompts[own], expected))
            left = wrong
        elif fixed := [name for name in left if name not in wrong]:
            attribution.blame(number, summed_up([left.pop(name) for name in fixed]))
        if not left:
            break
    if left:
        attribution.blame(0, summed_up(list(left.values())))
    return outcome


def rendered(template: str, vocabulary: Vocabulary) -> list[Rendering]:
    """The prompts that a template makes of every conversation."""
    special = vocabulary.special
    named = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad, "unk_token": special.unk}
    texts = {name: vocabulary.texts[token_id] for name, token_id in named.items() if token_id is not None}
    return render_chats(template, CHATS, special_tokens=texts)


def wrong_chats(
    side: FileSide, right: Sequence[Rendering], own: Sequence[Rendering], expected: Sequence[Sequence[int]]
) -> dict[str, Finding]:
    """What is wrong with conversations, by name."""
    wrong = {}
    for chat, theirs, mine, ids in zip(CHATS, right, own, expected, strict=True):
        if mine.text != theirs.text:
            wrong[chat.name] = other_prompt(chat.name, theirs, mine)
        elif mine.text is not None:
            mismatch = mismatched(side, chat.name, mine.text, ids)
            if mismatch is not None and not known_difference(side, mismatch):
                wrong[chat.name] = mismatch_finding(CHECK_ID, "become other tokens", mismatch, side)
    return wrong


def known_chats(
    side: FileSide, right: Sequence[Rendering], own: Sequence[Rendering], expected: Sequence[Sequence[int]]
) -> list[str]:
    """The known differences among the conversations that both templates render alike."""
    found = []
    for chat, theirs, mine, ids in zip(CHATS, right, own, expected, strict=True):
        if mine.text is not None and mine.text == theirs.text:
            mismatch = mismatched(side, chat.name, mine.text, ids)
            if mismatch is not None and (known := known_difference(side, mismatch)):
                found.append(known)
    return found


def mismatched(side: FileSide, name: str, text: str, ids: Sequence[int]) -> Mismatch | None:
    """A prompt that the file reads otherwise."""
    sample = Sample(name, text)
    actual, reason = side.encode(sample)
    return Mismatch(sample, tuple(ids), actual, reason) if actual != tuple(ids) or reason else None


def known_difference(side: FileSide, mismatch: Mismatch) -> str | None:
    """The known difference behind a prompt that both sides read otherwise."""
    return None if mismatch.reason else side.explain(mismatch.item, mismatch.expected)


def other_prompt(name: str, right: Rendering, own: Rendering) -> Finding:
    """A conversation of which the file's template makes another prompt."""
    if right.text is None or own.text is None:
        expected, actual = (repr(one.text[:60]) if one.text is not None else one.error for one in (right, own))
    else:
        place = first_difference(right.text, own.text)
        expected, actual = around(right.text, place), around(own.text, place)
    return Finding(CHECK_ID, Severity.FAIL, "other-prompt", "become other prompts", name, expected, actual)


def summed_up(findings: Sequence[Finding]) -> Finding:
    """One finding for several of them, shown by the first."""
    first = findings[0]
    return replace(first, message=f"{len(findings):,} of {len(CHATS):,} conversations {first.message}")


def cannot_be_rendered(rendering: Rendering, *, of_file: bool) -> Finding:
    """A template of which no conversation comes out: a defect of the file, unless its model has the same one."""
    if of_file:
        message = "the chat template does not work: no conversation becomes a prompt"
        shown = "a template that renders", rendering.error
        return Finding(
            "tokenizer/chat-template", Severity.FAIL, "broken", message, Keys.Tokenizer.CHAT_TEMPLATE, *shown
        )
    message = "the model's own chat template cannot be rendered here, so no conversations were compared"
    return Finding(CHECK_ID, Severity.SKIP, "not-rendered", message, Keys.Tokenizer.CHAT_TEMPLATE, "", rendering.error)
