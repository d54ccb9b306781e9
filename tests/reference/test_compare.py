from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4conv.arrays import Floats

torch = pytest.importorskip("torch", reason="logits are compared with torch")

from phi4conv.reference import compare  # noqa: E402
from phi4conv.reference.compare import (  # noqa: E402
    HiddenError,
    LogitComparison,
    LogitFigures,
    PositionFigures,
    hidden_error,
)

Doubles = np.ndarray[Any, np.dtype[np.float64]]

INF, NAN = math.inf, math.nan


def compared(base: Any, other: Any, targets: list[int | None] | None = None, chunk: int = 3) -> LogitComparison:
    """Both sides' logits, taken in chunks of the vocabulary."""
    base, other = np.array(base, dtype=np.float32), np.array(other, dtype=np.float32)
    comparison = LogitComparison([None] * len(base) if targets is None else targets)
    for start in range(0, base.shape[1], chunk):
        chunks = (torch.from_numpy(side[:, start : start + chunk].copy()) for side in (base, other))
        comparison.add(start, *chunks)
    return comparison


def positions(base: Any, other: Any, targets: list[int | None] | None = None) -> PositionFigures:
    return compared(base, other, targets).positions()


def figures(base: Any, other: Any, targets: list[int | None] | None = None) -> LogitFigures:
    return compared(base, other, targets).figures()


def log_softmax(logits: Floats) -> Doubles:
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1, keepdims=True)
    shifted: Doubles = wide - largest - np.log(np.exp(wide - largest).sum(axis=1, keepdims=True))
    return shifted


def plain_kl(base: Floats, other: Floats) -> Doubles:
    """KL(base || other) over whole arrays (positions, ids), by its definition."""
    ours, theirs = log_softmax(base), log_softmax(other)
    possible = np.isfinite(ours)
    with np.errstate(invalid="ignore"):
        terms = np.where(possible, np.exp(ours) * (ours - theirs), 0.0)
    kl: Doubles = terms.sum(axis=1)
    return kl


def plain_top(logits: Floats, count: int = 5) -> list[list[int]]:
    """The likeliest ids of each position, by a sort that keeps the order of equals."""
    rows = [sorted(range(len(row)), key=lambda token: (-row[token], token)) for row in logits.tolist()]
    return [[token for token in order if logits[at, token] > -INF][:count] for at, order in enumerate(rows)]


@st.composite
def sides(draw: st.DrawFn) -> tuple[Floats, Floats, list[int | None], list[int]]:
    """Two sides' logits, targets, and where the vocabulary is cut."""
    count, ids = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    base = generator.normal(0, scale, (count, ids))
    other = base + generator.normal(0, scale * draw(st.sampled_from([0.0, 1e-4, 0.1, 1.0])), (count, ids))
    if draw(st.booleans()):  # ties, in number
        base, other = (np.round(side / scale) for side in (base, other))
    if draw(st.booleans()):  # ids that both sides rule out, never all
        masked = generator.random((count, ids)) < 0.3
        masked[np.arange(count), generator.integers(0, ids, count)] = False
        base, other = (np.where(masked, -INF, side) for side in (base, other))
    targets = draw(st.lists(st.none() | st.integers(0, ids - 1), min_size=count, max_size=count))
    cuts = sorted(draw(st.sets(st.integers(1, ids))) | {ids})
    return base.astype(np.float32), other.astype(np.float32), targets, cuts


