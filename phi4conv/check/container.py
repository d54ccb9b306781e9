"""The check of the container: what llama.cpp refuses a file for before it looks at the vocabulary.

Only those defects are findings here that a new header does away with; what is missing or unreadable is another matter
(check/readable.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from phi4conv.check.case import Case
from phi4conv.check.model import Finding, Severity
from phi4conv.gguf_file.edit import Change

# gguf_init_from_file in ggml's gguf.cpp: keys stand once, the alignment is a power of two, and each tensor begins where
# the one before it, padded, ends. Codes are those of gguf_file/read.py.
REFUSED = frozenset({"duplicate-key", "bad-alignment", "misaligned-tensor", "tensor-order", "gap"})


def container(case: Case) -> Iterator[Finding]:
    """One finding for each kind of defect. Any change of the metadata writes a new header, which has none of them."""
    flaws = [flaw for flaw in case.file.defects if flaw.code in REFUSED]
    pair = next(iter(case.file.metadata.values()), None)
    for code in dict.fromkeys(flaw.code for flaw in flaws):
        first, *more = [flaw for flaw in flaws if flaw.code == code]
        others = f", and {len(more):,} more" if more else ""
        message = f"llama.cpp refuses to load the file: {first.message}{others}"
        changes = () if pair is None else (Change(pair.key, pair),)
        yield Finding(f"container/{code}", Severity.FAIL, code, message, first.where, changes=changes)


CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (container,)
