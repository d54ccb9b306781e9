"""Repair of a published file: right metadata, the same tensor bytes, and a proof before the result gets its name.

What is wrong is found by the checks of verify-tokenizer, and each finding carries the metadata that mends it. They
come from the model folder if one is given, from the vocabulary of Phi-4 that phi4conv carries where the file is
Phi-4's beyond doubt, and otherwise from what the file itself tells. Weights are never decoded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf import TokenType
from gguf.constants import Keys

from phi4conv.check.case import Case
from phi4conv.check.diagnosis import WORTH_MENDING, Diagnosis, diagnose
from phi4conv.check.expectation import (
    Expectation,
    Origin,
    expected_from_folder,
    expected_of_phi4,
    has_phi4_shape,
)
from phi4conv.check.inferred import contradictions, expected_of_file
from phi4conv.check.model import Finding, Severity
from phi4conv.check.proof import Proof, prove
from phi4conv.check.readable import part_notes, require_first_part
from phi4conv.errors import ConversionError, FormatError, OutputError, Problem, RepairError
from phi4conv.files import DEFAULT_ADVICE, AtomicFile, check_target, replaced_file
from phi4conv.gguf_file.edit import Change, edited, edited_size, write_edited
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.read import read_gguf
from phi4conv.progress import Progress, Silent
from phi4conv.settings import parse_setting
from phi4conv.vocab import Vocabulary


@dataclass(frozen=True)
class Repair:
    """What will be changed in a file, and the proof of the result.

    Attributes:
        file: The file as it is.
        roots: The defects that are mended, in order.
        settings: The changes that the user asked for; they count last.
        changes: All changes, each key once.
        proof: Of the file with the changes.
    """

    file: GGUFFile
    expected: Expectation
    roots: tuple[Finding, ...]
    settings: tuple[Change, ...]
    changes: tuple[Change, ...]
    proof: Proof

    @property
    def size_bytes(self) -> int:
        """Size of the repaired file."""
        return edited_size(self.file, self.changes)


def check_output(path: Path, out: Path, *, force: bool = False, in_place: bool = False) -> None:
    """Refuse, before any work, an output that write_repaired would refuse after it; raises OutputError."""
    if in_place:
        replaced_file(out)
    about = path.stat().st_size if path.is_file() else 0  # new metadata add or take a few megabytes
    check_target(out, about, force=force or in_place, inputs=() if in_place else (path,))
    if not os.access(out.parent, os.W_OK | os.X_OK):
        found = "its folder cannot be written to"
        raise OutputError(Problem("the output cannot be written", str(out), found=found, next_step=DEFAULT_ADVICE))


def plan_repair(
    path: Path, tokenizer: Path | None = None, settings: Sequence[str] = (), progress: Progress | None = None
) -> Repair:
    """Examine a file, decide what to change, and prove the result in memory.

    tokenizer is the model folder; settings are KEY=VALUE, each typed as the key is.

    Raises:
        FormatError: No GGUF, or it cannot be read, or a later part of one.
        CheckpointError: The model folder has no tokenizer that can be used.
        SettingError: A setting that fits no key.
        RepairError: The file stays wrong whatever its metadata say.
    """
    file = read_gguf(path)
    require_whole(file)
    require_first_part(file)
    with beyond_repair():
        edited_size(file, [Change("phi4conv.nothing", None)])  # raises for damage that copying would carry along
        expected = choose_expectation(file, tokenizer)
        expected = replace(expected, notes=(*part_notes(file), *expected.notes))
        (progress or Silent()).note(f"examining the tokenizer of {path.name} ...")
        diagnosis = diagnose(Case(file, expected))
    require_agreement(diagnosis, expected, path)
    chosen = tuple(parse_setting(setting, file, expected.vocabulary) for setting in settings)
    by_key = {change.key: change for change in (*found_changes(diagnosis), *chosen)}
    changes = tuple(change for change in by_key.values() if file.metadata.get(change.key) != change.pair)
    if not changes and diagnosis.mending:
        changes = diagnosis.changes[:1]  # of the container: a new header, whatever it says
    proof = prove(edited(file, changes), expected)
    left = [finding for finding in proof.findings if stands_in_the_way(finding, chosen)]
    if left:
        raise RepairError(*(still_wrong(finding, path, expected.origin) for finding in left))
    return Repair(file, expected, diagnosis.mending, chosen, changes, proof)


def require_agreement(diagnosis: Diagnosis, expected: Expectation, path: Path) -> None:
    """Raise RepairError where two things in a file contradict each other, and only the file itself is known."""
    if expected.origin is Origin.FILE_ITSELF:
        unclear = [still_wrong(finding, path, expected.origin) for finding in contradictions(diagnosis.mending)]
        if unclear:
            raise RepairError(*unclear)


def found_changes(diagnosis: Diagnosis) -> tuple[Change, ...]:
    """What to change in a file with defects; in passing also what is not wrong but better said."""
    if not diagnosis.mending:
        return ()
    passing = (change for finding in diagnosis.roots if finding.severity < WORTH_MENDING for change in finding.changes)
    return (*passing, *diagnosis.changes)


def choose_expectation(file: GGUFFile, tokenizer: Path | None) -> Expectation:
    """What the file's tokenizer should be, from the best source there is.

    Raises:
        FormatError: Nothing tells.
        CheckpointError: The model folder has no tokenizer that can be used.
        ConversionError: Its tokenizer does not go with the weights.
    """
    if tokenizer is not None:
        return expected_from_folder(file, tokenizer)
    if has_phi4_shape(file) and is_surely_phi4(file, expected_of_phi4(file).vocabulary):
        return expected_of_phi4(file)
    return expected_of_file(file)


def is_surely_phi4(file: GGUFFile, vocabulary: Vocabulary) -> bool:
    """Whether a file of Phi-4's shape holds Phi-4's tokens, as far as the kinds of damage that are known leave them.

    Its special tokens outlived even the SentencePiece table; of a fine-tune with a vocabulary of its own nothing
    would be left.
    """
    texts = file.strings(Keys.Tokenizer.LIST)
    if not texts:
        return True
    known = set(vocabulary.texts)
    special = {text for text, kind in zip(vocabulary.texts, vocabulary.types, strict=True) if kind == TokenType.CONTROL}
    return 2 * len(special & set(texts)) > len(special) or 2 * sum(text in known for text in texts) > len(known)


def require_whole(file: GGUFFile) -> None:
    """Raise RepairError for a file of which a part is missing."""
    for flaw in file.defects:
        if flaw.code in {"truncated-header", "truncated-data"}:
            raise RepairError(
                Problem(
                    "cannot be repaired: the file is cut short, and what is missing stands nowhere else",
                    where=f"{file.path}, {flaw.where}",
                    found=flaw.message,
                    next_step="download or copy the file again",
                )
            )


@contextlib.contextmanager
def beyond_repair() -> Iterator[None]:
    """Turn what is wrong with the file itself into a RepairError."""
    try:
        yield
    except (FormatError, ConversionError) as error:
        raise RepairError(*error.problems) from error


def stands_in_the_way(finding: Finding, settings: Sequence[Change]) -> bool:
    """Whether a finding about the repaired file means that it must not be written; the user's own settings do not."""
    return finding.severity >= Severity.FAIL and finding.where not in {change.key for change in settings}


