"""The name table: which checkpoint tensors become which GGUF tensors, and what shape each must have.

There is no permutation: phi3 rotates halves (NEOX order) as transformers does; only llama.cpp's own
`llama` architecture wants Q and K permuted. Fused tensors are stacked rows: q above k above v, and gate
above up. A checkpoint saved as a Llama has the parts, in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.config import Phi3Config
from phi4conv.plan import LeftOut
from phi4conv.rows import ConstantRow, RowSource, StackedRows

TOKEN_EMBEDDING = "model.embed_tokens.weight"  # noqa: S105  # a tensor's name
HEAD = "lm_head.weight"

# GGUF name -> checkpoint name.
MODEL_TENSORS = {
    "output.weight": HEAD,
    "output_norm.weight": "model.norm.weight",
    "token_embd.weight": TOKEN_EMBEDDING,
}

# GGUF name after "blk.N." -> checkpoint names after "model.layers.N.", stacked when there are several.
# In alphabetical order of the GGUF names, which is the order of a file that llama-quantize writes.
PHI3_LAYER_TENSORS = {
    "attn_norm.weight": ("input_layernorm.weight",),
    "attn_output.weight": ("self_attn.o_proj.weight",),
    "attn_qkv.weight": ("self_attn.qkv_proj.weight",),
    "ffn_down.weight": ("mlp.down_proj.weight",),
    "ffn_norm.weight": ("post_attention_layernorm.weight",),
    "ffn_up.weight": ("mlp.gate_up_proj.weight",),
}
LLAMA_LAYER_TENSORS = PHI3_LAYER_TENSORS | {
    "attn_qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "ffn_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}

# Saved by early versions of transformers; the values follow from rope_theta.
INVERSE_FREQUENCIES = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

# More than this many problems of one kind say no more than the first ones.
SHOWN_PROBLEMS = 5


def layer_tensors(config: Phi3Config) -> Mapping[str, tuple[str, ...]]:
    """The layer's part of the name table for this spelling of the checkpoint."""
    return LLAMA_LAYER_TENSORS if config.is_llamafied else PHI3_LAYER_TENSORS


