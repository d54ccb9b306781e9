"""The forward pass of Phi-3 and Phi-4 in torch, float32: what every tensor is for, on one page.

A decoder of pre-norm blocks (arXiv 2404.14219): RMS norm (arXiv 1910.07467), grouped-query attention (2305.13245)
with rotary positions (2104.09864), SwiGLU (2002.05202). Both sides of a comparison run it; which weights they are and
where they come from is not known here. Linear maps are callables, so that a matrix need not be in memory.

The tokens of several sequences lie one after another in x, because linear maps take them all at once; attention
keeps them apart. Left out: dropout, biases and mixtures of experts, which Phi-4 does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from phi4conv.reference.hyperparameters import Rope

Linear = Callable[[Tensor], Tensor]  # (tokens, inputs) -> (tokens, outputs)


@dataclass(frozen=True)
class Layer:
    """One block. The norms are vectors (hidden,); the rest are linear maps."""

    attn_norm: Tensor
    attn_qkv: Linear  # hidden -> (heads + 2 kv heads) * head size: q, then k, then v
    attn_output: Linear  # heads * head size -> hidden
    ffn_norm: Tensor
    ffn_gate_up: Linear  # hidden -> 2 * feed forward: gate, then up
    ffn_down: Linear  # feed forward -> hidden


@dataclass(frozen=True)
class Attention:
    """How a model attends. window is None where every token sees all those before it."""

    head_count: int
    kv_head_count: int
    head_size: int
    rope: Rope
    window: int | None


@dataclass
class Stretch:
    """Some tokens of one sequence: those in x, and in one layer the keys and values of those before them.

    count tokens stand in x; context_length chooses the LongRoPE factors; keys and values are
    (tokens, kv heads, head size), rotated already, None at a sequence's beginning.
    """

    count: int
    context_length: int
    keys: Tensor | None = None
    values: Tensor | None = None


def run_layer(x: Tensor, layer: Layer, attention: Attention, eps: float, stretches: Sequence[Stretch]) -> Tensor:
    """One block: x (tokens, hidden) -> (tokens, hidden). The stretches keep the keys and values that it makes."""
    x = x + layer.attn_output(attend(layer.attn_qkv(rms_norm(x, layer.attn_norm, eps)), attention, stretches))
    gate, up = layer.ffn_gate_up(rms_norm(x, layer.ffn_norm, eps)).chunk(2, dim=-1)
    return x + layer.ffn_down(silu(gate) * up)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Every row of x (tokens, hidden) scaled to a root mean square of 1, then by weight (hidden,)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def attend(qkv: Tensor, attention: Attention, stretches: Sequence[Stretch]) -> Tensor:
    """Causal grouped-query attention: qkv (tokens, (heads + 2 kv heads) * head) -> (tokens, heads * head)."""
    heads, kv_heads, size = attention.head_count, attention.kv_head_count, attention.head_size
    outputs = []
    counts = [stretch.count for stretch in stretches]
    for part, stretch in zip(torch.split(qkv, counts), stretches, strict=True):
        parted = torch.unflatten(part, -1, (heads + 2 * kv_heads, size))  # (tokens, heads, head)
        q, k, v = torch.split(parted, [heads, kv_heads, kv_heads], dim=1)
        past = 0 if stretch.keys is None else len(stretch.keys)
        positions = torch.arange(past, past + len(part), device=qkv.device)
        q, k = (rotate(each, positions, attention.rope, stretch.context_length) for each in (q, k))
        if stretch.keys is not None and stretch.values is not None:
            k, v = torch.cat([stretch.keys, k]), torch.cat([stretch.values, v])
        stretch.keys, stretch.values = k, v
        distance = positions[:, None] - torch.arange(len(k), device=qkv.device)  # (tokens, tokens seen)
        seen = distance >= 0 if attention.window is None else (distance >= 0) & (distance < attention.window)
        # Query heads share keys in groups: head h uses kv head h // (heads // kv heads).
        k, v = (each.repeat_interleave(heads // kv_heads, dim=1) for each in (k, v))
        # softmax(q k^T / sqrt(head size)) v for a batch of one: torch has kernels without (tokens, seen) scores in
        # memory for four dimensions only.
        q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))  # (1, heads, tokens, head)
        outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=seen)[0].transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def rotate(x: Tensor, positions: Tensor, rope: Rope, context_length: int) -> Tensor:
    """Rotary positions in NEOX order, component i of the first n paired with i + n/2: x (tokens, heads, head)."""
    half = rope.dimension_count // 2
    # Angles in float64: a float32 position * frequency is off by 1e-3 at position 16000.
    frequencies = rope.base ** (-torch.arange(half, dtype=torch.float64) / half)
    factors = rope.factors(context_length)
    if factors is not None:
        frequencies = frequencies / torch.tensor(factors, dtype=torch.float64)
    angles = positions.cpu().double()[:, None] * rope.position_scale * frequencies  # (tokens, half)
    cos, sin = (
        (rope.magnitude * values).float().to(x.device)[:, None] for values in (angles.cos(), angles.sin())
    )  # (tokens, 1, half)
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
