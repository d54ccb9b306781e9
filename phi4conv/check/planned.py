"""The vocabulary of a file to be, proved before any weight is read."""

from __future__ import annotations

from pathlib import Path

from phi4conv.check.attribution import Attribution, note_refusal
from phi4conv.check.case import Case
from phi4conv.check.diagnosis import diagnose
from phi4conv.check.expectation import expected_from_folder
from phi4conv.check.groups import compare_group
from phi4conv.check.model import Finding, Severity
from phi4conv.check.samples import probe_group
from phi4conv.errors import ConversionError, Problem
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.write import WRITTEN_VERSION
from phi4conv.plan import ConversionPlan


def prove_plan(plan: ConversionPlan, folder: Path) -> None:
    """Hold a plan's vocabulary against the tokenizer of the model folder that it was made from.

    Raises:
        ConversionError: The file would tokenize otherwise than the model's own tokenizer.
        CheckpointError: The folder's tokenizer cannot be read.
    """
    file = planned_file(plan, folder)
    expected = expected_from_folder(file, folder)
    attribution = Attribution(diagnose(Case(file, expected)), expected.source)
    first = attribution.first_loadable()
    note_refusal(attribution, first)
    if first is not None:
        compare_group(probe_group(expected.source), attribution, first)
    wrong = [finding for finding in attribution.findings() if finding.severity >= Severity.FAIL]
    if wrong:
        raise ConversionError(*(unfaithful(finding, folder) for finding in wrong))


def planned_file(plan: ConversionPlan, folder: Path) -> GGUFFile:
    """The file as the reader would see it. Its path is the folder's, for messages: there is no file yet."""
    return GGUFFile(
        path=folder,
        version=WRITTEN_VERSION,
        byte_order="little",
        alignment=plan.alignment,
        metadata={pair.key: pair for pair in plan.metadata},
        tensors=plan.header.tensors,
        data_offset=plan.header.data_offset,
        file_size=plan.size_bytes,
        defects=(),
        header_complete=True,
    )


def unfaithful(finding: Finding, folder: Path) -> Problem:
    """A text or a value on which the file would part from the model."""
    return Problem(
        f"no GGUF can do what this tokenizer does: {finding.message}",
        where=f"{folder}, {finding.where}",
        expected=finding.expected,
        found=finding.actual,
        next_step="take tokenizer.json from the original model; if it is right, please report it",
    )
