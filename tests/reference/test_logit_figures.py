from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from phi4conv.reference.logit_figures import (
    FRACTIONS,
    Estimate,
    PositionFigures,
    mean,
    perplexities,
    probabilities,
    quantile,
    spread,
)

INF = math.inf

Doubles = np.ndarray[Any, np.dtype[np.float64]]

FINITE = st.floats(-1e3, 1e3, width=32)
VALUES = arrays(np.float64, st.integers(1, 40), elements=FINITE)
# What negative log-probabilities can be.
LOSSES = st.floats(0, 20, width=32)
PAIRS = st.integers(11, 40).flatmap(lambda n: st.tuples(*(arrays(np.float64, n, elements=LOSSES) for _ in range(2))))


def comparisons(count: int = 3, **changed: list[Any]) -> PositionFigures:
    """Positions at which both sides agree in all, unless told otherwise."""
    good: dict[str, list[Any]] = {
        "kl": [0.0],
        "base_log_probability": [-1.0],
        "other_log_probability": [-1.0],
        "base_top": [7],
        "other_top": [7],
        "base_margin": [1.0],
        "same_top": [True],
        "top_5_overlap": [1.0],
        "largest_difference": [0.0],
        "base_finite": [True],
        "other_finite": [True],
    }
    columns = {name: values * count for name, values in good.items()} | changed
    return PositionFigures(**{name: np.array(values) for name, values in columns.items()})


@given(VALUES)
def test_quantiles_are_numpy_s_linear_ones(values: Doubles) -> None:
    found = spread(values)
    expected = np.quantile(values, FRACTIONS)
    np.testing.assert_allclose([found.quantiles[each] for each in FRACTIONS], expected, rtol=1e-9, atol=1e-9)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.median == pytest.approx(np.median(values), rel=1e-9, abs=1e-9)


def test_infinite_values_leave_the_lower_quantiles_alone() -> None:
    ordered = np.array([1.0, 2.0, 3.0, INF, INF])
    assert [quantile(ordered, fraction) for fraction in (0.0, 0.25, 0.5, 0.6, 0.75, 1.0)] == [1, 2, 3, INF, INF, INF]


@given(VALUES.filter(lambda values: len(values) > 1))
def test_the_error_of_a_mean_is_that_of_the_sample(values: Doubles) -> None:
    found = mean(values)
    assert found.value == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("values", [[1.0, INF], [-INF, INF], [math.nan, 0.0]])
def test_a_mean_over_what_is_not_finite_is_infinite(values: list[float]) -> None:
    assert mean(np.array(values)) == Estimate(INF, INF)


def llama_perplexity_s(base: Doubles, other: Doubles) -> dict[str, Estimate]:
    """The figures by perplexity.cpp's own formulas: sums, squares and products of negative log-probabilities."""
    count = len(base)

    def mean_and_uncertainty(values: Doubles) -> Estimate:
        value = values.sum() / count
        variance = (values * values).sum() / count - value * value
        return Estimate(value, math.sqrt(max(variance, 0) / (count - 1)))

    log_q, log_base = mean_and_uncertainty(other), mean_and_uncertainty(base)
    covariance = ((other * base).sum() / count - log_q.value * log_base.value) / (count - 1)
    q, b = math.exp(log_q.value), math.exp(log_base.value)
    q_error, b_error = q * log_q.error, b * log_base.error
    ratio = log_q.value - log_base.value
    ratio_error = math.sqrt(max(log_q.error**2 + log_base.error**2 - 2 * covariance, 0))
    difference_error = math.sqrt(max(q_error**2 + b_error**2 - 2 * q * b * covariance, 0))
    return {
        "other": Estimate(q, q_error),
        "base": Estimate(b, b_error),
        "log_ratio": Estimate(ratio, ratio_error),
        "ratio": Estimate(math.exp(ratio), math.exp(ratio) * ratio_error),
        "difference": Estimate(q - b, difference_error),
    }


@settings(deadline=None)
@given(PAIRS)
def test_perplexities_and_their_errors_are_llama_perplexity_s(pair: tuple[Doubles, Doubles]) -> None:
    base, other = pair
    found = perplexities(base, other)
    for name, expected in llama_perplexity_s(base, other).items():
        estimate = getattr(found, name)
        # Its difference of two large sums loses half of the digits of an error; that of a perplexity is as large.
        size = max(1.0, found.other.value, found.base.value)
        assert estimate.value == pytest.approx(expected.value, rel=1e-9, abs=1e-9 * size)
        assert estimate.error == pytest.approx(expected.error, rel=1e-5, abs=1e-5 * size)
    if found.correlation is not None and min(base.std(), other.std()) > 1e-3:
        assert found.correlation == pytest.approx(np.corrcoef(base, other)[0, 1], abs=1e-9)


