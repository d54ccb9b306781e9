"""What an examination amounts to: root findings, and under each what follows from it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from phi4conv.check.model import Finding, Severity
from phi4conv.reference.logit_figures import Estimate
from phi4conv.reference.parts import Model
from phi4conv.reference.tensor_error import PartError
from phi4conv.verify.blame import METADATA, Blamed
from phi4conv.verify.examination import Outcome
from phi4conv.verify.hyperparameters import AGAIN, IDS
from phi4conv.verify.recognize import Recognition, recognize_all
from phi4conv.verify.sides import Sides
from phi4conv.verify.thresholds import Thresholds, prevailing_type

LAYER, ANSWERS = "verify/layer", "verify/answers"


class Roots:
    """Root findings, each with the tensors that it is about, and what is found to follow from them."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._tensors: list[frozenset[str]] = []

    def add(self, finding: Finding, tensors: Collection[str] = ()) -> None:
        """A finding of its own."""
        self._findings.append(finding)
        self._tensors.append(frozenset(tensors))

    def follow(self, finding: Finding, culprits: Collection[str] = ()) -> None:
        """A finding that follows from one about a culprit, or without any from the first; else a root of its own."""
        for number, (root, tensors) in enumerate(zip(self._findings, self._tensors, strict=True)):
            about = not culprits or tensors.intersection(culprits) or (METADATA in culprits and root.id in IDS)
            if about and root.severity >= Severity.FAIL:
                self._findings[number] = root.with_consequences([finding])
                return
        self.add(finding, culprits)

    def all(self) -> tuple[Finding, ...]:
        """The root findings."""
        return tuple(self._findings)


def conclude(sides: Sides, asked: Sequence[Finding], outcome: Outcome, thresholds: Thresholds) -> tuple[Finding, ...]:
    """Every root finding: of metadata and shapes, of weights, of what the run showed beyond them, of prompts.

    asked are the findings about the prompts' tokens, which do not touch the run: both sides ran on the source's.
    """
    roots = Roots()
    for finding in sides.findings:
        roots.add(finding, (finding.where,))
    for recognition in recognitions(sides, outcome.tensors):
        roots.add(weight_finding(recognition), recognition.tensors)
    for blamed in outcome.blamed:
        roots.follow(layer_finding(blamed), blamed.culprits)
    for finding in answer_findings(sides.found, outcome, thresholds):
        roots.follow(finding)
    return (*roots.all(), *asked)


def recognitions(sides: Sides, errors: Sequence[PartError]) -> Sequence[Recognition]:
    """What happened to the tensors that do not hold the source's weights."""
    suspects = tuple(dict.fromkeys(error.tensor for error in errors if not error.good))
    return recognize_all(suspects, sides.found, sides.source) if suspects else ()


def weight_finding(recognition: Recognition) -> Finding:
    """A fault among the weights."""
    return Finding(
        f"weights/{recognition.code}",
        Severity.FAIL,
        recognition.code,
        f"{recognition.subject}: {recognition.sentence}",
        where=", ".join(recognition.tensors),
        expected=recognition.expected,
        actual=recognition.actual,
        advice=AGAIN,
    )


def layer_finding(blamed: Blamed) -> Finding:
    """A layer whose work is off by more than its types explain, and what mends it."""
    culprits = blamed.culprits
    return Finding(
        LAYER,
        Severity.FAIL,
        "unexplained",
        f"layer {blamed.index} is off by {percent(blamed.error)} of what it adds, where its types explain "
        f"{percent(blamed.explained)}; with the source's {' and '.join(culprits)} {percent(blamed.trials[culprits])} "
        "are left",
        where=", ".join(culprits),
        expected=f"at most {percent(blamed.explained)}",
        actual=percent(blamed.error),
        advice=AGAIN,
    )


def percent(share: float) -> str:
    """A share for people.

    >>> percent(0.0123), percent(12.0), percent(float("inf"))
    ('1.2 %', '1200 %', 'NaN or infinity')
    """
    if not math.isfinite(share):
        return "NaN or infinity"
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"


def answer_findings(found: Model, outcome: Outcome, thresholds: Thresholds) -> Iterator[Finding]:
    """What the logits show: numbers that are none, and answers that differ more than a good file's."""
    logits = outcome.comparison.logits
    name = prevailing_type(found).name
    if logits.other_not_finite:
        yield Finding(
            ANSWERS,
            Severity.FAIL,
            "not-finite",
            f"the file's logits are NaN or infinite at {logits.other_not_finite} of {logits.positions} positions",
            where="logits",
        )
    elif logits.kl.mean.value > thresholds.max_kl:
        yield Finding(
            ANSWERS,
            Severity.FAIL,
            "divergence",
            f"the file's answers are further from its source's than those of a good {name} file",
            where="logits",
            expected=f"a mean KL divergence of at most {thresholds.max_kl:g}",
            actual=f"{logits.kl.mean.value:.4g}",
        )
    elif (top := logits.same_top_where_decided) is not None and beyond_chance(top, thresholds.min_top1):
        yield Finding(
            ANSWERS,
            Severity.FAIL,
            "top-1",
            f"the file finds other tokens likeliest than its source more often than a good {name} file does",
            where="logits",
            expected=f"the same token at {percent(thresholds.min_top1)} of the {logits.decided} positions where the "
            "source is decided, or more",
            actual=percent(top.value),
        )


def beyond_chance(share: Estimate, least: float) -> bool:
    """Whether a share is below the least by more than two standard errors: of ten positions one may well differ."""
    return share.value + 2 * share.error < least
