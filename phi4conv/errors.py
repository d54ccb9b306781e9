"""The errors that a user can act on: each says what is wrong, where, and what to do next.

Anything else that escapes the library is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in the words of the person who has to mend it."""

    what: str
    where: str = ""
    expected: str = ""
    found: str = ""
    next_step: str = ""

    def lines(self) -> Iterator[str]:
        """The problem as a headline and one indented line for each known detail."""
        yield self.what
        details = {"where": self.where, "expected": self.expected, "found": self.found, "next": self.next_step}
        for label, text in details.items():
            if text:
                yield f"  {label + ':':<10}{text}"


class Phi4ConvError(Exception):
    """A problem, or several of one kind, that stops a command.

    >>> print(FormatError(Problem("no GGUF magic", where="a.gguf", found="b'PK'")))
    no GGUF magic
      where:    a.gguf
      found:    b'PK'
    """

    exit_code = 2

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(line for problem in problems for line in problem.lines()))


class CheckpointError(Phi4ConvError):
    """A model folder that cannot be read as a Hugging Face Phi-4 checkpoint."""


class FormatError(Phi4ConvError):
    """A file that breaks the rules of its own format."""


class ConversionError(Phi4ConvError):
    """Weights or options from which no correct file can be made."""


class RepairError(Phi4ConvError):
    """A file that was examined and found wrong, in a way that new metadata cannot mend."""

    exit_code = 1


class OutputError(Phi4ConvError):
    """A target that cannot be written."""


class EngineError(Phi4ConvError):
    """An optional engine that is not installed, or that died while it worked."""
