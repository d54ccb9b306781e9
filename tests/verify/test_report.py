"""A verification in sentences and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY
from good_files import good_file, good_weights
from weight_files import write_weight_file

from phi4conv.check.model import Finding, Severity
from phi4conv.verify import Verification, VerifyOptions, verify
from phi4conv.verify.prompts import PromptOptions

pytest.importorskip("torch", reason="verify runs models with torch")

import torch

from phi4conv.verify.report import by_type, decibels, verdict, verification_document, weights_are_right

QUICK = VerifyOptions(asked=PromptOptions(prompts=("Tell me a joke.", "Say it again.")))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def good() -> Verification:
    return verify(TINY, good_file("Q4_K_M").path, QUICK)


@pytest.fixture
def spoilt(tmp_path: Path) -> Verification:
    """With NaN in one layer, and infinity in the next."""
    file = good_weights("Q8_0")
    for name, value in (("blk.1.ffn_norm.weight", np.nan), ("blk.2.attn_norm.weight", np.inf)):
        file = file.with_values(name, np.full_like(file.exact[name], value))
    return verify(TINY, write_weight_file(tmp_path / "spoilt.gguf", file.pairs.values(), file.tensors), QUICK)


def of_severity(*severities: Severity, where: str = "general.name") -> Verification:
    findings = tuple(Finding("a/b", severity, "c", "message", where) for severity in severities)
    return replace(good(), findings=findings)


def test_the_verdict_counts_what_there_is() -> None:
    assert verdict(good()) == "the file does what its source does"
    assert verdict(of_severity(Severity.INFO)) == "the file does what its source does"
    assert verdict(of_severity(Severity.WARN)) == "the file does what its source does, 1 warning"
    assert verdict(of_severity(Severity.FAIL)) == "the file is wrong, 1 defect; its weights are right"
    both = of_severity(Severity.WARN, Severity.FAIL, Severity.ERROR, where="blk.0.ffn_up.weight")
    assert verdict(both) == "the file is wrong, 2 defects"


def test_weights_are_right_when_nothing_about_them_is_wrong(spoilt: Verification) -> None:
    assert weights_are_right(good())
    assert not weights_are_right(of_severity(Severity.FAIL, where="output.weight"))
    assert not weights_are_right(replace(spoilt, findings=()))


def test_types_are_summed_up_most_weights_first() -> None:
    errors = good().outcome.tensors
    summaries = by_type(errors)
    assert [each.name for each in summaries] == ["Q4_K", "Q6_K", "F32"]
    assert [each.parts for each in summaries] == [21, 9, 9]
    assert sum(each.weights for each in summaries) == sum(math.prod(error.shape) for error in errors)
    four_bits, six_bits, exact = summaries
    assert 0.06 < four_bits.relative < 0.08
    assert four_bits.relative == pytest.approx(four_bits.expected_relative, rel=0.05)
    assert 0.01 < six_bits.relative < 0.02
    assert (exact.relative, exact.expected_relative) == (0, 0)
    of_type = [error for error in errors if error.qtype.name == "Q4_K"]
    assert four_bits.relative**2 * sum(error.weights * error.signal**2 for error in of_type) == pytest.approx(
        sum(error.weights * error.rmse**2 for error in of_type)
    )


def test_decibels() -> None:
    assert decibels(1.0) == 0
    assert decibels(0.001) == pytest.approx(60)


def strict(document: dict[str, Any]) -> dict[str, Any]:
    """The document as it comes out of JSON, which knows neither NaN nor infinity."""
    read: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return read


def test_the_document_of_a_good_file() -> None:
    document = strict(verification_document(good()))
    assert document["verdict"] == {"right": True, "text": "the file does what its source does"}
    assert (document["findings"], document["notes"], document["blame"], document["llama_cpp"]) == ([], [], [], None)
    assert document["source"] == str(TINY)
    assert document["thresholds"]["type"] == "Q4_K"
    assert [each["scored"] for each in document["asked"]] == [len(window.scored) for window in good().reading.windows]
    assert [each["layer"] for each in document["layers"]] == [-1, 0, 1, 2, 3]
    assert [each["wrong"] for each in document["layers"]] == [False] * 5
    assert document["layers"][0]["explained"] is None
    assert all(each["own"]["relative"] < each["explained"] for each in document["layers"][1:])
    assert len(document["tensors"]) == 39
    for tensor in document["tensors"]:
        assert tensor["verdict"] == "good"
        assert tensor["tensor"].endswith(".weight")
        if tensor["type"] != "F32":
            assert abs(tensor["snr_db"] - tensor["expected_snr_db"]) < 1
    assert document["logits"]["kl_divergence"]["mean"]["value"] < 0.05
    assert document["bytes_read"] > 10_000_000
    assert document["seconds"] > 0


def test_the_document_of_a_file_with_nan_has_null_for_what_is_no_number(spoilt: Verification) -> None:
    document = strict(verification_document(spoilt))
    assert document["verdict"]["right"] is False
    assert {finding["where"] for finding in document["findings"]} == {"blk.1.ffn_norm.weight", "blk.2.attn_norm.weight"}
    assert [each["wrong"] for each in document["layers"]] == [False, False, True, True, False]
    assert document["layers"][2]["own"]["relative"] is None
    assert document["layers"][4]["hidden_state"]["relative"] is None
    assert document["layers"][4]["own"]["relative"] < 0.1
    assert document["logits"]["kl_divergence"]["mean"]["value"] is None
    assert [each["culprits"] for each in document["blame"]] == [["blk.1.ffn_norm.weight"], ["blk.2.attn_norm.weight"]]
    trials = {tuple(each["from_the_source"]): each["error"] for each in document["blame"][0]["trials"]}
    assert trials["blk.1.attn_qkv.weight",] is None
    assert trials["blk.1.ffn_norm.weight",] < 0.05
    (broken,) = [each for each in document["tensors"] if each["part"] == "blk.1.ffn_norm"]
    assert (broken["verdict"], broken["non_finite"]) == ("non-finite", 256)


def test_a_limit_without_end_is_null() -> None:
    unlimited = replace(good(), thresholds=replace(good().thresholds, max_kl=math.inf))
    assert strict(verification_document(unlimited))["thresholds"]["max_kl"] is None
