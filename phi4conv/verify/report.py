"""A verification as a document of JSON's types, its verdict in a sentence, and its tensors summed up by type."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phi4conv.check.model import Severity
from phi4conv.check.report import counted, finding_document
from phi4conv.reference.compare import HiddenError, LogitFigures
from phi4conv.reference.logit_figures import json_number
from phi4conv.reference.side_by_side import LayerErrors
from phi4conv.reference.tensor_error import PartError, ratio
from phi4conv.verify import Verification
from phi4conv.verify.blame import Blamed
from phi4conv.verify.examination import Outcome


def verdict(outcome: Verification) -> str:
    """Whether the file is what its source is, and what else there is to look at."""
    failed = sum(finding.severity >= Severity.FAIL for finding in outcome.findings)
    warned = sum(finding.severity == Severity.WARN for finding in outcome.findings)
    if failed:
        at_least = "; its weights are right" if weights_are_right(outcome) else ""
        return f"the file is wrong, {counted(failed, 'defect')}{at_least}"
    return "the file does what its source does" + (f", {counted(warned, 'warning')}" if warned else "")


def weights_are_right(outcome: Verification) -> bool:
    """Whether every tensor is there and holds the source's weights as well as its type can."""
    about_weights = any(finding.where.endswith(".weight") for finding in outcome.findings)
    return not about_weights and all(error.good for error in outcome.outcome.tensors)


@dataclass(frozen=True)
class TypeSummary:
    """The parts of one type together.

    Attributes:
        name: The type.
        parts: How many parts of tensors have it.
        weights: How many weights.
        relative: Error over signal, both root mean square.
        expected_relative: What the type should give on these weights.
        worst: The part whose error is largest beside what it should be.
    """

    name: str
    parts: int
    weights: int
    relative: float
    expected_relative: float
    worst: PartError


def by_type(errors: Sequence[PartError]) -> list[TypeSummary]:
    """A summary for each type, most weights first."""
    groups: dict[str, list[PartError]] = defaultdict(list)
    for error in errors:
        groups[error.qtype.name].append(error)
    return sorted((summary(name, group) for name, group in groups.items()), key=lambda each: -each.weights)


def summary(name: str, group: Sequence[PartError]) -> TypeSummary:
    """The parts of one type together: energies are added."""
    signal = sum(error.weights * error.signal**2 for error in group)
    noise = sum(error.weights * error.rmse**2 for error in group)
    expected = sum(error.weights * (error.expected_relative * error.signal) ** 2 for error in group)
    return TypeSummary(
        name,
        len(group),
        sum(error.weights for error in group),
        math.sqrt(ratio(noise, signal)),
        math.sqrt(ratio(expected, signal)),
        max(group, key=lambda error: (not error.good, ratio(error.relative, error.expected_relative))),
    )


def decibels(relative: float) -> float:
    """Signal over noise in dB, of a relative error.

    >>> round(decibels(0.1)), decibels(0.0), decibels(math.inf)
    (20, inf, -inf)
    """
    if math.isinf(relative):
        return -math.inf
    return -20 * math.log10(relative) if relative else math.inf


def verification_document(outcome: Verification) -> dict[str, Any]:
    """The content of the phi4conv.verify/1 document."""
    sides, reading, thresholds = outcome.sides, outcome.reading, outcome.thresholds
    figures = outcome.outcome
    return {
        "file": str(sides.file.path),
        "source": str(sides.folder),
        "verdict": {"right": outcome.is_right, "text": verdict(outcome)},
        "notes": list(outcome.notes),
        "findings": [finding_document(finding) for finding in outcome.findings],
        "thresholds": {
            "type": sides.type_name,
            "max_kl": json_number(thresholds.max_kl),
            "min_top1": thresholds.min_top1,
        },
        "asked": [
            {"name": window.name, "tokens": len(window.ids), "scored": len(window.scored)} for window in reading.windows
        ],
        "logits": figures.comparison.logits.document(),
        "llama_cpp": third_column(figures.llama_cpp),
        "layers": [layer_document(errors, figures) for errors in figures.comparison.layers],
        "blame": [blame_document(blamed) for blamed in figures.blamed],
        "tensors": [part_document(error) for error in figures.tensors],
        "seconds": round(outcome.seconds, 3),
        "peak_memory": outcome.peak_memory,
        "bytes_read": figures.bytes_read,
    }


def third_column(figures: tuple[LogitFigures, LogitFigures] | None) -> dict[str, Any] | None:
    """Real llama.cpp's logits against the source's, and against the file's on the reference path."""
    return figures and {"against_source": figures[0].document(), "against_reference": figures[1].document()}


def layer_document(errors: LayerErrors, figures: Outcome) -> dict[str, Any]:
    """The hidden state after one layer; the embedding's index is -1, and nothing explains its error but its tensor."""
    return {
        "layer": errors.index,
        "wrong": errors.index in figures.wrong_layers,
        "explained": figures.explained.get(errors.index),
        "hidden_state": hidden_document(errors.grown),
        "own": hidden_document(errors.own),
    }


def hidden_document(error: HiddenError) -> dict[str, Any]:
    """The figures of one comparison of states."""
    return {
        "relative": json_number(error.relative),
        "cosine": json_number(error.cosine),
        "median_relative": json_number(error.median_relative),
        "mean_cosine": json_number(error.mean_cosine),
        "not_finite": error.not_finite,
    }


def blame_document(blamed: Blamed) -> dict[str, Any]:
    """A wrong layer, and its error with the source's tensor in the place of each of the file's."""
    return {
        "layer": blamed.index,
        "error": json_number(blamed.error),
        "explained": json_number(blamed.explained),
        "culprits": list(blamed.culprits),
        "trials": [
            {"from_the_source": list(names), "error": json_number(error)} for names, error in blamed.trials.items()
        ],
    }


def part_document(error: PartError) -> dict[str, Any]:
    """How far one part is from the source's weights."""
    return {
        "part": error.part,
        "tensor": error.tensor,
        "type": error.qtype.name,
        "shape": list(error.shape),
        "verdict": error.verdict,
        "rmse": json_number(error.rmse),
        "largest": json_number(error.largest),
        "signal": json_number(error.signal),
        "relative": json_number(error.relative),
        "expected_relative": json_number(error.expected_relative),
        "snr_db": json_number(decibels(error.relative)),
        "expected_snr_db": json_number(decibels(error.expected_relative)),
        "same_bytes": error.expectation.identical,
        "non_finite": error.non_finite,
    }
