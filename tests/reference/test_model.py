"""The forward pass by itself: each piece of it against a sum done by hand, and kept keys against one pass."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="the forward pass needs torch")

import torch

from phi4conv.reference.hyperparameters import Rope
from phi4conv.reference.model import Attention, Layer, Stretch, attend, rms_norm, rotate, run_layer

PLAIN = Rope(dimension_count=4, base=100.0, original_context_length=8)
LONG = replace(PLAIN, short_factors=(1.0, 2.0), long_factors=(4.0, 5.0), magnitude=1.25)
TWO_GROUPS = Attention(head_count=4, kv_head_count=2, head_size=6, rope=PLAIN, window=None)


def random(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotated(values: list[float], position: int, rope: Rope, context_length: int = 1) -> list[float]:
    x = torch.tensor(values)[None, None]  # one token, one head
    result: list[float] = rotate(x, torch.tensor([position]), rope, context_length)[0, 0].tolist()
    return result


def test_rms_norm_is_what_the_paper_says() -> None:
    # The mean square of 3 and 4 is 12.5; with eps of 3.5 the root is 4.
    assert rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, 10.0]), 3.5).tolist() == [[1.5, 10.0]]


def test_components_are_paired_across_the_halves() -> None:
    """Pair 0 is components 0 and 2 and turns by the position; pair 1 is 1 and 3 and turns ten times slower."""
    first, second = 3.0, 0.3
    expected = [math.cos(first), -math.sin(second), math.sin(first), math.cos(second)]
    assert rotated([1.0, 0.0, 0.0, 1.0], 3, PLAIN) == pytest.approx(expected, abs=1e-6)


def test_position_zero_does_not_turn() -> None:
    assert rotated([1.0, 2.0, 3.0, 4.0, 5.0], 0, PLAIN) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_components_beyond_the_rotated_ones_pass_unchanged() -> None:
    found = rotated([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 7, LONG)
    assert found[4:] == [5.0, 6.0]
    assert found[:4] == pytest.approx(rotated([1.0, 2.0, 3.0, 4.0], 7, LONG))


@pytest.mark.parametrize(("context_length", "factor"), [(8, 2.0), (9, 5.0)])
def test_the_context_length_chooses_longropes_factors(context_length: int, factor: float) -> None:
    angle = 3 * 0.1 / factor
    found = rotated([0.0, 1.0, 0.0, 0.0], 3, LONG, context_length)
    assert found == pytest.approx([0.0, 1.25 * math.cos(angle), 0.0, 1.25 * math.sin(angle)], abs=1e-6)


def test_a_position_scale_turns_as_far_as_a_nearer_position() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    assert rotated(values, 12, replace(PLAIN, position_scale=0.25)) == rotated(values, 3, PLAIN)


def test_angles_stay_exact_far_into_a_text() -> None:
    position = 131_071
    found = rotated([1.0, 0.0, 0.0, 0.0], position, PLAIN)
    assert found[0] == pytest.approx(math.cos(position), abs=1e-7)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = random(1, 1, 4), random(1, 1, 4, seed=6)
    scores = [
        float((rotate(q, torch.tensor([at + 5]), PLAIN, 1) * rotate(k, torch.tensor([at]), PLAIN, 1)).sum())
        for at in (0, 1, 1000)
    ]
    assert scores[1:] == pytest.approx([scores[0]] * 2, abs=1e-5)


def by_hand(qkv: torch.Tensor, attention: Attention) -> torch.Tensor:
    """One sequence, head by head and token by token."""
    heads, kv_heads, size = attention.head_count, attention.kv_head_count, attention.head_size
    parted = qkv.reshape(len(qkv), heads + 2 * kv_heads, size).double()
    positions = torch.arange(len(qkv))
    turned = rotate(parted, positions, attention.rope, len(qkv))
    out = torch.zeros(len(qkv), heads, size, dtype=torch.float64)
    for head in range(heads):
        kv = heads + head // (heads // kv_heads)
        for token in range(len(qkv)):
            first = 0 if attention.window is None else max(0, token + 1 - attention.window)
            scores = turned[first : token + 1, kv] @ turned[token, head] / math.sqrt(size)
            out[token, head] = scores.softmax(0) @ parted[first : token + 1, kv + kv_heads]
    return out.flatten(1)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_attention_is_what_is_computed_by_hand(window: int | None) -> None:
    attention = replace(TWO_GROUPS, window=window)
    qkv = random(9, 8 * 6)
    found = attend(qkv, attention, [Stretch(9, 9)])
    assert torch.allclose(found.double(), by_hand(qkv, attention), atol=1e-6)


def test_sequences_in_one_call_do_not_see_each_other() -> None:
    qkv = random(9, 8 * 6)
    together = attend(qkv, TWO_GROUPS, [Stretch(4, 4), Stretch(5, 5)])
    apart = torch.cat([attend(qkv[:4], TWO_GROUPS, [Stretch(4, 4)]), attend(qkv[4:], TWO_GROUPS, [Stretch(5, 5)])])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("window", [None, 3])
def test_kept_keys_and_values_give_what_one_pass_gives(window: int | None) -> None:
    attention = replace(TWO_GROUPS, window=window)
    qkv = random(9, 8 * 6)
    stretch = Stretch(9, 9)
    found = []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        stretch.count = stop - start
        found.append(attend(qkv[start:stop], attention, [stretch]))
    assert torch.allclose(torch.cat(found), attend(qkv, attention, [Stretch(9, 9)]), atol=1e-6)
    assert stretch.keys is not None
    assert stretch.keys.shape == (9, 2, 6)


def test_a_block_adds_attention_and_then_swiglu() -> None:
    """With attention that gives nothing, what is left is x + down(silu(gate) * up) of the normed x."""
    hidden, ffn = 4, 3
    gate_up, down = random(2 * ffn, hidden), random(hidden, ffn, seed=7)
    layer = Layer(
        attn_norm=torch.ones(hidden),
        attn_qkv=lambda x: x.new_ones(len(x), 8 * 6),
        attn_output=lambda x: x.new_zeros(len(x), hidden),
        ffn_norm=torch.full((hidden,), 2.0),
        ffn_gate_up=lambda x: x @ gate_up.T,
        ffn_down=lambda x: x @ down.T,
    )
    x = random(2, hidden, seed=8)
    normed = 2 * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    gate, up = normed @ gate_up[:ffn].T, normed @ gate_up[ffn:].T
    expected = x + (gate * gate.sigmoid() * up) @ down.T
    assert torch.allclose(run_layer(x, layer, TWO_GROUPS, 1e-5, [Stretch(2, 2)]), expected, atol=1e-6)