def still_wrong(finding: Finding, path: Path, origin: Origin) -> Problem:
    """A defect that no repair of the metadata takes away."""
    again = "convert the model again"
    if origin is not Origin.MODEL_FOLDER:
        again = f"give the folder with the model's tokenizer.json (--tokenizer MODEL_DIR), or {again}"
    return Problem(
        f"cannot be repaired: {finding.message} ({finding.id})",
        where=", ".join(dict.fromkeys([str(path), *filter(None, [finding.where.removeprefix(f"{path}: ")])])),
        expected=finding.expected,
        found=finding.actual,
        next_step=again,
    )


def write_repaired(
    repair: Repair, out: Path, *, force: bool = False, in_place: bool = False, progress: Progress | None = None
) -> None:
    """Write the repaired file; without changes a copy, byte for byte.

    in_place replaces the file that was read, in one step and after success; out is that file then.

    Raises:
        OutputError: The target cannot be written.
        FormatError: The file that was read has changed meanwhile.
    """
    file = repair.file
    inputs = () if in_place else (file.path,)
    with AtomicFile(out, repair.size_bytes, force=force, inputs=inputs, in_place=in_place) as target:
        write_edited(file, repair.changes, target, progress or Silent())
        target.flush()
        compare_written(read_gguf(target.path), edited(file, repair.changes))
        target.commit()


def compare_written(written: GGUFFile, planned: GGUFFile) -> None:
    """Raise RuntimeError unless a file that was just written is the one that was proved."""
    same_tensors = [(one.name, one.shape, one.qtype) for one in written.tensors] == [
        (one.name, one.shape, one.qtype) for one in planned.tensors
    ]
    if written.metadata != planned.metadata or not same_tensors:
        raise RuntimeError("the written file reads otherwise than it was planned")
