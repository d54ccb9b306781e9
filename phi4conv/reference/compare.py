"""Two models' logits and hidden states held against each other.

Logits come in chunks of the vocabulary, so that 100,352 of them for thousands of positions never lie in memory at
once; of every position a few sums are kept, in float64. What the figures mean stands in logit_figures.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phi4conv.reference.logit_figures import TOP, LogitFigures, PositionFigures

__all__ = ["HiddenError", "LogitComparison", "LogitFigures", "PositionFigures", "hidden_error"]

# Numbers that are worked on at once: each float64 copy of them takes 8 MB.
BLOCK_NUMBERS = 1 << 20

ID_BITS = 32
ID_MASK = (1 << ID_BITS) - 1
NO_KEY = torch.iinfo(torch.int64).min


class LogitComparison:
    """Both sides' logits at the same positions, chunk after chunk of the vocabulary.

    One pass suffices: KL(base || other) = sum p_i (b_i - o_i) - logsumexp(b) + logsumexp(o), where p_i is the base's
    softmax. The three sums over the vocabulary are kept relative to the largest logit so far, and scaled when a larger
    one comes (arXiv 1805.02867).
    """

    def __init__(self, targets: Sequence[int | None]) -> None:
        """Expect logits for as many positions as there are targets.

        Args:
            targets: For every position the token that follows, whose probability makes the perplexity; None where it is
                not known or not to be scored. One that no chunk holds has probability 0 on both sides.

        Raises:
            ValueError: There are no positions, or a target is negative.
        """
        if not targets:
            raise ValueError("no positions to compare")
        if any(target is not None and target < 0 for target in targets):
            raise ValueError("a target is a token's id, from 0")
        count = len(targets)
        self._targets = torch.tensor([-1 if target is None else target for target in targets])
        self._next_id = 0
        self._base, self._other = Side(count), Side(count)
        self._weighted = torch.zeros(count, dtype=torch.float64)  # sum of exp(b - largest b) * (b - o)
        self._ruled_out = torch.zeros(count, dtype=torch.bool)
        self._same_top = torch.zeros(count, dtype=torch.bool)
        self._largest_difference = torch.zeros(count, dtype=torch.float64)

    def add(self, start: int, base: Tensor, other: Tensor) -> None:
        """Take the logits of the tokens from id start on: (positions, ids of the chunk), float32, on any device.

        Raises:
            ValueError: The shapes do not fit, or the chunk is not the next one.
        """
        if base.shape != other.shape or base.ndim != 2 or len(base) != len(self._targets):
            shapes = f"{tuple(base.shape)} and {tuple(other.shape)}"
            raise ValueError(f"logits ({len(self._targets)}, ids) expected from both sides, found {shapes}")
        if start != self._next_id:
            raise ValueError(f"logits from id {self._next_id} on expected, found those from id {start}")
        ids = base.shape[1]
        if not ids:
            return
        self._next_id += ids
        here = (self._targets >= start) & (self._targets < start + ids)
        columns = self._targets[here] - start
        self._base.target[here] = target_logits(base, here, columns)
        self._other.target[here] = target_logits(other, here, columns)
        for rows in row_blocks(len(base), ids):
            self._add_rows(rows, start, *(side[rows].detach().cpu().float() for side in (base, other)))

    def _add_rows(self, rows: slice, start: int, base: Tensor, other: Tensor) -> None:
        """Some positions of a chunk; base, other: float32 (rows, ids)."""
        self._base.keep_top(rows, start, base)
        self._other.keep_top(rows, start, other)
        base, other = base.double(), other.double()
        base_before, other_before = self._base.largest[rows].clone(), self._other.largest[rows].clone()
        terms, scale = self._base.add(rows, base)
        self._other.add(rows, other)

        # A token has the largest logit on both sides as long as neither side finds a larger one.
        base_now, other_now = self._base.largest[rows], self._other.largest[rows]
        still = self._same_top[rows] & (base_now == base_before) & (other_now == other_before)
        found = ((base == base_now[:, None]) & (other == other_now[:, None])).any(dim=1)
        self._same_top[rows] = still | found

        # NaN stands where both sides rule a token out: no difference. It also does where a side is not finite.
        difference = (base - other).nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)
        self._largest_difference[rows] = self._largest_difference[rows].maximum(difference.abs().amax(dim=1))
        self._ruled_out[rows] |= difference.amax(dim=1) == math.inf
        # Where the base alone rules a token out, p * (b - o) has the limit 0.
        difference.masked_fill_(difference.isinf(), 0.0)
        self._weighted[rows] = self._weighted[rows] * scale + (terms * difference).sum(dim=1)

    def positions(self) -> PositionFigures:
        """The comparison of every position, over the vocabulary that was added."""
        base, other = self._base, self._other
        both = base.finite & other.finite
        divergence = self._weighted / base.total - base.log_sum + other.log_sum
        # The sum of rounding errors may be a trifle below zero; a divergence is not.
        kl = divergence.clamp_min(0.0).where(both & ~self._ruled_out, math.inf)
        scored = self._targets >= 0
        ours, theirs = base.top_ids(), other.top_ids()
        shared = ((ours[:, :, None] == theirs[:, None, :]) & (ours >= 0)[:, :, None]).sum(dim=(1, 2))
        return PositionFigures(
            kl=kl.numpy(),
            base_log_probability=base.log_probability().where(scored, math.nan).numpy(),
            other_log_probability=other.log_probability().where(scored, math.nan).numpy(),
            base_top=ours[:, 0].numpy(),
            other_top=theirs[:, 0].numpy(),
            base_margin=base.margin().numpy(),
            same_top=(self._same_top & both).numpy(),
            top_5_overlap=(shared.double() / (ours >= 0).sum(dim=1).clamp_min(1)).numpy(),
            largest_difference=self._largest_difference.where(both, math.inf).numpy(),
            base_finite=base.finite.numpy(),
            other_finite=other.finite.numpy(),
        )

    def figures(self) -> LogitFigures:
        """The statistics over all positions."""
        return self.positions().figures()


class Side:
    """What is kept of one side's logits, (positions,) each.

    Attributes:
        largest: The largest logit so far; NaN once there was one.
        total: The sum of exp(logit - largest).
        target: The logit of the token that follows.
    """

    def __init__(self, count: int) -> None:
        self.largest = torch.full((count,), -math.inf, dtype=torch.float64)
        self.total = torch.zeros(count, dtype=torch.float64)
        self.target = torch.full((count,), -math.inf, dtype=torch.float64)
        self._top_keys = torch.full((count, TOP), NO_KEY, dtype=torch.int64)

    @property
    def finite(self) -> Tensor:
        """Where the logits make probabilities: none is NaN or +inf, and not all of them are -inf."""
        return self.largest.isfinite()

    @property
    def log_sum(self) -> Tensor:
        """The natural logarithm of the sum of exp(logit)."""
        return self.largest + self.total.log()

    def log_probability(self) -> Tensor:
        """The natural logarithm of the target's probability; -inf where there are no probabilities."""
        return (self.target - self.log_sum).where(self.finite, -math.inf)

    def add(self, rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Take logits, float64 (rows, ids).

        Returns exp(logit - largest), (rows, ids), and what earlier sums of such terms are to be multiplied by, (rows,).
        """
        before = self.largest[rows].clone()
        largest = before.maximum(logits.amax(dim=1))
        # Any finite number does while all logits are -inf: exp is 0 then, where -inf - -inf is NaN.
        shift = largest.where(largest > -math.inf, 0.0)
        terms, scale = (logits - shift[:, None]).exp_(), (before - shift).exp()
        self.total[rows] = self.total[rows] * scale + terms.sum(dim=1)
        self.largest[rows] = largest
        return terms, scale

    def keep_top(self, rows: slice, start: int, logits: Tensor) -> None:
        """Take note of the likeliest tokens; logits: float32 (rows, ids), the first of them of the token start."""
        keys = torch.cat([self._top_keys[rows], order_keys(logits, start)], dim=1)
        self._top_keys[rows] = keys.topk(TOP, dim=1).values

    def margin(self) -> Tensor:
        """How far the largest logit is above the next, float64 (positions,); NaN where there are no probabilities."""
        first, second = logits_of_keys(self._top_keys[:, :2]).double().unbind(dim=1)
        return (first - second).where(self.finite, math.nan)

    def top_ids(self) -> Tensor:
        """The likeliest tokens in falling order, int64 (positions, TOP).

        Those with the lowest ids come first of equally likely ones. -1 stands where there are no more tokens, or no
        probabilities.
        """
        known = self._top_keys > order_keys(torch.tensor([[-math.inf]]), 0)
        return (ID_MASK - (self._top_keys & ID_MASK)).where(known & self.finite[:, None], -1)


def order_keys(logits: Tensor, start: int) -> Tensor:
    """One integer for each logit, int64 (rows, ids): the larger the likelier, and the larger the lower the id.

    The upper half orders float32 by value. Its bits do so by themselves, as an integer, where the sign is +; where it
    is -, those after the sign are turned over. The lower half is the id, counted backwards. topk of such keys is
    decided even where logits are equal. logits: float32 (rows, ids), the first of them of the token start.
    """
    bits = (logits + 0.0).view(torch.int32)  # -0.0 becomes 0.0, which is equal to it
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ids = torch.arange(start, start + logits.shape[1])
    return (ordered.long() << ID_BITS) | (ID_MASK - ids)


def logits_of_keys(keys: Tensor) -> Tensor:
    """The logits of keys that order_keys made, float32 of their shape; -inf for NO_KEY."""
    ordered = (keys >> ID_BITS).int()
    logits = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return logits.where(keys != NO_KEY, -math.inf)


def target_logits(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The logits of some rows (a bool for each), each at its own column: float64 (columns,)."""
    places = rows.nonzero()[:, 0].to(logits.device)
    return logits.detach()[places, columns.to(logits.device)].cpu().float().double()


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Rows in groups of at most BLOCK_NUMBERS numbers, and at least one row."""
    step = max(1, BLOCK_NUMBERS // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


@dataclass(frozen=True)
class HiddenError:
    """How far one hidden state is from another.

    In Phi's states a few tokens, often the first, are a thousand times as large as the others: relative and cosine are
    theirs. The other two figures count every token alike.

    Attributes:
        relative: Norm of the difference over norm of the expected state; 0 where both are zero, inf where only the
            expected one is or a number is not finite.
        cosine: Of the angle between both states taken as one vector, -1 to 1; 1 where both are zero; 0 where one is or
            a number is not finite.
        median_relative: The median of the tokens' own relative errors (of an even number the mean of the middle two).
        mean_cosine: The mean of the tokens' own cosines.
        not_finite: In how many tokens' states, of either side, a number is NaN or infinite.
    """

    relative: float
    cosine: float
    median_relative: float
    mean_cosine: float
    not_finite: int


def hidden_error(expected: Tensor, found: Tensor) -> HiddenError:
    """Compare two hidden states, (tokens, hidden) each, on any device; sums are float64.

    Raises:
        ValueError: The shapes differ, or the states are empty.
    """
    if expected.shape != found.shape or expected.ndim != 2 or not expected.numel():
        raise ValueError(
            f"two states (tokens, hidden) of one shape expected, found {tuple(expected.shape)} and {tuple(found.shape)}"
        )
    blocks = [token_sums(expected[rows], found[rows]) for rows in row_blocks(*expected.shape)]
    tokens = torch.cat(blocks, dim=1)  # (4, tokens): |difference|², |expected|², |found|², expected · found
    relative, cosine = relative_and_cosine(tokens)
    all_relative, all_cosine = relative_and_cosine(tokens.sum(dim=1, keepdim=True))
    return HiddenError(
        relative=all_relative.item(),
        cosine=all_cosine.item(),
        median_relative=median(relative),
        mean_cosine=cosine.mean().item(),
        not_finite=int((~tokens.isfinite().all(dim=0)).sum()),
    )


def token_sums(expected: Tensor, found: Tensor) -> Tensor:
    """For each token |found - expected|², |expected|², |found|², and the scalar product: float64 (4, tokens)."""
    a, b = expected.detach().cpu().double(), found.detach().cpu().double()
    return torch.stack([(b - a).square().sum(1), a.square().sum(1), b.square().sum(1), (a * b).sum(1)])


def relative_and_cosine(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Relative error and cosine from what token_sums gives, float64 (n,) each."""
    difference, expected, found, product = sums
    relative = (difference / expected).sqrt().where(difference > 0, 0.0)
    cosine = (product / (expected * found).sqrt()).clamp(-1.0, 1.0)
    cosine = cosine.where((expected > 0) & (found > 0), ((expected == 0) & (found == 0)).double())
    good = sums.isfinite().all(dim=0)
    return relative.where(good, math.inf), cosine.where(good, 0.0)


def median(values: Tensor) -> float:
    """The median of values (n,), which may be infinite but not NaN; of an even number the mean of the middle two."""
    ordered = values.sort().values
    count = len(ordered)
    return ((ordered[(count - 1) // 2] + ordered[count // 2]) / 2).item()