def expected_shapes(config: Phi3Config) -> dict[str, tuple[int, ...]]:
    """Shape of every checkpoint tensor that the configuration calls for, by checkpoint name."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    kv_width = config.kv_head_count * config.head_size
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.qkv_proj.weight": (hidden + 2 * kv_width, hidden),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (kv_width, hidden),
        "self_attn.v_proj.weight": (kv_width, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_up_proj.weight": (2 * ffn, hidden),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {
        TOKEN_EMBEDDING: (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tied_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    for index in range(config.layer_count):
        for parts in layer_tensors(config).values():
            shapes.update({f"model.layers.{index}.{part}": layer[part] for part in parts})
    return shapes


def check_tensors(config: Phi3Config, tensors: Mapping[str, RowSource]) -> None:
    """Hold the checkpoint's names and shapes against the configuration.

    Raises:
        CheckpointError: Tensors are missing, unknown, or of another shape than config.json says.
    """
    refuse_other_layout(config, tensors)
    expected = expected_shapes(config)
    missing = [
        Problem(
            "a tensor is missing",
            where=name,
            expected=f"shape {shape}, from config.json",
            next_step="llama.cpp would silently use the embedding instead; set tie_word_embeddings if that is meant"
            if name == HEAD
            else "download the whole checkpoint again, or save the whole model",
        )
        for name, shape in expected.items()
        if name not in tensors
    ]
    unknown = [
        unknown_tensor(name, config) for name in tensors if name not in expected and not may_leave_out(name, config)
    ]
    misshapen = [
        Problem(
            "config.json and the weights disagree",
            where=name,
            expected=f"shape {shape}, from config.json",
            found=f"shape {tensors[name].shape}",
        )
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [*shortened(missing), *shortened(unknown), *shortened(misshapen)]
    if problems:
        raise CheckpointError(*problems)


def refuse_other_layout(config: Phi3Config, tensors: Mapping[str, RowSource]) -> None:
    """Tell what is wrong with all the names at once, rather than that every tensor is missing.

    Raises:
        CheckpointError: The names have another beginning, or the layers are not as many as config.json says.
    """
    prefixed = [name for name in tensors if name.endswith("embed_tokens.weight")]
    if TOKEN_EMBEDDING not in tensors and prefixed:
        raise CheckpointError(
            Problem(
                "the tensors' names do not begin as those of a saved model",
                where=prefixed[0],
                expected=TOKEN_EMBEDDING,
                next_step="save the model itself with save_pretrained: after merge_and_unload() for PEFT, unwrapped "
                "for torch.compile, DataParallel and the like",
            )
        )
    layers = {int(match[1]) for name in tensors if (match := re.match(r"model\.layers\.(\d{1,9})\.", name))}
    if layers and config.layer_count > max(layers) + 1:
        raise CheckpointError(
            Problem(
                "config.json and the weights disagree",
                where="num_hidden_layers",
                expected=f"{max(layers) + 1}, as the weights have",
                found=str(config.layer_count),
                next_step="download the whole checkpoint again; one of the two is not of this model",
            )
        )


def unknown_tensor(name: str, config: Phi3Config) -> Problem:
    """What to tell about a tensor that the name table does not have."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if "lora_" in name:
        advice = "merge the LoRA adapter into its base model and save that"
    elif layer and int(layer[1]) >= config.layer_count:
        advice = f"config.json says num_hidden_layers {config.layer_count}; one of the two is wrong"
    else:
        advice = "nothing is dropped in silence: if the tensor does not belong to the model, save it without"
    known = len(MODEL_TENSORS) + len(layer_tensors(config))
    return Problem(
        f"no GGUF name for this tensor; {config.architecture} has {known} kinds", where=name, next_step=advice
    )


def shortened(problems: list[Problem]) -> Iterator[Problem]:
    """The first few problems of one kind, and a count of the rest."""
    yield from problems[:SHOWN_PROBLEMS]
    rest = len(problems) - SHOWN_PROBLEMS
    if rest > 0:
        yield Problem(f"and {rest} more like these")


def may_leave_out(name: str, config: Phi3Config) -> bool:
    """Whether a checkpoint tensor beyond the table is known to be redundant."""
    return bool(INVERSE_FREQUENCIES.fullmatch(name)) or (config.tied_embeddings and name == HEAD)


def left_out(config: Phi3Config, tensors: Mapping[str, RowSource]) -> tuple[LeftOut, ...]:
    """The redundant tensors of this checkpoint, each with its reason."""
    return tuple(
        LeftOut(name, "a copy of the embedding, which is tied", copy=(rows, tensors[TOKEN_EMBEDDING]))
        if name == HEAD
        else LeftOut(name, "follows from rope_theta")
        for name, rows in tensors.items()
        if may_leave_out(name, config)
    )


def gguf_tensors(config: Phi3Config, tensors: Mapping[str, RowSource]) -> Iterator[tuple[str, RowSource]]:
    """Every GGUF tensor with its rows, in llama-quantize's order: those of no layer, then by layer and name."""
    model = dict(MODEL_TENSORS)
    if config.tied_embeddings:
        del model["output.weight"]
    sources: dict[str, RowSource] = {name: tensors[source] for name, source in model.items()}
    if factors := config.rope.long_rope:
        sources["rope_factors_long.weight"] = ConstantRow(factors.long_factors)
        sources["rope_factors_short.weight"] = ConstantRow(factors.short_factors)
    yield from sorted(sources.items())
    for index in range(config.layer_count):
        for name, parts in sorted(layer_tensors(config).items()):
            rows = tuple(tensors[f"model.layers.{index}.{part}"] for part in parts)
            yield f"blk.{index}.{name}", rows[0] if len(rows) == 1 else StackedRows(rows)
