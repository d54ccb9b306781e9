"""How far one model's logits are from another's: statistics over positions, by the rules of llama-perplexity.

The base is the model that is taken to be right; the other one is held against it. The statistics are those of
llama.cpp's tools/perplexity/perplexity.cpp, kl_divergence(): natural logarithms, standard errors over positions,
percentiles interpolated linearly between neighbours. perplexity_table.py prints them in its words.

The same logits give other last digits there, because llama-perplexity

- stores the base's log-probabilities in 16 bits, in steps of 1/65535 of their range, and cuts off what lies more than
  16 below the largest logit; here both sides are float32;
- leaves tokens out of the divergence whose probability in the base is below exp(-16); here all are in it;
- keeps single positions in float32, and sums of squares whose difference is a variance; here all is float64.

Nothing here is ever NaN. What cannot be known to be good is infinite: the divergence of a position at which a side has
NaN, a perplexity over it, and the error of a mean of one value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]

# Those of llama-perplexity's tables.
FRACTIONS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)

TOP = 5

# The base is decided where it finds its likeliest token at least twice as likely as the next. Where it is not, a good
# quantized file often finds the other one likelier.
DECIDED = math.log(2)


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error, in the figure's own unit; both infinite where they cannot be told."""

    value: float
    error: float

    def document(self) -> dict[str, float | None]:
        """The estimate as values of JSON, null for what is not finite."""
        return {"value": json_number(self.value), "error": json_number(self.error)}


@dataclass(frozen=True)
class Spread:
    """How values lie: their mean, and the value below which a fraction of them is, for each of FRACTIONS."""

    mean: Estimate
    quantiles: Mapping[float, float]

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return self.quantiles[0.0]

    @property
    def median(self) -> float:
        """The middle value, or the mean of the middle two."""
        return self.quantiles[0.5]

    @property
    def maximum(self) -> float:
        """The largest value."""
        return self.quantiles[1.0]

    def document(self) -> dict[str, Any]:
        """The spread as values of JSON; percentiles have their percentage as key: "99.9"."""
        return {
            "mean": self.mean.document(),
            "minimum": json_number(self.minimum),
            "median": json_number(self.median),
            "maximum": json_number(self.maximum),
            "percentiles": {
                f"{100 * fraction:g}": json_number(value)
                for fraction, value in self.quantiles.items()
                if 0 < fraction < 1
            },
        }


@dataclass(frozen=True)
class PerplexityFigures:
    """Perplexities of both sides over the same tokens, and how they compare.

    Attributes:
        other: exp of the mean negative log-probability of the tokens that follow: "Mean PPL(Q)".
        base: The same of the base: "Mean PPL(base)".
        correlation: Of both sides' log-probabilities, -1 to 1; None where one side's do not vary, or are infinite.
        log_ratio: ln(other / base). Its error is far below those of the perplexities: both sides see the same tokens.
        ratio: other / base.
        difference: other - base.
    """

    other: Estimate
    base: Estimate
    correlation: float | None
    log_ratio: Estimate
    ratio: Estimate
    difference: Estimate

    def document(self) -> dict[str, Any]:
        """The figures as values of JSON."""
        named = {name: getattr(self, name).document() for name in ("other", "base", "log_ratio", "ratio", "difference")}
        return {**named, "correlation": self.correlation}


@dataclass(frozen=True)
class ProbabilityFigures:
    """The probability of the tokens that follow, other - base: llama-perplexity's Δp, here from -1 to 1.

    Attributes:
        difference: How the differences lie.
        rms: Their root mean square.
    """

    difference: Spread
    rms: Estimate

    def document(self) -> dict[str, Any]:
        """The figures as values of JSON."""
        return {"difference": self.difference.document(), "rms": self.rms.document()}


