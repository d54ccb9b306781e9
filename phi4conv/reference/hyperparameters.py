"""What a run needs to know of a model besides its weights; both sides of a comparison read it for themselves.

The file's side is read by file_model.py from GGUF metadata, the source's by source_model.py from config.json.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (arXiv 2104.09864) in NEOX order, with LongRoPE (arXiv 2402.13753).

    Attributes:
        dimension_count: How many of a head's components rotate, an even number; the rest pass unchanged.
        base: theta; pair i of n/2 turns by position * base ** (-2 i / n).
        original_context_length: In tokens; up to it the short factors hold, beyond it the long ones.
        short_factors: What each pair's frequency is divided by, dimension_count / 2 of them; None for plain rope.
        long_factors: The same, for contexts longer than the original one.
        magnitude: Cosine and sine are multiplied by it: LongRoPE's attention factor.
        position_scale: Positions are multiplied by it: llama.cpp's freq_scale, the inverse of rope.scaling.factor.
    """

    dimension_count: int
    base: float
    original_context_length: int
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    magnitude: float = 1.0
    position_scale: float = 1.0

    def factors(self, context_length: int) -> tuple[float, ...] | None:
        """The LongRoPE factors for a context of so many tokens; None for plain rope."""
        return self.long_factors if context_length > self.original_context_length else self.short_factors


@dataclass(frozen=True)
class Hyperparameters:
    """The shape of a phi3 model. Sizes are in components, lengths in tokens.

    sliding_window is None where attention sees everything before it.
    """

    layer_count: int
    hidden_size: int
    feed_forward_size: int
    head_count: int
    kv_head_count: int
    head_size: int
    rms_norm_eps: float
    rope: Rope
    context_length: int
    sliding_window: int | None
