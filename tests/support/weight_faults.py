"""Faults that ruin a good file: each one a real file that llama.cpp computes nonsense from, or refuses.

Layers are those of the tiny checkpoint (0 to 3), rows those of its shapes: qkv (384, 256) with 8 heads and 2 kv heads
of 32, attn_output (256, 256), ffn_up (1024, 256), ffn_down (256, 512), embedding and head (1024, 256).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from gguf import Keys
from good_files import LLAMA_ARCH_KINDS, MINI_KINDS
from llama_arch import permuted_rows, unpermuted_rows
from weight_changes import (
    all_equal,
    block_not_a_number,
    block_pushed,
    block_zeroed,
    bytes_lost,
    bytes_replaced,
    columns_reversed,
    columns_rolled,
    halves_interleaved,
    halves_swapped,
    heads_reversed,
    noisy,
    qkv_grouped,
    qkv_ordered,
    raised,
    row_copied,
    rows_exchanged,
    rows_pulled_up,
    rows_pushed_down,
    rows_reversed,
    rows_rolled,
    scaled,
    through,
    transposed,
    unrelated,
    with_value,
    words_swapped,
)
from weight_fault import (
    BLOCK_COUNT,
    LAYERS,
    TINY,
    Effect,
    Fault,
    combined,
    copied,
    damage,
    exchanged,
    layer_added,
    layer_copied,
    layer_lost,
    layers_exchanged,
    of,
    pair,
    pair_missing,
    qkv,
    qkv_parts,
    reshaped,
    tensor_added,
    tensor_missing,
    weights,
)

from phi4conv.gguf_file.layout import f32, text, u32
from phi4conv.quant import Q2_K

MINI, LLAMA = tuple(MINI_KINDS), tuple(LLAMA_ARCH_KINDS)
# Fine enough to tell a difference of a few per cent from what the type itself does.
FINE = ("F32", "F16", "BF16", "Q8_0", "Q6_K")

EMBEDDING, HEAD, OUTPUT_NORM = "token_embd.weight", "output.weight", "output_norm.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"

CONTEXT = Keys.LLM.CONTEXT_LENGTH.format(arch="phi3")
WIDTH = Keys.LLM.EMBEDDING_LENGTH.format(arch="phi3")
FEED_FORWARD = Keys.LLM.FEED_FORWARD_LENGTH.format(arch="phi3")
HEADS = Keys.Attention.HEAD_COUNT.format(arch="phi3")
KV_HEADS = Keys.Attention.HEAD_COUNT_KV.format(arch="phi3")
HEAD_SIZE = Keys.Attention.KEY_LENGTH.format(arch="phi3")
EPSILON = Keys.Attention.LAYERNORM_RMS_EPS.format(arch="phi3")
WINDOW = Keys.Attention.SLIDING_WINDOW.format(arch="phi3")
BASE = Keys.Rope.FREQ_BASE.format(arch="phi3")
ROTATED = Keys.Rope.DIMENSION_COUNT.format(arch="phi3")
ORIGINAL_CONTEXT = Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch="phi3")
ATTENTION_FACTOR = Keys.Rope.SCALING_ATTN_FACTOR.format(arch="phi3")
SCALING_TYPE = Keys.Rope.SCALING_TYPE.format(arch="phi3")
SCALING_FACTOR = Keys.Rope.SCALING_FACTOR.format(arch="phi3")

# Faults that have more than one right name.
ZEROS = ("zeroed", "all-zero")
SHIFTED = ("bytes-shifted", "weights-shifted", "rows-shifted")  # a row of 256 weights may be a single block
HEADS_MOVED = ("heads-reordered", "rows-swapped")

FUSED_PARTS = (
    weights("gate and up swapped", "blk.0.ffn_up.weight", halves_swapped, "gate-up-swapped"),
    weights("gate and up swapped", "blk.2.ffn_up.weight", halves_swapped, "gate-up-swapped"),
    weights("gate and up swapped", "blk.3.ffn_up.weight", halves_swapped, "gate-up-swapped"),
    weights("gate and up interleaved", "blk.1.ffn_up.weight", halves_interleaved, "gate-up-interleaved"),
    qkv("in the order k, q, v", 0, qkv_ordered("kqv"), "qkv-order"),
    qkv("in the order q, v, k", 1, qkv_ordered("qvk"), "qkv-order"),
    qkv("in the order v, k, q", 2, qkv_ordered("vkq"), "qkv-order"),
    qkv("in the order k, v, q", 3, qkv_ordered("kvq"), "qkv-order"),
    qkv("grouped by kv head", 1, qkv_grouped, "qkv-grouped"),
    qkv_parts("q and k permuted as for llama", 0, "qk", permuted_rows, "qk-permuted"),
    qkv_parts("only q permuted as for llama", 1, "q", permuted_rows, "qk-permuted"),
    qkv_parts("only k permuted as for llama", 3, "k", permuted_rows, "qk-permuted"),
    qkv_parts("q and k permuted the other way", 2, "qk", unpermuted_rows, "qk-unpermuted"),
    combined(
        "q and k of all layers: permuted as for llama",
        tuple(qkv_parts("permuted", layer, "qk", permuted_rows, "permuted") for layer in LAYERS),
        "qk-permuted",
    ),
    qkv_parts("q's heads reversed", 2, "q", heads_reversed, HEADS_MOVED),
    qkv_parts("k's heads exchanged", 1, "k", heads_reversed, HEADS_MOVED),
    qkv_parts("v's heads exchanged", 3, "v", heads_reversed, HEADS_MOVED),
    qkv_parts("v negated", 0, "v", lambda part, _: -part, "negated"),
    qkv_parts("k halved", 2, "k", lambda part, _: part * np.float32(0.5), "scaled"),
)

ARRANGEMENTS = (
    weights("transposed", "blk.0.attn_output.weight", transposed, "transposed"),
    weights("transposed", "blk.3.attn_output.weight", transposed, "transposed"),
    weights("transposed in the declared shape", "blk.1.ffn_down.weight", transposed, "transposed"),
    weights("transposed in the declared shape", "blk.2.ffn_up.weight", transposed, "transposed"),
    weights("transposed in the declared shape", HEAD, transposed, "transposed"),
    weights("rows moved down by one", EMBEDDING, rows_pushed_down(1), "rows-shifted"),
    weights("rows moved up by one", EMBEDDING, rows_pulled_up(1), "rows-shifted"),
    weights("rows rolled down by one from row 500 on", EMBEDDING, rows_rolled(1, 500), "rows-shifted"),
    weights("rows 0 and 1023 swapped", EMBEDDING, rows_exchanged(0, 1023), "rows-swapped"),
    weights("rows 936 and 937 swapped", EMBEDDING, rows_exchanged(936, 937), "rows-swapped"),
    weights("row 938 a copy of row 937", EMBEDDING, row_copied(937, 938), "row-copied"),
    weights("rows moved down by one", HEAD, rows_pushed_down(1), "rows-shifted"),
    weights("rows rolled up by three", HEAD, rows_rolled(-3), "rows-shifted"),
    weights("rows 936 and 937 swapped", HEAD, rows_exchanged(936, 937), "rows-swapped"),
    weights("rows 0 and 1 swapped", HEAD, rows_exchanged(0, 1), "rows-swapped"),
    weights("rows rolled down by one", "blk.2.attn_output.weight", rows_rolled(1), "rows-shifted"),
    weights("rows rolled up by one", "blk.3.attn_qkv.weight", rows_rolled(-1), "rows-shifted"),
    weights("rows rolled down by one from row 700 on", "blk.0.ffn_up.weight", rows_rolled(1, 700), "rows-shifted"),
    weights("first and last row swapped", "blk.0.ffn_down.weight", rows_exchanged(0, 255), "rows-swapped"),
    weights("rows 127 and 128 swapped", "blk.3.ffn_down.weight", rows_exchanged(127, 128), "rows-swapped"),
    weights("last row a copy of the first", "blk.2.ffn_down.weight", row_copied(0, 255), "row-copied"),
    weights("rows reversed", "blk.1.ffn_up.weight", rows_reversed, "rows-reversed"),
    weights("columns rolled by one", "blk.3.ffn_down.weight", columns_rolled(1), "columns-shifted"),
    weights("columns reversed", "blk.1.attn_output.weight", columns_reversed, "columns-reversed"),
)

OTHER_TENSORS = (
    exchanged("blk.0.attn_norm.weight", "blk.3.attn_norm.weight"),
    exchanged("blk.1.ffn_norm.weight", "blk.2.ffn_norm.weight"),
    exchanged("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"),
    exchanged("blk.2.attn_norm.weight", "blk.2.ffn_norm.weight"),
    exchanged("blk.0.ffn_down.weight", "blk.3.ffn_down.weight"),
    exchanged("blk.1.attn_qkv.weight", "blk.2.attn_qkv.weight"),
    exchanged("blk.0.attn_output.weight", "blk.1.attn_output.weight"),
    exchanged("blk.2.ffn_up.weight", "blk.3.ffn_up.weight"),
    exchanged(EMBEDDING, HEAD),
    layers_exchanged(1, 2),
    layers_exchanged(0, 3),
    copied("blk.2.attn_output.weight", "blk.1.attn_output.weight"),
    copied("blk.0.ffn_up.weight", "blk.3.ffn_up.weight"),
    copied("blk.1.attn_norm.weight", "blk.2.attn_norm.weight"),
    copied(HEAD, EMBEDDING),
    layer_copied(3, 2),
    layer_lost(0),
    layer_lost(1),
    layer_lost(3),
    layer_added(),
    tensor_missing(HEAD, "missing"),
)

NORMS = (
    weights("1 added", "blk.0.attn_norm.weight", raised(1), "norm-offset"),
    weights("1 added", "blk.2.ffn_norm.weight", raised(1), "norm-offset"),
    weights("1 added", OUTPUT_NORM, raised(1), "norm-offset"),
    weights("1 taken away", "blk.3.ffn_norm.weight", raised(-1), "norm-offset"),
    weights("all ones", "blk.1.attn_norm.weight", all_equal(1), "constant"),
    weights("doubled", OUTPUT_NORM, scaled(2), "scaled"),
    weights("last value infinite", "blk.1.ffn_norm.weight", with_value(0, -1, np.inf), "non-finite"),
    weights("first value NaN", "blk.3.attn_norm.weight", with_value(0, 0, np.nan), "non-finite"),
    weights("one value absurd", "blk.2.attn_norm.weight", with_value(0, 100, 1e4), "absurd-value"),
    weights("one value zero", "blk.0.ffn_norm.weight", with_value(0, 17, 0), "single-value"),
    weights("zeroed", "blk.2.ffn_norm.weight", all_equal(0), "all-zero"),
)

FACTORS = (
    weights("doubled", "blk.1.ffn_down.weight", scaled(2), "scaled"),
    weights("times 1.1", "blk.2.attn_output.weight", scaled(1.1), "scaled"),
    weights("halved", "blk.0.attn_qkv.weight", scaled(0.5), "scaled"),
    weights("times 0.9", HEAD, scaled(0.9), "scaled"),
    weights("row 0 halved", "blk.0.ffn_up.weight", scaled(0.5, slice(0, 1)), "scaled"),
    weights("row 700 halved", "blk.3.ffn_up.weight", scaled(0.5, slice(700, 701)), "scaled"),
    weights("up doubled", "blk.1.ffn_up.weight", scaled(2, slice(512, 1024)), "scaled"),
    weights("negated", "blk.3.attn_output.weight", scaled(-1), "negated"),
    weights("negated", "blk.0.ffn_down.weight", scaled(-1), "negated"),
    weights("last row negated", "blk.0.ffn_down.weight", scaled(-1, slice(255, 256)), "negated"),
    weights("row 938 negated", EMBEDDING, scaled(-1, slice(938, 939)), "negated"),
    weights("of another training step", "blk.1.ffn_up.weight", noisy(0.1), "other-checkpoint", kinds=FINE),
    weights("of another model", "blk.2.attn_qkv.weight", unrelated, "unrelated"),
    weights("made from Q2_K", "blk.1.ffn_down.weight", through(Q2_K), "requantized", kinds=(*FINE, "Q4_K_M")),
)

DAMAGE = (
    damage(
        "first block NaN",
        "blk.0.attn_qkv.weight",
        block_not_a_number(0, 0),
        "non-finite",
    ),
    damage(
        "a block NaN",
        "blk.2.ffn_down.weight",
        block_not_a_number(100, 1),
        "non-finite",
    ),
    damage("last block NaN", HEAD, block_not_a_number(-1, 0), "non-finite"),
    damage("first block zeroed", "blk.0.ffn_up.weight", block_zeroed(0, 0), ZEROS),
    damage("a block zeroed", "blk.1.ffn_down.weight", block_zeroed(77, 0), ZEROS),
    damage(
        "last block zeroed",
        "blk.3.ffn_down.weight",
        block_zeroed(-1, 1),
        ZEROS,
    ),
    weights("row 938 zeroed", EMBEDDING, scaled(0, slice(938, 939)), ZEROS),
    weights("row 200 zeroed", "blk.2.attn_output.weight", scaled(0, slice(200, 201)), ZEROS),
    weights("k zeroed", "blk.1.attn_qkv.weight", scaled(0, slice(256, 320)), ZEROS),
    weights("zeroed", "blk.1.attn_output.weight", all_equal(0), "all-zero"),
    weights("zeroed", "blk.3.ffn_down.weight", all_equal(0), "all-zero"),
    weights("constant", "blk.2.ffn_up.weight", all_equal(0.01), "constant"),
    weights("one weight absurd", "blk.0.attn_output.weight", with_value(0, 0, 1e4), "absurd-value"),
    weights("one weight absurd", "blk.2.ffn_up.weight", with_value(600, 130, 1e4), "absurd-value"),
    weights("one weight absurd", "blk.3.attn_qkv.weight", with_value(-1, -1, -1e4), "absurd-value"),
    damage("64 bytes corrupt", "blk.1.attn_qkv.weight", bytes_replaced(0.5, 64), "corrupt-bytes"),
    damage("64 bytes corrupt", EMBEDDING, bytes_replaced(936 / 1024, 64), "corrupt-bytes"),
    damage("first 64 bytes corrupt", "blk.3.ffn_up.weight", bytes_replaced(0, 64), "corrupt-bytes"),
    damage("4 kB corrupt", "blk.2.ffn_up.weight", bytes_replaced(0.25, 4096), "corrupt-bytes"),
    damage("last 4 kB corrupt", "blk.0.ffn_down.weight", bytes_replaced(1, 4096), "corrupt-bytes"),
    damage("second half zeroed", "blk.3.attn_output.weight", bytes_lost(0.5), ZEROS),
    damage("shifted by a block", "blk.1.attn_output.weight", block_pushed(), SHIFTED),
    damage(
        "shifted by a block from the middle on",
        "blk.2.ffn_down.weight",
        block_pushed(0.5),
        SHIFTED,
    ),
    damage("16-bit words byte-swapped", "blk.0.ffn_down.weight", words_swapped, "byte-swapped"),
    damage("16-bit words byte-swapped", HEAD, words_swapped, "byte-swapped"),
)

METADATA = (
    pair("10000", f32(BASE, 10000)),
    pair("500000", f32(BASE, 500000)),
    pair_missing(BASE),
    pair("half", u32(ROTATED, 16)),
    pair("1e-6", f32(EPSILON, 1e-6)),
    pair("1e-3", f32(EPSILON, 1e-3)),
    pair_missing(EPSILON, effect=Effect.REFUSED),
    pair("halved, rows alike", u32(HEADS, 4), u32(KV_HEADS, 1), also=(HEAD_SIZE,)),
    pair("doubled, rows alike", u32(HEADS, 16), u32(KV_HEADS, 4), u32(ROTATED, 16), also=(HEAD_SIZE,)),
    pair("one", u32(KV_HEADS, 1), effect=Effect.REFUSED),
    pair("as many as heads", u32(KV_HEADS, 8), effect=Effect.REFUSED),
    pair_missing(KV_HEADS, effect=Effect.REFUSED),
    pair("halved", u32(HEADS, 4), also=(HEAD_SIZE,), effect=Effect.REFUSED),
    pair("4", f32(SCALING_FACTOR, 4)),
    pair("yarn", text(SCALING_TYPE, "yarn"), effect=Effect.SAME_LOGITS),
    pair("1.5", f32(ATTENTION_FACTOR, 1.5)),
    pair("one less, the tensors still there", u32(BLOCK_COUNT, 3), effect=Effect.REFUSED),
    pair("one more", u32(BLOCK_COUNT, 5), effect=Effect.REFUSED),
    pair("half", u32(FEED_FORWARD, 256), effect=Effect.REFUSED),
    pair("half", u32(WIDTH, 128), effect=Effect.REFUSED),
    pair("100352", u32(WINDOW, 100352), effect=Effect.SAME_LOGITS),
    pair("4096", u32(CONTEXT, 4096), effect=Effect.SAME_LOGITS),
    pair("4096", u32(ORIGINAL_CONTEXT, 4096), effect=Effect.SAME_LOGITS),
)

SHAPES = (
    tensor_missing("blk.2.ffn_down.weight", effect=Effect.REFUSED),
    tensor_missing("blk.0.attn_norm.weight", effect=Effect.REFUSED),
    tensor_missing(OUTPUT_NORM, effect=Effect.REFUSED),
    reshaped("only up", "blk.1.ffn_up.weight", lambda exact: exact[512:]),
    reshaped("the transposed shape", "blk.3.ffn_down.weight", lambda exact: exact.T),
    reshaped("24 rows lost", EMBEDDING, lambda exact: exact[:1000]),
    tensor_added(
        "a bias", "blk.1.attn_qkv.bias", lambda _: np.full(384, 0.5, np.float32), kinds=TINY, effect=Effect.OTHER_LOGITS
    ),
    tensor_added(
        "a tensor that nobody knows",
        "blk.1.attn_extra.weight",
        lambda _: np.ones(256, np.float32),
        kinds=TINY,
        effect=Effect.REFUSED,
    ),
)

LONGROPE = of(
    "mini",
    exchanged(SHORT, LONG, (), kinds=MINI),
    weights("one factor doubled", SHORT, lambda factors: factors * (1 + (np.arange(12) == 3)), (), kinds=MINI),
    weights("one factor doubled", LONG, lambda factors: factors * (1 + (np.arange(12) == 5)), (), kinds=MINI),
    weights("all ones", LONG, all_equal(1), (), kinds=MINI),
    tensor_missing(SHORT, kinds=MINI),
    tensor_missing(LONG, kinds=MINI),
    pair("1", f32(ATTENTION_FACTOR, 1), kinds=MINI),
    pair_missing(ATTENTION_FACTOR, kinds=MINI),
    pair("as long as the whole", u32(ORIGINAL_CONTEXT, 4096), kinds=MINI),
    pair("half", u32(ORIGINAL_CONTEXT, 256), kinds=MINI),
    pair_missing(ORIGINAL_CONTEXT, kinds=MINI),
    pair("250000", f32(BASE, 250000), kinds=MINI),
    pair("the whole head", u32(ROTATED, 32), kinds=MINI, effect=Effect.REFUSED),
    weights("rows moved down by one", EMBEDDING, rows_pushed_down(1), "rows-shifted", kinds=MINI),
    weights("gate and up swapped", "blk.2.ffn_up.weight", halves_swapped, "gate-up-swapped", kinds=MINI),
    tensor_added(
        "a head, where it is tied",
        HEAD,
        lambda file: rows_rolled(1)(file.exact[EMBEDDING]),
        kinds=MINI,
        effect=Effect.OTHER_LOGITS,
    ),
)

q_permuted, kv_permuted = (partial(permuted_rows, head_count=count) for count in (8, 2))
q_unpermuted, kv_unpermuted = (partial(unpermuted_rows, head_count=count) for count in (8, 2))

LLAMA_ARCH = of(
    "llama",
    weights("not permuted", "blk.0.attn_q.weight", q_unpermuted, "qk-not-permuted", kinds=LLAMA),
    weights("not permuted", "blk.3.attn_k.weight", kv_unpermuted, "qk-not-permuted", kinds=LLAMA),
    weights("permuted twice", "blk.2.attn_q.weight", q_permuted, "qk-permuted-twice", kinds=LLAMA),
    weights("permuted", "blk.1.attn_v.weight", kv_permuted, "rows-permuted", kinds=LLAMA),
    exchanged("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", ("exchanged", "gate-up-swapped"), kinds=LLAMA),
    exchanged("blk.0.attn_k.weight", "blk.3.attn_k.weight", kinds=LLAMA),
    # As they stand in the file, so that what is taken for k is not permuted, and what is taken for v is.
    exchanged("blk.2.attn_k.weight", "blk.2.attn_v.weight", (), kinds=LLAMA),
    exchanged("blk.1.ffn_gate.weight", "blk.3.ffn_gate.weight", kinds=LLAMA),
    weights("transposed", "blk.1.attn_output.weight", transposed, "transposed", kinds=LLAMA),
    weights("negated", "blk.3.ffn_gate.weight", scaled(-1), "negated", kinds=LLAMA),
    tensor_missing(HEAD, "missing", kinds=LLAMA),
    tensor_missing("blk.1.ffn_gate.weight", kinds=LLAMA, effect=Effect.REFUSED),
    pair("10000", f32("llama.rope.freq_base", 10000), kinds=LLAMA),
    pair_missing("llama.rope.freq_base", kinds=LLAMA),
    pair("1e-3", f32("llama.attention.layer_norm_rms_epsilon", 1e-3), kinds=LLAMA),
    pair("half", u32("llama.rope.dimension_count", 16), kinds=LLAMA, effect=Effect.REFUSED),
    pair("one", u32("llama.attention.head_count_kv", 1), kinds=LLAMA, effect=Effect.REFUSED),
)

FAULTS: tuple[Fault, ...] = (
    *FUSED_PARTS,
    *ARRANGEMENTS,
    *OTHER_TENSORS,
    *NORMS,
    *FACTORS,
    *DAMAGE,
    *METADATA,
    *SHAPES,
    *LONGROPE,
    *LLAMA_ARCH,
)


def cases() -> Iterator[tuple[Fault, str]]:
    """Every fault on its first kind and on one more, all kinds in turn."""
    for index, fault in enumerate(FAULTS):
        yield fault, fault.kinds[0]
        if len(fault.kinds) > 1:
            yield fault, fault.kinds[1 + index % (len(fault.kinds) - 1)]


def all_cases() -> Iterator[tuple[Fault, str]]:
    """Every fault on every kind."""
    for fault in FAULTS:
        for kind in fault.kinds:
            yield fault, kind