def test_equal_sides_correlate_fully_and_differ_by_nothing() -> None:
    losses = np.array([0.1, 2.0, 3.7, 11.0])
    found = perplexities(losses, losses)
    assert found.correlation == 1.0
    assert found.log_ratio == Estimate(0.0, 0.0)
    assert found.ratio == Estimate(1.0, 0.0)
    assert found.difference == Estimate(0.0, 0.0)


@pytest.mark.parametrize("size", [2000.0, 1e38])  # logits are float32
def test_perplexities_beyond_float64_are_infinite_without_a_warning(size: float) -> None:
    found = perplexities(np.array([1.0, 2.0]), np.array([size, size / 2]))
    assert found.other == Estimate(INF, INF)
    assert found.difference == Estimate(INF, INF)
    assert math.isfinite(found.base.value)


def test_a_perplexity_just_within_float64_has_no_error_that_is_nan() -> None:
    found = perplexities(np.array([709.0, 600.0]), np.array([709.5, 709.5]))
    figures = (found.other, found.base, found.log_ratio, found.ratio, found.difference)
    assert not any(math.isnan(value) for figure in figures for value in (figure.value, figure.error))


def test_the_rms_of_differences_has_llama_perplexity_s_error() -> None:
    differences = np.array([0.1, -0.3, 0.2, 0.0])
    found = probabilities(differences)
    squares = differences**2
    assert found.rms.value == pytest.approx(math.sqrt(squares.mean()))
    error = math.sqrt((squares.std() ** 2) / 3)
    assert found.rms.error == pytest.approx(0.5 / found.rms.value * error)
    assert probabilities(np.zeros(4)).rms == Estimate(0.0, 0.0)


def test_shares_have_the_error_of_a_coin() -> None:
    found = comparisons(4, same_top=[True, True, True, False]).figures()
    assert found.same_top.value == 0.75
    assert found.same_top.error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"kl": [0.0, INF, 0.1], "other_finite": [True, False, True], "other_log_probability": [-1.0, -INF, -1.0]},
        {"kl": [INF] * 3, "base_finite": [False] * 3, "base_log_probability": [-INF] * 3},
        {"largest_difference": [0.0, INF, 1.0]},
        {"base_log_probability": [math.nan] * 3, "other_log_probability": [math.nan] * 3},
        {"base_log_probability": [-1e300] * 3},
        {"base_log_probability": [-INF] * 3, "other_log_probability": [-INF] * 3},
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_the_document_holds_finite_numbers_or_null(changed: dict[str, list[Any]], count: int) -> None:
    positions = comparisons(3, **changed).select(slice(0, count))
    document = positions.figures().document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_document_names_every_percentile() -> None:
    document = comparisons(kl=[0.0, 1.0, 2.0]).figures().document()
    assert document["kl_divergence"] == {
        "mean": {"value": 1.0, "error": pytest.approx(math.sqrt(1 / 3))},
        "minimum": 0.0,
        "median": 1.0,
        "maximum": 2.0,
        "percentiles": {
            "0.1": pytest.approx(0.002),
            "1": pytest.approx(0.02),
            "5": pytest.approx(0.1),
            "10": pytest.approx(0.2),
            "25": pytest.approx(0.5),
            "50": 1.0,
            "75": pytest.approx(1.5),
            "90": pytest.approx(1.8),
            "95": pytest.approx(1.9),
            "99": pytest.approx(1.98),
            "99.9": pytest.approx(1.998),
        },
    }
    assert (document["positions"], document["scored"], document["not_comparable"]) == (3, 3, 0)
    assert document["perplexity"]["other"]["value"] == pytest.approx(math.e)


def test_the_base_is_decided_where_a_token_is_twice_as_likely_as_the_next() -> None:
    margins = [math.log(2), 0.69, math.inf, math.nan]
    found = comparisons(4, base_margin=margins, same_top=[True, False, False, False]).figures()
    assert found.decided == 2
    assert found.same_top_where_decided is not None
    assert found.same_top_where_decided.value == 0.5
    assert comparisons(base_margin=[0.0, 0.1, math.nan]).figures().same_top_where_decided is None
