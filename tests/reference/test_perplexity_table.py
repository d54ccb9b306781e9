from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from phi4conv.arrays import Floats
from phi4conv.reference.logit_figures import LogitFigures, PositionFigures
from phi4conv.reference.perplexity_table import perplexity_table

Doubles = np.ndarray[Any, np.dtype[np.float64]]

# What perplexity() and kl_divergence() of llama.cpp's tools/perplexity/perplexity.cpp (commit 0c1e5709, GCC 12 -O2)
# printed when they were given the logits of made_up_logits(), in 8 windows of 64 tokens, for those of a model.
PRINTED = """
====== Perplexity statistics ======
Mean PPL(Q)                   : 101.170391 ±  40.129307
Mean PPL(base)                :  90.605138 ±  35.842014
Cor(ln(PPL(Q)), ln(PPL(base))):  99.72%
Mean ln(PPL(Q)/PPL(base))     :   0.110295 ±   0.029519
Mean PPL(Q)/PPL(base)         :   1.116608 ±   0.032961
Mean PPL(Q)-PPL(base)         :  10.565253 ±   5.134007

====== KL divergence statistics ======
Mean    KLD:   0.121353 ±   0.004000
Maximum KLD:   0.326146
99.9%   KLD:   0.321925
99.0%   KLD:   0.305850
95.0%   KLD:   0.240461
90.0%   KLD:   0.208428
Median  KLD:   0.108588
10.0%   KLD:   0.049183
 5.0%   KLD:   0.036614
 1.0%   KLD:   0.022360
 0.1%   KLD:   0.017540
Minimum KLD:   0.016819

====== Token probability statistics ======
Mean    Δp: -1.041 ± 0.710 %
Maximum Δp: 32.204%
99.9%   Δp: 32.123%
99.0%   Δp: 30.770%
95.0%   Δp: 18.251%
90.0%   Δp: 12.435%
75.0%   Δp:  3.360%
Median  Δp: -0.000%
25.0%   Δp: -8.408%
10.0%   Δp: -15.159%
 5.0%   Δp: -18.578%
 1.0%   Δp: -24.735%
 0.1%   Δp: -34.615%
Minimum Δp: -36.847%
RMS Δp    : 11.210 ± 0.580 %
Same top p: 61.694 ± 3.093 %
"""

ROWS, VOCABULARY = 8 * 31, 200  # the second half of each window, but for its last token, which nothing follows


def hashed(count: int, seed: int) -> Doubles:
    """Numbers from 0 to 1, exactly the same on every machine: (count,)."""
    x = np.arange(count, dtype=np.uint64) + np.uint64(seed * 0x9E3779B9)
    for factor in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
        x ^= x >> np.uint64(15)
        x = x * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    shares: Doubles = (x ^ (x >> np.uint64(16))) / 2.0**32
    return shares


def made_up_logits() -> tuple[Floats, Floats, list[int]]:
    """Logits of both sides (ROWS, VOCABULARY), and targets.

    The base's are multiples of 1/4096 from 0 to 65535/4096 in every row, so that the 16 bits in which llama-perplexity
    stores them suffice.
    """
    share = hashed(ROWS * VOCABULARY, 1).reshape(ROWS, VOCABULARY)
    steps = np.floor(65535 * (share * share) * (share * share) * (share * share))
    rows = np.arange(ROWS)
    steps[rows, rows * 7 % VOCABULARY] = 65535
    steps[rows, (rows * 7 + 1) % VOCABULARY] = 0
    noise = np.floor(8192 * hashed(ROWS * VOCABULARY, 2).reshape(ROWS, VOCABULARY)) - 4096
    base, other = ((side / 4096).astype(np.float32) for side in (steps, steps + noise))
    anything = (hashed(ROWS, 3) * VOCABULARY).astype(np.int64)
    targets = np.where(hashed(ROWS, 4) < 0.75, base.argmax(axis=1), anything)
    return base, other, targets.tolist()


@pytest.fixture(scope="module")
def figures() -> LogitFigures:
    torch = pytest.importorskip("torch", reason="logits are compared with torch")
    from phi4conv.reference.compare import LogitComparison  # noqa: PLC0415

    base, other, targets = made_up_logits()
    comparison = LogitComparison(targets)
    for start in range(0, VOCABULARY, 37):
        chunks = (torch.from_numpy(side[:, start : start + 37].copy()) for side in (base, other))
        comparison.add(start, *chunks)
    return comparison.figures()


def printed(lines: list[str]) -> list[tuple[str, str, list[float]]]:
    """The lines of tables as their words, the layout of their numbers, and the numbers."""
    found = []
    for line in lines:
        words, colon, numbers = line.rpartition(": ")
        found.append((words, colon + re.sub(r"[\d-]", "0", numbers), [*map(float, re.findall(r"-?\d+\.\d+", numbers))]))
    return found


def test_the_tables_are_those_that_llama_perplexity_prints(figures: LogitFigures) -> None:
    lines, section = [], ""
    for row in perplexity_table(figures):
        if row.section != section:
            lines.append(f"====== {row.section} ======")
            section = row.section
        lines.append(row.text)
    expected = [line for line in PRINTED.splitlines() if line]
    for found, wanted in zip(printed(lines), printed(expected), strict=True):
        assert found[0] == wanted[0]
        assert len(found[1]) == len(wanted[1])
        # Its single positions are float32, of logits up to 16.
        assert found[2] == pytest.approx(wanted[2], rel=1e-6, abs=2e-5)


def test_rows_carry_the_numbers_that_their_text_shows(figures: LogitFigures) -> None:
    for row in perplexity_table(figures):
        numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", row.text.rpartition(": ")[2])]
        assert numbers == pytest.approx([row.value, row.error] if row.error is not None else [row.value], abs=5.1e-3)
        assert row.text.startswith(row.name)
        assert row.text.endswith("%") == (row.unit == "%")


def test_without_scored_positions_there_are_no_rows_of_them(figures: LogitFigures) -> None:
    rows = perplexity_table(replace(figures, perplexity=None, probability=None))
    assert [row.name for row in rows][:2] == ["Mean    KLD", "Maximum KLD"]
    assert [row.name for row in rows][-2:] == ["Minimum KLD", "Same top p"]


def test_what_is_not_finite_is_said_so() -> None:
    one = PositionFigures(
        kl=np.array([np.inf]),
        base_log_probability=np.array([-1.0]),
        other_log_probability=np.array([-np.inf]),
        base_top=np.array([0]),
        other_top=np.array([-1]),
        base_margin=np.array([1.0]),
        same_top=np.array([False]),
        top_5_overlap=np.array([0.0]),
        largest_difference=np.array([np.inf]),
        base_finite=np.array([True]),
        other_finite=np.array([False]),
    )
    lines = [row.text for row in perplexity_table(one.figures())]
    assert lines[0] == "Mean PPL(Q)                   :        inf ±        inf"
    assert lines[2] == "Cor(ln(PPL(Q)), ln(PPL(base))):    n/a"
    assert lines[6] == "Mean    KLD:        inf ±        inf"
    assert not any("nan" in line for line in lines)