@dataclass(frozen=True)
class LogitFigures:
    """How far the other side's logits are from the base's.

    Attributes:
        positions: At how many positions both were compared.
        scored: At how many of them the token that follows is known; the perplexities are over these.
        not_comparable: At how many KL(base || other) is infinite: a side is not finite there, or the other rules out
            (logit -inf) a token that the base does not.
        base_not_finite: At how many the base has NaN or +inf, or no token that it does not rule out.
        other_not_finite: The same of the other side.
        kl: KL(base || other) of the positions, in nats, never below 0.
        same_top: The share of positions with the same likeliest token, 0 to 1. Of tokens that are equally likely, any
            may be meant: positions agree when one token has the largest logit on both sides.
        decided: At how many positions the base finds one token at least twice as likely as any other.
        same_top_where_decided: The share of those positions with the same likeliest token; None where there are none.
        top_5_overlap: The share of the base's five likeliest tokens that are among the other's five, 0 to 1. Of
            equally likely tokens those with the lowest ids are taken.
        largest_difference: The largest difference of two logits of one token; infinite where one alone is finite.
        perplexity: Perplexities; None without scored positions.
        probability: Probabilities of the tokens that follow; None without scored positions.
    """

    positions: int
    scored: int
    not_comparable: int
    base_not_finite: int
    other_not_finite: int
    kl: Spread
    same_top: Estimate
    decided: int
    same_top_where_decided: Estimate | None
    top_5_overlap: Estimate
    largest_difference: float
    perplexity: PerplexityFigures | None
    probability: ProbabilityFigures | None

    def document(self) -> dict[str, Any]:
        """The figures as values of JSON: what is not finite, and what is not there, is null."""
        return {
            "positions": self.positions,
            "scored": self.scored,
            "not_comparable": self.not_comparable,
            "base_not_finite": self.base_not_finite,
            "other_not_finite": self.other_not_finite,
            "kl_divergence": self.kl.document(),
            "same_top": self.same_top.document(),
            "decided": self.decided,
            "same_top_where_decided": self.same_top_where_decided and self.same_top_where_decided.document(),
            "top_5_overlap": self.top_5_overlap.document(),
            "largest_logit_difference": json_number(self.largest_difference),
            "perplexity": None if self.perplexity is None else self.perplexity.document(),
            "token_probability": None if self.probability is None else self.probability.document(),
        }


