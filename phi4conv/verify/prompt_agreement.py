"""Whether a file's chat template and tokenizer make the same prompts, and the same tokens, as its source's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from phi4conv.check.comparison import FileSide, Mismatch, Sample
from phi4conv.check.conversations import known_difference, other_prompt
from phi4conv.check.mismatch import mismatch_finding
from phi4conv.check.model import Finding, Severity
from phi4conv.errors import FormatError
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.hf.source import SourceTokenizer
from phi4conv.reference.file_prompt import render_by_file
from phi4conv.reference.tokenizer import file_tokenizer
from phi4conv.template import Chat, Rendering

CHECK_ID = "verify/prompt-tokens"
ADVICE = "run `phi4conv verify-tokenizer` with this folder and file: it tells what is wrong"
INSTEAD = "the weights are compared on the source's tokens"


class Agreement:
    """The file's side of prompts, each held against the source's.

    Attributes:
        findings: One of a kind: a tokenizer that cannot be used, other prompts, other tokens.
        known: The known differences between Hugging Face and llama.cpp that were met, which are no fault of the file.
    """

    def __init__(self, file: GGUFFile, source: SourceTokenizer) -> None:
        """Load the file's tokenizer; one that llama.cpp would refuse becomes a finding, and nothing is compared."""
        self.findings: list[Finding] = []
        self.known: Counter[str] = Counter()
        self._file = file
        self._side: FileSide | None = None
        try:
            self._side = FileSide(file_tokenizer(file), source)
        except FormatError as error:
            self.findings.append(unusable(error, file))

    def compare_prompts(self, chats: Sequence[Chat], expected: Sequence[Rendering]) -> None:
        """Render chats by the file's template. Where the source has no prompt there is nothing to compare.

        Raises:
            EngineError: The process that renders templates does not start.
        """
        if self._side is None or all(right.text is None for right in expected):
            return
        rendered = render_by_file(self._file, self._side.tokenizer, chats)
        wrong = [
            other_prompt(chat.name, right, own)
            for chat, right, own in zip(chats, expected, rendered, strict=True)
            if right.text is not None and own.text != right.text
        ]
        if wrong:
            message = f"the file's chat template makes other prompts of {len(wrong):,} of {len(chats):,} conversations"
            self.findings.append(replace(wrong[0], id=CHECK_ID, message=f"{message}; {INSTEAD}", advice=ADVICE))

    def compare_tokens(self, samples: Sequence[Sample], expected: Sequence[Sequence[int]]) -> None:
        """Tokenize the source's prompts by the file."""
        if self._side is None:
            return
        wrong = [
            mismatch
            for sample, right in zip(samples, expected, strict=True)
            if (mismatch := self._mismatch(self._side, sample, right, len(right))) is not None
        ]
        if wrong:
            message = f"{len(wrong):,} of {len(samples):,} prompts become other tokens by the file's tokenizer"
            self.findings.append(other_tokens(message, wrong[0], self._side))

    def compare_text(self, sample: Sample, expected: Sequence[int], used: int) -> None:
        """Tokenize a long text by the file; only the first used tokens of it matter."""
        if self._side is None:
            return
        mismatch = self._mismatch(self._side, sample, expected, used)
        if mismatch is not None:
            message = "the text becomes other tokens by the file's tokenizer"
            self.findings.append(other_tokens(message, mismatch, self._side))

    def _mismatch(self, side: FileSide, sample: Sample, expected: Sequence[int], used: int) -> Mismatch | None:
        """A text of whose first tokens the file makes others; a known difference is counted and counts as none."""
        found = mismatched(side, sample, expected)
        if found is None or (not found.reason and found.actual[:used] == found.expected[:used]):
            return None
        known = known_difference(side, found)
        if known is None:
            return found
        self.known[known] += 1
        return None


def mismatched(side: FileSide, sample: Sample, expected: Sequence[int]) -> Mismatch | None:
    """A text that the file reads otherwise."""
    actual, reason = side.encode(sample)
    return Mismatch(sample, tuple(expected), actual, reason) if actual != tuple(expected) or reason else None


def other_tokens(message: str, shown: Mismatch, side: FileSide) -> Finding:
    """The finding for texts that become other tokens, shown by one of them."""
    finding = mismatch_finding(CHECK_ID, f"{message}; {INSTEAD}", shown, side)
    return replace(finding, code="other-tokens", where=shown.item.name, advice=ADVICE)


def unusable(error: FormatError, file: GGUFFile) -> Finding:
    """A file whose tokenizer llama.cpp refuses, or that is not known here."""
    problem = error.problems[0]
    where = problem.where.removeprefix(f"{file.path}: ")
    message = f"the file's tokenizer cannot be used ({problem.what}); {INSTEAD}"
    shown = problem.expected, problem.found
    return Finding(CHECK_ID, Severity.FAIL, "unusable-tokenizer", message, where, *shown, advice=ADVICE)
