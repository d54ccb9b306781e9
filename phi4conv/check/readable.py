"""Whether a file's header can be read as far as the tokenizer needs it, and what else is wrong with its format."""

from __future__ import annotations

from gguf.constants import Keys

from phi4conv.check.container import REFUSED
from phi4conv.errors import FormatError, Problem
from phi4conv.gguf_file.layout import GGUFFile

# Defects (gguf_file/read.py lists them all) after which what was read of the metadata is not to be relied on.
MADE_WRONGLY = "download the file again; if that does not help, it was made wrongly"
UNREADABLE = {
    "unsupported-version": "make the file again from its checkpoint, with `phi4conv convert`",
    "big-endian": "make the file again from its checkpoint, with `phi4conv convert`",
    "truncated-header": "download or copy the file again",
    "absurd-count": MADE_WRONGLY,
    "absurd-length": MADE_WRONGLY,
    "unknown-value-type": MADE_WRONGLY,
}

# More notes say no more than the first ones.
SHOWN_NOTES = 3


def require_readable(file: GGUFFile) -> None:
    """Raise FormatError, with the first reason, for a file whose metadata cannot be examined."""
    reasons = [flaw for flaw in file.defects if flaw.code in UNREADABLE]
    if not file.header_complete:
        reasons += file.defects[-1:]  # the one at which reading stopped
    for flaw in reasons[:1]:
        raise FormatError(
            Problem(
                f"the file's header cannot be read, so that its tokenizer cannot be examined ({flaw.code})",
                where=f"{file.path}, {flaw.where}",
                found=flaw.message,
                next_step=UNREADABLE.get(flaw.code, MADE_WRONGLY),
            )
        )


def require_first_part(file: GGUFFile) -> None:
    """Raise FormatError for a later part of a file that was split: it has tensors, and nothing of the vocabulary."""
    number, count = file.number(Keys.Split.LLM_KV_SPLIT_NO), file.number(Keys.Split.LLM_KV_SPLIT_COUNT)
    if number:
        raise FormatError(
            Problem(
                "a later part of a file that was split, which has no vocabulary",
                where=str(file.path),
                expected="the first part, or a whole file",
                found=f"part {int(number) + 1} of {count or 'several'}",
                next_step="give the first part, whose name ends with -00001-of- and the number of parts",
            )
        )


def part_notes(file: GGUFFile) -> tuple[str, ...]:
    """What to mind when the first part of a file that was split is written anew."""
    count = file.number(Keys.Split.LLM_KV_SPLIT_COUNT)
    if not count or count < 2:
        return ()
    ending = f"-00001-of-{int(count):05}.gguf"
    return (
        f"this is the first of {int(count)} parts: llama.cpp finds the others by its name, which ends with {ending}",
    )


def format_notes(file: GGUFFile) -> tuple[str, ...]:
    """A sentence for each defect of the format that leaves the tokenizer alone, such as cut data; the first ones."""
    flaws = [flaw for flaw in file.defects if flaw.code not in REFUSED]
    notes = [
        f"{flaw.where}: {flaw.message} ({flaw.code}); only the tokenizer was examined" for flaw in flaws[:SHOWN_NOTES]
    ]
    if len(flaws) > SHOWN_NOTES:
        notes.append(f"and {len(flaws) - SHOWN_NOTES:,} more defects of the format: see `phi4conv inspect`")
    return tuple(notes)