@dataclass(frozen=True)
class PositionFigures:
    """The comparison of single positions; every array is (positions,).

    Attributes:
        kl: KL(base || other) in nats, 0 to inf.
        base_log_probability: Of the token that follows, -inf where the base is not finite; NaN where no token is known.
        other_log_probability: The same of the other side.
        base_top: The likeliest token of the base, the lowest id of equally likely ones; -1 where it is not finite.
        other_top: The same of the other side.
        base_margin: How far the base's largest logit is above the next, in nats: 0 for equal ones, inf for a single
            token, NaN where it is not finite.
        same_top: Whether one token has the largest logit on both sides.
        top_5_overlap: The share of the base's five likeliest that are among the other's five.
        largest_difference: The largest difference of two logits of one token.
        base_finite: Whether the base's logits make probabilities.
        other_finite: The same of the other side.
    """

    kl: Doubles
    base_log_probability: Doubles
    other_log_probability: Doubles
    base_top: Ids
    other_top: Ids
    base_margin: Doubles
    same_top: Flags
    top_5_overlap: Doubles
    largest_difference: Doubles
    base_finite: Flags
    other_finite: Flags

    def select(self, rows: slice) -> PositionFigures:
        """Some of the positions: those of one text, say."""
        return PositionFigures(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def figures(self) -> LogitFigures:
        """The statistics over these positions; ValueError without any."""
        if not len(self.kl):
            raise ValueError("no positions to compare")
        scored = ~np.isnan(self.base_log_probability)
        decided = self.base_margin >= DECIDED
        base, other = self.base_log_probability[scored], self.other_log_probability[scored]
        return LogitFigures(
            positions=len(self.kl),
            scored=int(scored.sum()),
            not_comparable=int(np.isinf(self.kl).sum()),
            base_not_finite=int((~self.base_finite).sum()),
            other_not_finite=int((~self.other_finite).sum()),
            kl=spread(self.kl),
            same_top=share(self.same_top),
            decided=int(decided.sum()),
            same_top_where_decided=share(self.same_top[decided]) if decided.any() else None,
            top_5_overlap=mean(self.top_5_overlap),
            largest_difference=float(self.largest_difference.max()),
            perplexity=perplexities(-base, -other) if scored.any() else None,
            probability=probabilities(np.exp(other) - np.exp(base)) if scored.any() else None,
        )


def mean(values: Doubles) -> Estimate:
    """The mean of values (n,) and its standard error, the root of the variance over n - 1 (variance: over n)."""
    if not np.isfinite(values).all():
        return Estimate(math.inf, math.inf)
    with np.errstate(over="ignore"):
        value = float(values.mean())
        variance = float(np.square(values - value).mean())
    return Estimate(value, math.sqrt(variance / (len(values) - 1)) if len(values) > 1 else math.inf)


def share(flags: Flags) -> Estimate:
    """The share of flags (n,) that are set, and its standard error, sqrt(p (1 - p) / (n - 1))."""
    return mean(flags.astype(np.float64))


def quantile(ordered: Doubles, fraction: float) -> float:
    """The value at fraction * (n - 1) of ordered values (n,), between neighbours by linear interpolation.

    >>> quantile(np.array([1.0, 2.0, 4.0, 8.0]), 0.5)
    3.0
    """
    place = fraction * (len(ordered) - 1)
    below = int(place)
    weight = place - below
    if not weight:  # 0 * inf would be NaN
        return float(ordered[below])
    return float((1 - weight) * ordered[below] + weight * ordered[below + 1])


def spread(values: Doubles) -> Spread:
    """Mean and quantiles of values (n,)."""
    ordered = np.sort(values)
    return Spread(mean(values), {fraction: quantile(ordered, fraction) for fraction in FRACTIONS})


def perplexities(base: Doubles, other: Doubles) -> PerplexityFigures:
    """Perplexities of both sides' negative log-probabilities, (n,) each.

    llama-perplexity carries errors on by derivatives: that of exp(x) is exp(x) times that of x, and the covariance of
    both sides is taken off where they are subtracted. The error of the mean of differences is the same number.
    """
    of_base, of_other = mean(base), mean(other)
    log_ratio = mean(other - base) if finite(of_base, of_other) else Estimate(math.inf, math.inf)
    base_perplexity, other_perplexity = exponential(of_base), exponential(of_other)
    return PerplexityFigures(
        other=other_perplexity,
        base=base_perplexity,
        correlation=correlation(base, other),
        log_ratio=log_ratio,
        ratio=exponential(log_ratio),
        difference=perplexity_difference(base, other, base_perplexity.value, other_perplexity.value),
    )


def perplexity_difference(base: Doubles, other: Doubles, of_base: float, of_other: float) -> Estimate:
    """How much larger the other perplexity is, from both negative log-probabilities (n,) and both perplexities."""
    if not (math.isfinite(of_base) and math.isfinite(of_other)):
        return Estimate(math.inf, math.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        return Estimate(of_other - of_base, mean(of_other * other - of_base * base).error)


def exponential(of: Estimate) -> Estimate:
    """An estimate's exponential, its error by the derivative; infinite beyond float64."""
    try:
        value = math.exp(of.value)
    except OverflowError:
        return Estimate(math.inf, math.inf)
    return Estimate(value, value * of.error if math.isfinite(of.error) else math.inf)


def correlation(base: Doubles, other: Doubles) -> float | None:
    """Pearson's correlation of two series (n,), None where one does not vary or is infinite.

    >>> correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
    1.0
    """
    if not (np.isfinite(base).all() and np.isfinite(other).all()):
        return None
    base, other = base - base.mean(), other - other.mean()
    scale = math.sqrt(float(base @ base) * float(other @ other))
    return max(-1.0, min(1.0, float(base @ other) / scale)) if scale else None


def probabilities(differences: Doubles) -> ProbabilityFigures:
    """Statistics of differences of probabilities (n,)."""
    square = mean(np.square(differences))
    rms = math.sqrt(square.value)
    return ProbabilityFigures(spread(differences), Estimate(rms, 0.5 / rms * square.error if rms else square.error))


def finite(*estimates: Estimate) -> bool:
    """Whether all of these have a value."""
    return all(math.isfinite(estimate.value) for estimate in estimates)


def json_number(value: float) -> float | None:
    """A number of JSON, which has neither NaN nor infinities."""
    return value if math.isfinite(value) else None