@settings(deadline=None, max_examples=150)
@given(sides())
def test_chunks_of_any_size_give_what_whole_arrays_give(
    drawn: tuple[Floats, Floats, list[int | None], list[int]],
) -> None:
    base, other, targets, cuts = drawn
    comparison = LogitComparison(targets)
    for start, stop in zip([0, *cuts], cuts, strict=False):
        comparison.add(start, *(torch.from_numpy(side[:, start:stop].copy()) for side in (base, other)))
    found = comparison.positions()

    size = max(1.0, *(float(np.abs(side[np.isfinite(side)]).max()) for side in (base, other)))
    np.testing.assert_allclose(found.kl, plain_kl(base, other), rtol=1e-12, atol=2e-15 * size)
    assert (found.kl >= 0).all()
    for logits, log_probability in ((base, found.base_log_probability), (other, found.other_log_probability)):
        every = log_softmax(logits)
        expected = [NAN if target is None else every[at, target] for at, target in enumerate(targets)]
        np.testing.assert_allclose(log_probability, expected, rtol=1e-12, atol=2e-15 * size)
    base_top, other_top = plain_top(base), plain_top(other)
    assert found.base_top.tolist() == [ids[0] for ids in base_top]
    assert found.other_top.tolist() == [ids[0] for ids in other_top]
    shares = [len({*ours} & {*theirs}) / len(ours) for ours, theirs in zip(base_top, other_top, strict=True)]
    np.testing.assert_array_equal(found.top_5_overlap, shares)
    best = [side == side.max(axis=1, keepdims=True) for side in (base, other)]
    np.testing.assert_array_equal(found.same_top, (best[0] & best[1]).any(axis=1))
    two = np.sort(np.pad(base.astype(np.float64), ((0, 0), (1, 0)), constant_values=-INF), axis=1)[:, -2:]
    np.testing.assert_array_equal(found.base_margin, two[:, 1] - two[:, 0])
    with np.errstate(invalid="ignore"):
        difference = np.nan_to_num(np.abs(base.astype(np.float64) - other), nan=0.0)
    np.testing.assert_array_equal(found.largest_difference, difference.max(axis=1))
    assert found.base_finite.all()
    assert found.other_finite.all()


@settings(deadline=None, max_examples=50)
@given(sides())
def test_a_side_held_against_itself_differs_in_nothing(
    drawn: tuple[Floats, Floats, list[int | None], list[int]],
) -> None:
    base, _, targets, _ = drawn
    found = figures(base, base, targets)
    assert set(found.kl.quantiles.values()) == {0.0}
    assert found.same_top.value == found.top_5_overlap.value == 1.0
    assert found.largest_difference == 0.0
    assert found.not_comparable == 0
    if found.perplexity and math.isfinite(found.perplexity.base.value):
        assert found.perplexity.log_ratio.value == 0.0
        assert found.perplexity.difference.value == 0.0


def test_a_divergence_worked_by_hand() -> None:
    # The base gives 1/2, 1/4, 1/4, the other 1/4, 1/4, 1/2: KL = 1/2 ln 2 + 0 - 1/4 ln 2.
    found = positions([[math.log(2), 0, 0]], [[0, 0, math.log(2)]], [0])
    np.testing.assert_allclose(found.kl, [0.25 * math.log(2)], rtol=1e-7)
    np.testing.assert_allclose(np.exp(found.base_log_probability), [0.5], rtol=1e-7)
    np.testing.assert_allclose(np.exp(found.other_log_probability), [0.25], rtol=1e-7)


def test_adding_a_constant_to_all_logits_changes_no_probability() -> None:
    logits = np.random.default_rng(1).integers(-20, 20, (200, 50))
    found = figures(logits, logits + 1000)
    assert found.kl.minimum == 0.0  # and not the least bit below, as sums in floating point come out
    assert found.kl.maximum < 1e-12
    assert found.largest_difference == 1000


def test_logits_of_opposite_extremes_give_a_finite_divergence() -> None:
    found = figures([[1e4, -1e4]], [[-1e4, 1e4]], [0])
    assert found.kl.maximum == 2e4
    assert found.perplexity is not None
    assert found.perplexity.base.value == 1.0
    assert found.perplexity.other.value == INF  # exp(20000) is beyond float64
    assert found.perplexity.log_ratio.value == 2e4


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_a_logit_that_is_no_number_makes_its_position_infinite_and_no_other(bad: float, chunk: int) -> None:
    base = np.random.default_rng(2).normal(size=(3, 5))
    other = base.copy()
    other[1, 2] = bad
    found = compared(base, other, [0, 0, 0], chunk)
    assert found.positions().kl.tolist() == [0.0, INF, 0.0]
    assert found.positions().same_top.tolist() == [True, False, True]
    assert found.positions().other_top[1] == -1
    assert found.positions().top_5_overlap.tolist() == [1.0, 0.0, 1.0]
    assert found.positions().largest_difference.tolist() == [0.0, INF, 0.0]
    summary = found.figures()
    assert (summary.not_comparable, summary.base_not_finite, summary.other_not_finite) == (1, 0, 1)
    assert summary.kl.mean.value == INF
    assert summary.kl.median == 0.0
    assert summary.perplexity is not None
    assert math.isfinite(summary.perplexity.base.value)
    assert summary.perplexity.other.value == INF
    assert summary.perplexity.ratio.value == INF
    assert summary.perplexity.correlation is None


