"""What an examination amounts to: root findings, and under each what follows from it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from phi4conv.check.model import Finding, Severity, listed, worst
from phi4conv.errors import Problem
from phi4conv.reference.logit_figures import Estimate
from phi4conv.reference.parts import Model
from phi4conv.reference.tensor_error import PartError
from phi4conv.verify.blame import METADATA, Blamed
from phi4conv.verify.examination import Outcome
from phi4conv.verify.hyperparameters import AGAIN, IDS, IDS_WITHOUT_EFFECT
from phi4conv.verify.recognize import Recognition, recognize_all
from phi4conv.verify.sides import HEAD_ID, WRONG_SHAPE, Sides
from phi4conv.verify.thresholds import Thresholds, prevailing_type

LAYER, ANSWERS, LLAMA_CPP = "verify/layer", "verify/answers", "verify/llama-cpp"

# A finding names so many tensors in its message; where has all of them.
SHOWN_TENSORS = 3


# The share of codes, among those of a tensor that were looked at, that may be moved: of ggml's own none are.
MOVED = 0.002

# The same for a checkpoint in F32, which llama.cpp's two steps round to BF16 first: 0.021 was measured for Q8_0.
MOVED_FROM_F32 = 0.03


class Roots:
    """Root findings, each with the tensors that it is about, and what is found to follow from them."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._tensors: list[frozenset[str]] = []

    def add(self, finding: Finding, tensors: Collection[str] = ()) -> None:
        """A finding of its own."""
        self._findings.append(finding)
        self._tensors.append(frozenset(tensors))

    def follow(self, finding: Finding, culprits: Collection[str]) -> None:
        """A finding that follows from the first one about a culprit; a root of its own where there is none."""
        for number, (root, tensors) in enumerate(zip(self._findings, self._tensors, strict=True)):
            of_metadata = METADATA in culprits and root.id in IDS - IDS_WITHOUT_EFFECT
            if root.severity >= Severity.FAIL and (of_metadata or tensors.intersection(culprits)):
                self._findings[number] = root.with_consequences([finding])
                return
        self.add(finding, culprits)

    @property
    def tensors(self) -> frozenset[str]:
        """All that they are about."""
        return frozenset[str]().union(*self._tensors)

    @property
    def failed(self) -> bool:
        """Whether one of them is a defect."""
        return worst(self._findings) >= Severity.FAIL

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
    misshapen = {finding.where for finding in sides.findings if finding.code == WRONG_SHAPE}
    recognized = recognitions(sides, outcome.tensors)
    for recognition in recognized:
        # What a tensor of another shape holds explains the shape, and is no other defect.
        place = roots.follow if misshapen.issuperset(recognition.tensors) else roots.add
        place(weight_finding(recognition), recognition.tensors)
    if not recognized:
        for finding in moved_codes(outcome.tensors, MOVED_FROM_F32 if sides.checkpoint.dtype == "F32" else MOVED):
            roots.add(finding)
    # Both sides run the same arithmetic: with the same weights and values only rounding is left to differ.
    certain = roots.failed
    for blamed in outcome.blamed:
        roots.follow(layer_finding(blamed, certain=certain), blamed.culprits)
    # What is missing or cannot be used was run as the source has it, and is no cause.
    causes = {tensor for recognition in recognized for tensor in recognition.tensors}
    causes |= {finding.where for finding in sides.findings if finding.id == HEAD_ID}
    if sides.found.hyperparameters != sides.source.hyperparameters:
        causes.add(METADATA)
    for finding in answer_findings(sides.found, outcome, thresholds, certain=not roots.failed):
        roots.follow(finding, causes)
    if outcome.refusal is not None:
        roots.follow(refusal_finding(outcome.refusal), {METADATA, *roots.tensors})
    return (*roots.all(), *asked)


def recognitions(sides: Sides, errors: Sequence[PartError]) -> Sequence[Recognition]:
    """What happened to the tensors that do not hold the source's weights."""
    suspects = tuple(dict.fromkeys(error.tensor for error in errors if not error.good))
    return recognize_all(suspects, sides.found, sides.source) if suspects else ()


