"""Which defect a difference is due to: the file is mended defect by defect, and what comes right is looked at again."""

from __future__ import annotations

from phi4conv.check.comparison import FileSide
from phi4conv.check.diagnosis import Diagnosis
from phi4conv.check.model import Finding, Severity
from phi4conv.errors import FormatError
from phi4conv.hf.source import SourceTokenizer
from phi4conv.reference.llama_vocab import RefusedByLlamaCpp
from phi4conv.reference.tokenizer import FileTokenizer, file_tokenizer


class Attribution:
    """Puts each difference under the defect that causes it: one list of consequences for each mended root."""

    def __init__(self, diagnosis: Diagnosis, source: SourceTokenizer) -> None:
        self.diagnosis = diagnosis
        self.source = source
        self.consequences: list[list[Finding]] = [[] for _ in diagnosis.mending]
        self.roots: list[Finding] = []
        self._tokenizers: dict[int, FileTokenizer | FormatError] = {}

    @property
    def last(self) -> int:
        """The number of the case with everything mended."""
        return len(self.diagnosis.cases) - 1

    def tokenizer(self, number: int) -> FileTokenizer | FormatError:
        """The tokenizer of the file after so many defects are mended, or why llama.cpp would not load it."""
        if number not in self._tokenizers:
            try:
                self._tokenizers[number] = file_tokenizer(self.diagnosis.cases[number].file)
            except FormatError as error:
                self._tokenizers[number] = error
        return self._tokenizers[number]

    def first_loadable(self) -> int | None:
        """The first case that llama.cpp would load."""
        every = range(len(self.diagnosis.cases))
        return next((number for number in every if not isinstance(self.tokenizer(number), FormatError)), None)

    def loadable(self, first: int) -> list[int]:
        """The cases from the first on that llama.cpp would load."""
        return [number for number in range(first, self.last + 1) if not isinstance(self.tokenizer(number), FormatError)]

    def side(self, number: int) -> FileSide:
        """One case's tokenizer, ready for comparing."""
        tokenizer = self.tokenizer(number)
        if isinstance(tokenizer, FormatError):
            raise tokenizer
        return FileSide(tokenizer, self.source)

    def blame(self, number: int, finding: Finding) -> None:
        """Hang a finding under the root whose mending made case `number`, or let it stand for itself."""
        if number:
            self.consequences[number - 1].append(finding)
        else:
            self.roots.append(finding)

    def findings(self) -> tuple[Finding, ...]:
        """Every root with all its consequences."""
        mending = self.diagnosis.mending
        told = {id(root): root.with_consequences(more) for root, more in zip(mending, self.consequences, strict=True)}
        return (*(told.get(id(root), root) for root in self.diagnosis.roots), *self.roots)


def note_refusal(attribution: Attribution, first: int | None) -> None:
    """Tell that llama.cpp does not load the file as it is."""
    tokenizer = attribution.tokenizer(0)
    if not isinstance(tokenizer, FormatError):
        return
    (problem, *_) = tokenizer.problems
    reason = tokenizer.reason if isinstance(tokenizer, RefusedByLlamaCpp) else "not-known-here"
    finding = Finding(
        "tokenizer/loads", Severity.FAIL, reason, problem.what, problem.where, problem.expected, problem.found
    )
    attribution.blame(first or 0, finding)