def test_a_base_that_is_no_number_is_told_apart_from_the_other_side() -> None:
    found = figures([[NAN, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], [0, 0])
    assert (found.not_comparable, found.base_not_finite, found.other_not_finite) == (1, 1, 0)
    assert found.perplexity is not None
    assert found.perplexity.base.value == INF
    assert math.isfinite(found.perplexity.other.value)
    assert found.perplexity.log_ratio.value == INF
    assert found.perplexity.difference.value == INF


def test_nothing_is_nan_where_both_sides_are() -> None:
    found = figures([[NAN, NAN]], [[NAN, NAN]], [0])
    assert (found.not_comparable, found.base_not_finite, found.other_not_finite) == (1, 1, 1)
    assert found.kl.mean.value == INF
    assert "NaN" not in json.dumps(found.document())


@pytest.mark.parametrize("bad", [NAN, INF])
def test_two_sides_that_are_no_numbers_agree_in_nothing(bad: float) -> None:
    found = positions([[0.0, bad]], [[0.0, bad]])
    assert found.kl.tolist() == found.largest_difference.tolist() == [INF]
    assert found.same_top.tolist() == [False]
    assert found.top_5_overlap.tolist() == [0.0]
    assert found.base_top.tolist() == found.other_top.tolist() == [-1]


def test_a_position_without_any_possible_token_is_not_finite() -> None:
    found = figures([[0.0, 1.0]], [[-INF, -INF]], [0])
    assert (found.not_comparable, found.other_not_finite) == (1, 1)


def test_ruling_out_a_token_that_the_base_does_not_is_an_infinite_divergence() -> None:
    found = figures([[0.0, -300.0, 1.0]], [[0.0, -INF, 1.0]], [1])
    assert (found.not_comparable, found.other_not_finite) == (1, 0)
    assert found.kl.maximum == INF
    assert found.largest_difference == INF
    assert found.perplexity is not None
    assert found.perplexity.other.value == INF


def test_ruling_out_a_token_that_the_other_does_not_is_a_finite_divergence() -> None:
    found = figures([[0.0, -INF]], [[0.0, 0.0]])
    assert found.kl.maximum == pytest.approx(math.log(2), rel=1e-15)
    assert found.largest_difference == INF
    assert found.not_comparable == 0


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_a_tie_at_the_top_is_no_disagreement(chunk: int) -> None:
    base = [[0, 5, 0, 5, 0, 0, 0]]  # 1 and 3 are equally likely
    for top, same in ((1, True), (3, True), (2, False)):
        other = np.zeros((1, 7))
        other[0, top] = 4
        found = compared(base, other, None, chunk).positions()
        assert found.same_top.tolist() == [same]
        assert (found.base_top[0], found.other_top[0]) == (1, top)


def test_equal_tops_that_a_later_chunk_surpasses_are_no_agreement() -> None:
    found = positions([[5, 0, 0, 6]], [[5, 0, 0, 4]])
    assert found.same_top.tolist() == [False]


def test_both_zeros_are_one_number() -> None:
    found = positions([[-0.0, 0.0, -1.0]], [[0.0, -0.0, -1.0]])
    assert found.base_top.tolist() == found.other_top.tolist() == [0]


def test_the_overlap_counts_the_base_s_five_among_the_other_s() -> None:
    base, other = [[9, 8, 7, 6, 5, 4, 3, 2.0]], [[9, 8, 1, 6, 0, 4, 3, 2.0]]
    assert positions(base, other).top_5_overlap.tolist() == [0.6]  # 0, 1 and 3; 5 and 6 are new


def test_fewer_than_five_possible_tokens_can_overlap_fully() -> None:
    assert positions([[1.0, 2.0]], [[2.0, 1.0]]).top_5_overlap.tolist() == [1.0]


def test_positions_without_target_count_for_the_divergence_alone() -> None:
    base, other = np.random.default_rng(3).normal(size=(2, 3, 4)).astype(np.float32)
    found = figures(base, other, [2, None, None])
    alone = figures(base[:1], other[:1], [2])
    assert (found.positions, found.scored) == (3, 1)
    assert found.perplexity == alone.perplexity
    assert found.kl.mean.value == pytest.approx(plain_kl(base, other).mean(), rel=1e-12)


def test_without_targets_there_is_no_perplexity() -> None:
    found = figures([[0.0, 1.0]], [[0.0, 1.0]])
    assert found.perplexity is None
    assert found.probability is None
    assert found.document()["perplexity"] is None


def test_a_target_beyond_the_vocabulary_has_no_probability() -> None:
    found = figures([[0.0, 1.0]], [[0.0, 1.0]], [2])
    assert found.perplexity is not None
    assert found.perplexity.base.value == found.perplexity.other.value == INF
    assert found.kl.maximum == 0.0


def test_of_one_position_no_error_is_known() -> None:
    found = figures([[0.0, 1.0]], [[1.0, 0.0]], [0])
    assert math.isfinite(found.kl.mean.value)
    assert found.kl.mean.error == INF
    assert found.perplexity is not None
    assert found.perplexity.base.error == INF
    assert found.perplexity.correlation is None
    assert found.document()["kl_divergence"]["mean"] == {"value": found.kl.mean.value, "error": None}


def test_the_figures_of_two_positions_worked_by_hand() -> None:
    # The targets' probabilities are 1/2 and 1/2 in the base, 1/2 and 1/5 in the other.
    found = figures([[0, 0], [0, 0]], [[0, 0], [math.log(4), 0]], [0, 1])
    assert found.perplexity is not None
    assert found.perplexity.base.value == pytest.approx(2)
    assert found.perplexity.base.error == 0
    assert found.perplexity.other.value == pytest.approx(math.sqrt(10))
    # ln 2 and ln 5 have the standard deviation ln(5/2) / 2, over the root of 2 - 1.
    assert found.perplexity.other.error == pytest.approx(math.sqrt(10) * math.log(2.5) / 2)
    assert found.perplexity.log_ratio.value == pytest.approx(math.log(2.5) / 2)
    assert found.perplexity.log_ratio.error == pytest.approx(math.log(2.5) / 2)
    assert found.perplexity.difference.value == pytest.approx(math.sqrt(10) - 2)
    assert found.perplexity.correlation is None  # the base does not vary
    assert found.probability is not None
    assert found.probability.difference.mean.value == pytest.approx(-0.15)
    assert found.probability.rms.value == pytest.approx(0.3 / math.sqrt(2))
    assert found.same_top.value == 1.0  # of two equally likely tokens any is the base's
    assert found.kl.maximum == pytest.approx(math.log(5 / 4))


def test_some_of_the_positions_have_figures_of_their_own() -> None:
    base, other = np.random.default_rng(4).normal(size=(2, 6, 9))
    part = positions(base, other, [0, 1, 2, 3, 4, None]).select(slice(2, 5))
    alone = positions(base[2:5], other[2:5], [2, 3, 4])
    for field in fields(part):
        np.testing.assert_array_equal(getattr(part, field.name), getattr(alone, field.name))


def test_many_positions_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = np.random.default_rng(5).normal(size=(2, 11, 8))
    targets: list[int | None] = [*range(8), None, 1, 2]
    whole = positions(base, other, targets)
    monkeypatch.setattr(compare, "BLOCK_NUMBERS", 6)  # two rows of three ids
    parts = positions(base, other, targets)
    for field in fields(whole):
        np.testing.assert_array_equal(getattr(parts, field.name), getattr(whole, field.name))


def test_chunks_may_come_from_inference_mode() -> None:
    base, other = np.random.default_rng(6).normal(size=(2, 3, 4))
    comparison = LogitComparison([0, 1, 2])
    with torch.inference_mode():
        comparison.add(0, *(torch.tensor(side, dtype=torch.float32) for side in (base, other)))
    assert comparison.figures() == compared(base, other, [0, 1, 2], chunk=4).figures()


def test_chunks_must_follow_each_other() -> None:
    comparison = LogitComparison([None])
    comparison.add(0, torch.zeros(1, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="logits from id 4 on expected, found those from id 5"):
        comparison.add(5, torch.zeros(1, 4), torch.zeros(1, 4))


@pytest.mark.parametrize(("base", "other"), [((1, 4), (1, 4)), ((2, 4), (2, 3)), ((2,), (2,))])
def test_logits_of_other_shapes_are_refused(base: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits \(2, ids\) expected from both sides, found"):
        LogitComparison([None, None]).add(0, torch.zeros(base), torch.zeros(other))


def test_no_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="no positions to compare"):
        LogitComparison([])
    with pytest.raises(ValueError, match="no positions to compare"):
        positions([[0.0]], [[0.0]]).select(slice(0, 0)).figures()


def test_a_negative_target_is_refused() -> None:
    with pytest.raises(ValueError, match="a target is a token's id, from 0"):
        LogitComparison([-1])


def state(*rows: list[float]) -> Any:
    return torch.tensor(rows, dtype=torch.float32)


def test_equal_hidden_states_have_no_error() -> None:
    x = torch.from_numpy(np.random.default_rng(7).normal(0, 1e4, (3, 40)).astype(np.float32))
    assert hidden_error(x, x) == HiddenError(0.0, 1.0, 0.0, 1.0, 0)


def test_errors_of_hidden_states_worked_by_hand() -> None:
    # One large token is off by a tenth; a small one is turned by a right angle.
    found = hidden_error(state([3000, 4000], [1, 0]), state([3300, 4400], [0, 1]))
    assert found.relative == pytest.approx(0.1, rel=1e-5)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.median_relative == pytest.approx((0.1 + math.sqrt(2)) / 2, rel=1e-6)
    assert found.mean_cosine == pytest.approx(0.5, rel=1e-6)
    assert found.not_finite == 0


def test_the_median_token_is_not_moved_by_one_that_is_far_off() -> None:
    found = hidden_error(state([1, 0], [1, 0], [1, 0]), state([1, 0], [1, 0], [1e6, 0]))
    assert found.median_relative == 0.0
    assert found.relative == pytest.approx(1e6 / math.sqrt(3), rel=1e-5)


def test_a_negated_state_has_cosine_minus_one() -> None:
    x = state([1, 2, 3])
    found = hidden_error(x, -x)
    assert (found.relative, found.cosine) == (2.0, -1.0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("side", [0, 1])
def test_a_state_that_is_no_number_has_an_infinite_error(bad: float, side: int) -> None:
    good, broken = state([1, 2], [3, 4], [5, 6]), state([1, 2], [bad, 4], [5, 6])
    found = hidden_error(good, broken) if side else hidden_error(broken, good)
    assert (found.relative, found.cosine, found.not_finite) == (INF, 0.0, 1)
    assert found.median_relative == 0.0
    assert found.mean_cosine == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("expected", "found", "relative", "cosine"),
    [([0, 0], [0, 0], 0.0, 1.0), ([0, 0], [1, 0], INF, 0.0), ([1, 0], [0, 0], 1.0, 0.0)],
)
def test_states_of_zeros(expected: list[float], found: list[float], relative: float, cosine: float) -> None:
    error = hidden_error(state(expected), state(found))
    assert (error.relative, error.cosine) == (relative, cosine)
    assert (error.median_relative, error.mean_cosine) == (relative, cosine)


def test_hidden_states_too_large_for_float32_squares_are_compared() -> None:
    found = hidden_error(state([1e30, 0]), state([1e30, 1e30]))
    assert found.relative == pytest.approx(1.0)
    assert found.cosine == pytest.approx(math.sqrt(0.5))


def test_long_hidden_states_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(8)
    expected, found = (torch.from_numpy(generator.normal(size=(9, 5)).astype(np.float32)) for _ in range(2))
    whole = hidden_error(expected, found)
    monkeypatch.setattr(compare, "BLOCK_NUMBERS", 10)
    assert hidden_error(expected, found) == whole


@pytest.mark.parametrize("shape", [(2, 3), (1, 2), (2,)])
def test_hidden_states_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"two states \(tokens, hidden\) of one shape expected"):
        hidden_error(torch.zeros(2, 2), torch.zeros(shape))


def test_no_hidden_states_are_refused() -> None:
    with pytest.raises(ValueError, match="of one shape expected"):
        hidden_error(torch.zeros(0, 4), torch.zeros(0, 4))