def moved_codes(errors: Sequence[PartError], limit: float) -> Iterator[Finding]:
    """A warning where most matrices have codes that no encoder of ggml's gives for these weights."""
    shares = {error.tensor: error.expectation.moved for error in errors if error.expectation.moved is not None}
    moved = {tensor: share for tensor, share in shares.items() if share > limit}
    if moved and 2 * len(moved) > len(shares):
        most = max(moved.values())
        yield Finding(
            "weights/moved-codes",
            Severity.WARN,
            "moved-codes",
            f"in {len(moved)} of {len(shares)} quantized tensors codes are not the nearest to the source's weights, up "
            f"to {percent(most)} of them, as llama.cpp's are with any importance matrix: the file was made from other "
            "weights (another checkpoint or training step, a quantized file), or by a tool that adjusts codes",
            where=listed(moved, SHOWN_TENSORS),
            expected="the nearest codes",
            actual=f"up to {percent(most)} others",
            advice="see that the folder is the one that the file was made from",
        )


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


def layer_finding(blamed: Blamed, *, certain: bool) -> Finding:
    """A layer whose work is off by more than its types explain, and what mends it; a warning where that is not sure."""
    culprits = blamed.culprits
    left = blamed.trials[culprits]
    names = listed(culprits, SHOWN_TENSORS)
    then = "right" if left <= blamed.explained else f"{percent(left)} off"
    excuse = "" if certain else "; no tensor is wrong: this model bears the rounding of its types worse than most"
    return Finding(
        LAYER,
        Severity.FAIL if certain else Severity.WARN,
        "unexplained",
        f"layer {blamed.index} works differently from the source's; with the source's {names} it is {then}{excuse}",
        where=", ".join(culprits),
        expected=f"what it adds is at most {percent(blamed.explained)} off, by its types",
        actual=f"{percent(blamed.error)} off",
        advice=AGAIN,
    )


def percent(share: float) -> str:
    """A share for people.

    >>> percent(0.0123), percent(12.0), percent(7.9e29), percent(float("inf"))
    ('1.2 %', '1200 %', '7.9e+29 times', 'NaN or infinity')
    """
    if not math.isfinite(share):
        return "NaN or infinity"
    if share < 1:
        return f"{100 * share:.2g} %"
    return f"{100 * share:.0f} %" if share < 100 else f"{share:.2g} times"


def answer_findings(found: Model, outcome: Outcome, thresholds: Thresholds, *, certain: bool) -> Iterator[Finding]:
    """What the logits show: numbers that are none, and answers that differ more than a good file's.

    certain: Nothing else is wrong, every tensor holds the source's weights as well as its type can. Then answers beyond
    a default are no defect: some models bear their types worse than those that the defaults were measured on. Beyond a
    limit of the user's they are one.
    """
    logits = outcome.comparison.logits
    name = prevailing_type(found).name
    because = f"; nothing else is wrong with the file: this model bears {name} worse than most" if certain else ""
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
            Severity.WARN if certain and not thresholds.kl_asked_for else Severity.FAIL,
            "divergence",
            "the file's answers are further from its source's than "
            + ("--max-kl allows" if thresholds.kl_asked_for else f"those of a good {name} file{because}"),
            where="logits",
            expected=f"a mean KL divergence of at most {thresholds.max_kl:g} nats",
            actual="infinite" if math.isinf(logits.kl.mean.value) else f"{logits.kl.mean.value:.4g} nats",
        )
    elif (top := logits.same_top_where_decided) is not None and below(top, thresholds):
        yield Finding(
            ANSWERS,
            Severity.WARN if certain and not thresholds.top1_asked_for else Severity.FAIL,
            "top-1",
            "the file finds other tokens likeliest than its source more often than "
            + ("--min-top1 allows" if thresholds.top1_asked_for else f"a good {name} file does{because}"),
            where="logits",
            expected=f"the same token at {100 * thresholds.min_top1:g} % of the {logits.decided:,} positions where the "
            "source is decided, or more",
            actual=f"{100 * top.value:.1f} %",
        )


def below(share: Estimate, thresholds: Thresholds) -> bool:
    """Whether a share is below the least; by default by more than two standard errors: of ten one may well differ."""
    room = 0.0 if thresholds.top1_asked_for else 2 * share.error
    return share.value + room < thresholds.min_top1


def refusal_finding(problem: Problem) -> Finding:
    """Why real llama.cpp does not load the file."""
    return Finding(
        LLAMA_CPP,
        Severity.FAIL,
        "refused",
        f"{problem.what}: it has no column among the figures",
        where=problem.where,
        expected=problem.expected,
        actual=problem.found,
        advice=problem.next_step,
    )
