"""How far a good file's answers may be from its source's, by the types of its weights.

The figures are measured, see docs/verify.md: some five times the largest divergence of good files among several models,
for other models and texts differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType

from phi4conv.reference.parts import EMBEDDING, HEAD, Model, Part

TYPE = GGMLQuantizationType


@dataclass(frozen=True)
class Thresholds:
    """The most that a good file's answers differ.

    Attributes:
        max_kl: Mean KL divergence of the next token's distribution, in nats.
        min_top1: Share of positions at which both sides find the same token likeliest, among those where the source
            is decided (see logit_figures.DECIDED).
        kl_asked_for: Whether max_kl is the user's own, and no default.
        top1_asked_for: Whether min_top1 is.
    """

    max_kl: float
    min_top1: float
    kl_asked_for: bool = False
    top1_asked_for: bool = False

    def or_asked_for(self, max_kl: float | None, min_top1: float | None) -> Thresholds:
        """These, unless the user asked for others."""
        return Thresholds(
            self.max_kl if max_kl is None else max_kl,
            self.min_top1 if min_top1 is None else min_top1,
            kl_asked_for=max_kl is not None,
            top1_asked_for=min_top1 is not None,
        )


DEFAULTS: Mapping[GGMLQuantizationType, Thresholds] = {
    TYPE.F32: Thresholds(0.00001, 0.99),
    TYPE.F16: Thresholds(0.0001, 0.98),
    TYPE.BF16: Thresholds(0.001, 0.97),
    TYPE.Q8_0: Thresholds(0.01, 0.95),
    TYPE.Q6_K: Thresholds(0.03, 0.92),
    TYPE.Q5_K: Thresholds(0.1, 0.90),
    TYPE.Q5_1: Thresholds(0.1, 0.90),
    TYPE.Q5_0: Thresholds(0.12, 0.90),
    TYPE.Q4_K: Thresholds(0.3, 0.85),
    TYPE.Q4_1: Thresholds(0.4, 0.80),
    TYPE.Q4_0: Thresholds(0.4, 0.80),
    TYPE.Q3_K: Thresholds(1.0, 0.75),
    TYPE.Q2_K: Thresholds(2.0, 0.60),
}


def prevailing_type(model: Model) -> GGMLQuantizationType:
    """The type of most weights in the layers; of all weights where there are no layers."""
    counts = Counter[GGMLQuantizationType]()
    for part in model.parts.values():
        if part.qtype is not None and len(part.shape) > 1:
            counts[part.qtype] += math.prod(part.shape) * (1000 if part.name.startswith("blk.") else 1)
    return counts.most_common(1)[0][0] if counts else TYPE.F32


def default_thresholds(model: Model) -> Thresholds:
    """What a good file with this mix of types keeps.

    Divergences of small errors add up, so that every type in the layers counts by its share of their weights. An
    embedding or a head of a coarser type decides alone: everything goes through it.
    """
    layers = Counter[GGMLQuantizationType]()
    for part in matrices(model):
        if part.name not in {EMBEDDING, HEAD}:
            layers[part.qtype or TYPE.F32] += math.prod(part.shape)
    total = sum(layers.values())
    parts = [DEFAULTS[part.qtype or TYPE.F32] for part in matrices(model) if part.name in {EMBEDDING, HEAD}]
    if total:
        max_kl = sum(count * DEFAULTS[qtype].max_kl for qtype, count in layers.items()) / total
        min_top1 = sum(count * DEFAULTS[qtype].min_top1 for qtype, count in layers.items()) / total
        parts.append(Thresholds(max_kl, min_top1))
    # Three digits are as many as people read; a limit of 0.00001 must not become 0.
    return Thresholds(
        float(f"{max(part.max_kl for part in parts):.3g}"), round(min(part.min_top1 for part in parts), 3)
    )


def matrices(model: Model) -> Iterator[Part]:
    """Every part that is no norm."""
    return (part for part in model.parts.values() if len(part.shape) > 1)
