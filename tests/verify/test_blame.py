"""Every fault of weights and of architecture metadata is found, and blamed on what is wrong and on nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from good_files import KINDS, good_file
from weight_fault import Effect, Fault
from weight_faults import FAULTS

from phi4conv.check.model import Finding, Severity
from phi4conv.verify import Verification, VerifyOptions, verify
from phi4conv.verify.prompts import PromptOptions

torch = pytest.importorskip("torch", reason="verify runs models with torch")

ASKED = VerifyOptions(asked=PromptOptions(prompts=("Tell me a joke.",)))


def failures(outcome: Verification) -> list[Finding]:
    return [finding for finding in outcome.findings if finding.severity >= Severity.FAIL]


def blamed(outcome: Verification) -> set[str]:
    return {name for finding in outcome.findings for name in finding.where.split(", ")}


def check(fault: Fault, kind: str, target: Path) -> None:
    good = good_file(kind)
    outcome = verify(good.folder, fault.apply(good, target), ASKED)
    found = [(finding.severity.name, finding.code, finding.where, finding.message) for finding in outcome.findings]
    assert set(fault.where) <= blamed(outcome), found
    assert blamed(outcome) <= {*fault.where, *fault.also}, found
    assert outcome.is_right == (fault.effect is Effect.SAME_LOGITS and not failures(outcome)), found
    if fault.codes:
        assert {finding.code for finding in outcome.findings} <= set(fault.codes), found


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[fault.name for fault in FAULTS])
def test_a_fault_is_blamed_on_what_is_wrong(number: int, tmp_path: Path) -> None:
    fault = FAULTS[number]
    check(fault, fault.kinds[number % len(fault.kinds)], tmp_path / "wrong.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_blamed_in_every_type(fault: Fault, tmp_path: Path) -> None:
    for kind in fault.kinds:
        check(fault, kind, tmp_path / f"{kind}.gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_file_raises_no_alarm(kind: str) -> None:
    good = good_file(kind)
    outcome = verify(good.folder, good.path)
    assert outcome.findings == ()
    assert not outcome.outcome.wrong_layers
