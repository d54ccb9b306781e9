"""Proofs of many files against one source, whose answers are remembered: they are half of a proof's time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest

from phi4conv import fix
from phi4conv.check import conversations
from phi4conv.check.expectation import Expectation, expected_from_folder
from phi4conv.check.model import Finding, Severity
from phi4conv.check.proof import Proof
from phi4conv.gguf_file.layout import GGUFFile, TensorEntry
from phi4conv.hf.source import SourceTokenizer, read_source
from phi4conv.template import Chat, Rendering, render_chats

# The checks that run texts, ids and chats through both tokenizers.
COMPARISONS = frozenset(
    f"tokenizer/{name}" for name in ("ids", "own-texts", "texts", "decoded-texts", "conversations", "loads")
)


class RememberingSource(SourceTokenizer):
    """The tokenizer of a model folder, which answers each question only once."""

    def encode(self, texts: Iterable[str], *, parse_special: bool, add_special: bool = False) -> list[list[int]]:
        key = (tuple(texts), parse_special, add_special)
        if key not in self._answers:
            self._answers[key] = super().encode(key[0], parse_special=parse_special, add_special=add_special)
        return self._answers[key]

    @cached_property
    def _answers(self) -> dict[tuple[tuple[str, ...], bool, bool], list[list[int]]]:
        return {}


class RememberedFolder:
    """A model folder as a source for many proofs; chats, too, are rendered only once by each template."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        vocabulary = read_source(folder).source.vocabulary
        self.source = RememberingSource(vocabulary, (folder / "tokenizer.json").read_bytes(), str(folder))
        self._rendered: dict[str, list[Rendering]] = {}

    def expected(self, file: GGUFFile, folder: Path | None = None) -> Expectation:
        """What the folder says that a file's tokenizer should be."""
        return replace(expected_from_folder(file, folder or self.folder), given_source=self.source)

    def render(self, template: str, chats: Sequence[Chat], *, special_tokens: Mapping[str, str]) -> list[Rendering]:
        """The prompts of all chats."""
        if template not in self._rendered:
            self._rendered[template] = render_chats(template, chats, special_tokens=special_tokens)
        return self._rendered[template]

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Let proofs and repairs ask here."""
        patch.setattr(conversations, "render_chats", self.render)
        patch.setattr(fix, "expected_from_folder", self.expected)


def defects(findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """Severity, id and code of all roots that are more than information."""
    return [
        (finding.severity.name, finding.id, finding.code) for finding in findings if finding.severity > Severity.INFO
    ]


def is_good(proof: Proof) -> bool:
    """Whether a proof found nothing above INFO and no wrong text, and did compare."""
    compared = sum(comparison.texts for comparison in proof.comparisons)
    return (
        proof.is_right
        and not defects(proof.findings)
        and compared > 0
        and not any(comparison.wrong for comparison in proof.comparisons)
    )


def tensor_bytes(file: GGUFFile) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every tensor of a file on the disk."""
    content = file.path.read_bytes()
    for entry in file.tensors:
        yield entry.name, content[start_of(file, entry) :][: entry.size_bytes]


def start_of(file: GGUFFile, entry: TensorEntry) -> int:
    """Where the bytes of a tensor begin."""
    return file.data_offset + entry.offset
