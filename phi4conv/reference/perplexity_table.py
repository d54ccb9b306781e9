"""LogitFigures as the tables that `llama-perplexity --kl-divergence` prints: its words, order, digits and units.

So two tables can be laid side by side. What it does not print (the overlap of the five likeliest tokens, logits) is
left out, and so are its rows on perplexity where no position is scored. It prints nothing for fewer than 100 tokens;
here a table of few positions is as long as any, and its errors tell how little it is worth. logit_figures.py says why
last digits differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from phi4conv.reference.logit_figures import (
    Estimate,
    LogitFigures,
    PerplexityFigures,
    ProbabilityFigures,
    Spread,
)

PERPLEXITY, KL_DIVERGENCE, TOKEN_PROBABILITY = (
    "Perplexity statistics",
    "KL divergence statistics",
    "Token probability statistics",
)

# From the largest to the smallest, as perplexity.cpp words them; {} stands for "KLD" or "Δp".
KL_ROWS = (
    ("Maximum {}", 1.0),
    ("99.9%   {}", 0.999),
    ("99.0%   {}", 0.99),
    ("95.0%   {}", 0.95),
    ("90.0%   {}", 0.9),
    ("Median  {}", 0.5),
    ("10.0%   {}", 0.1),
    (" 5.0%   {}", 0.05),
    (" 1.0%   {}", 0.01),
    (" 0.1%   {}", 0.001),
    ("Minimum {}", 0.0),
)
PROBABILITY_ROWS = (*KL_ROWS[:5], ("75.0%   {}", 0.75), KL_ROWS[5], ("25.0%   {}", 0.25), *KL_ROWS[6:])


@dataclass(frozen=True)
class TableRow:
    """One line of the tables.

    Attributes:
        section: The heading that it stands under, "KL divergence statistics".
        name: Its words, "99.9%   KLD".
        value: Its number, in unit; None for a correlation that does not exist.
        error: The standard error, in unit; None where llama-perplexity gives none.
        unit: "%" or nothing.
        text: The line as llama-perplexity prints it.
    """

    section: str
    name: str
    value: float | None
    error: float | None
    unit: str
    text: str


def perplexity_table(figures: LogitFigures) -> list[TableRow]:
    """The rows of llama-perplexity's three tables, in their order."""
    rows = [] if figures.perplexity is None else list(perplexity_rows(figures.perplexity))
    rows += kl_rows(figures.kl)
    if figures.probability is not None:
        rows += probability_rows(figures.probability)
    return [*rows, percent_estimate("Same top p", figures.same_top)]


def perplexity_rows(figures: PerplexityFigures) -> Iterator[TableRow]:
    """The rows under "Perplexity statistics"."""
    yield perplexity_row("Mean PPL(Q)", figures.other)
    yield perplexity_row("Mean PPL(base)", figures.base)
    name = "Cor(ln(PPL(Q)), ln(PPL(base)))"
    if figures.correlation is None:
        yield TableRow(PERPLEXITY, name, None, None, "%", f"{name}:    n/a")
    else:
        value = 100 * figures.correlation
        yield TableRow(PERPLEXITY, name, value, None, "%", f"{name}: {value:6.2f}%")
    yield perplexity_row("Mean ln(PPL(Q)/PPL(base))", figures.log_ratio)
    yield perplexity_row("Mean PPL(Q)/PPL(base)", figures.ratio)
    yield perplexity_row("Mean PPL(Q)-PPL(base)", figures.difference)


def perplexity_row(name: str, estimate: Estimate) -> TableRow:
    """A row "Mean PPL(Q)                   :   1.000000 ±   0.000000"."""
    value, error = estimate.value, estimate.error
    return TableRow(PERPLEXITY, name, value, error, "", f"{name:<30}: {value:10.6f} ± {error:10.6f}")


def kl_rows(kl: Spread) -> Iterator[TableRow]:
    """The rows under "KL divergence statistics"."""
    value, error = kl.mean.value, kl.mean.error
    yield TableRow(KL_DIVERGENCE, "Mean    KLD", value, error, "", f"Mean    KLD: {value:10.6f} ± {error:10.6f}")
    for words, fraction in KL_ROWS:
        name, value = words.format("KLD"), kl.quantiles[fraction]
        yield TableRow(KL_DIVERGENCE, name, value, None, "", f"{name}: {value:10.6f}")


def probability_rows(figures: ProbabilityFigures) -> Iterator[TableRow]:
    """The rows of Δp under "Token probability statistics"."""
    yield percent_estimate("Mean    Δp", figures.difference.mean)
    for words, fraction in PROBABILITY_ROWS:
        name, value = words.format("Δp"), 100 * figures.difference.quantiles[fraction]
        yield TableRow(TOKEN_PROBABILITY, name, value, None, "%", f"{name}: {value:6.3f}%")
    yield percent_estimate("RMS Δp    ", figures.rms)


def percent_estimate(name: str, estimate: Estimate) -> TableRow:
    """A row "Same top p: 91.559 ± 0.493 %"."""
    value, error = 100 * estimate.value, 100 * estimate.error
    text = f"{name}: {value:6.3f} ± {error:5.3f} %"
    return TableRow(TOKEN_PROBABILITY, name.rstrip(), value, error, "%", text)
