"""The templates beside the default one: each is told by its name, and mended with the list of names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import TINY
from gguf import Keys
from vocabulary_changes import without
from vocabulary_files import Pairs, changed, tiny_pairs, written

from phi4conv.carried import first_release_template
from phi4conv.check.case import Case
from phi4conv.check.diagnosis import diagnose
from phi4conv.check.expectation import Expectation, Origin, expected_from_folder
from phi4conv.check.model import Finding, Severity
from phi4conv.check.template import named_templates
from phi4conv.gguf_file.layout import MetadataPair, text, texts, u32
from phi4conv.gguf_file.read import read_gguf

NAMES = Keys.Tokenizer.CHAT_TEMPLATES
TOOL_USE, RAG = (Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name) for name in ("tool_use", "rag"))
RIGHT = {"tool_use": "{{ tools }}", "rag": "{{ documents }}"}


def good_pairs() -> Pairs:
    """The tiny Phi-4's metadata with two templates beside the default one."""
    named = text(TOOL_USE, RIGHT["tool_use"]), text(RAG, RIGHT["rag"])
    return changed(tiny_pairs(), *named, texts(NAMES, list(RIGHT)))


def case_of(folder: Path, pairs: Pairs, named: dict[str, str] | None = None) -> Case:
    """A file beside the tiny Phi-4 with these templates, the RIGHT ones where nothing is said."""
    file = read_gguf(written(pairs, folder / "a.gguf"))
    expected: Expectation = expected_from_folder(file, TINY)
    vocabulary = replace(expected.vocabulary, named_templates=RIGHT if named is None else named)
    return Case(file, replace(expected, vocabulary=vocabulary))


def told(findings: Sequence[Finding]) -> list[tuple[str, str, list[str]]]:
    """Where each finding is, its code, and the keys that are changed."""
    return [(found.where, found.code, [change.key for change in found.changes]) for found in findings]


def test_right_templates_are_no_finding(tmp_path: Path) -> None:
    assert list(named_templates(case_of(tmp_path, good_pairs()))) == []


def test_the_order_of_the_names_says_nothing(tmp_path: Path) -> None:
    turned = changed(good_pairs(), texts(NAMES, ["rag", "tool_use"]))
    assert list(named_templates(case_of(tmp_path, turned))) == []


def test_a_model_with_one_template_asks_for_no_list(tmp_path: Path) -> None:
    assert list(named_templates(case_of(tmp_path, tiny_pairs(), named={}))) == []


# What is changed, the code, the message, and the keys that mend it.
SINGLE: dict[str, tuple[Pairs, str, str, list[str]]] = {
    "missing": (
        without(good_pairs(), TOOL_USE),
        "missing",
        "the file lacks the chat template tool_use of the model",
        [TOOL_USE],
    ),
    "missing with the list": (
        without(without(good_pairs(), TOOL_USE), NAMES),
        "missing",
        "the file lacks the chat template tool_use of the model",
        [TOOL_USE, NAMES],
    ),
    "empty": (
        changed(good_pairs(), text(TOOL_USE, "")),
        "missing",
        "the file lacks the chat template tool_use of the model",
        [TOOL_USE],
    ),
    "different": (
        changed(good_pairs(), text(TOOL_USE, "{{ mine }}")),
        "different",
        "the chat template tool_use is not the model's",
        [TOOL_USE],
    ),
    "an old default": (
        changed(good_pairs(), text(TOOL_USE, first_release_template())),
        "first-release",
        "the chat template tool_use is not the model's",
        [TOOL_USE],
    ),
    "a number": (
        changed(good_pairs(), u32(TOOL_USE, 1)),
        "no-text",
        "the chat template tool_use is no text",
        [TOOL_USE],
    ),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_wrong_template_is_named_and_mended(tmp_path: Path, name: str) -> None:
    pairs, code, message, keys = SINGLE[name]
    case = case_of(tmp_path, pairs)
    (found,) = named_templates(case)
    assert (found.severity, found.message) == (Severity.WARN, message)
    assert told([found]) == [(TOOL_USE, code, keys)]
    assert dict(diagnose(case).mended.file.metadata) == good_pairs()


@pytest.mark.parametrize(
    ("pair", "code"),
    [
        (None, "names-missing"),
        (texts(NAMES, ["tool_use"]), "names"),
        (texts(NAMES, ["tool_use", "rag", "rag"]), "names"),
        (text(NAMES, "tool_use"), "names"),
    ],
    ids=["missing", "one short", "one twice", "a text"],
)
def test_a_wrong_list_alone_is_a_finding(tmp_path: Path, pair: MetadataPair | None, code: str) -> None:
    pairs = without(good_pairs(), NAMES) if pair is None else changed(good_pairs(), pair)
    case = case_of(tmp_path, pairs)
    (found,) = named_templates(case)
    assert found.severity is Severity.WARN
    assert told([found]) == [(NAMES, code, [NAMES])]
    assert dict(diagnose(case).mended.file.metadata) == good_pairs()


def test_every_template_and_the_list_are_mended_together(tmp_path: Path) -> None:
    case = case_of(tmp_path, tiny_pairs())
    diagnosis = diagnose(case)
    assert told(diagnosis.roots) == [(TOOL_USE, "missing", [TOOL_USE, NAMES]), (RAG, "missing", [RAG])]
    assert dict(diagnosis.mended.file.metadata) == good_pairs()
    assert diagnose(diagnosis.mended).roots == ()


def test_only_a_model_folder_tells_them(tmp_path: Path) -> None:
    case = case_of(tmp_path, tiny_pairs())
    assert list(named_templates(Case(case.file, replace(case.expected, origin=Origin.CARRIED)))) == []
