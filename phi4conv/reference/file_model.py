"""A GGUF as a Model: what its tensors mean, from the file alone, as llama.cpp takes them for phi3 and llama.

phi3: q, k and v lie fused in attn_qkv, or apart; gate and up fused in ffn_up, gate first. llama: all apart (q, k and v
may be fused), and the rows of q and k are shuffled within each head; see permuted_rows.py. Parts are cut by the
tensors' own shapes, so that a file whose metadata are wrong still shows the weights that it has. Whether llama.cpp
takes these tensors is told by file_problems.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from phi4conv.errors import FormatError, Problem
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.rows import GGUFRows, gguf_rows
from phi4conv.reference.file_hyperparameters import (
    HYPERPARAMETER_KEYS,
    LLAMA,
    LLAMA3_FACTORS,
    LONG_FACTORS,
    PHI3,
    SHORT_FACTORS,
    file_architecture,
    file_hyperparameters,
    read_hyperparameters,
)
from phi4conv.reference.hyperparameters import Hyperparameters
from phi4conv.reference.parts import EMBEDDING, HEAD, LAYER_PARTS, OUTPUT_NORM, Model, Part
from phi4conv.reference.permuted_rows import PermutedRows, can_be_permuted
from phi4conv.rows import RowSource, SlicedRows

FUSED_QKV = "attn_qkv"
LAYER_TENSOR = re.compile(rf"blk\.(0|[1-9]\d*)\.({'|'.join((*LAYER_PARTS, FUSED_QKV))})\.weight")
MODEL_TENSORS = tuple(f"{name}.weight" for name in (EMBEDDING, OUTPUT_NORM, HEAD))
FACTOR_TENSORS = (SHORT_FACTORS, LONG_FACTORS, LLAMA3_FACTORS)

# Endings of what llama.cpp would compute with in a layer, and Phi-4 does not have.
BIASES = (".bias",)
EXPERTS = ("_exps.weight", "_shexp.weight", "ffn_gate_inp.weight")

SHOWN_TENSORS = 5

__all__ = ["HYPERPARAMETER_KEYS", "file_hyperparameters", "file_model"]


def file_model(file: GGUFFile, mended: Hyperparameters | None = None, *, strict: bool = True) -> Model:
    """The file's side of a comparison: its hyperparameters and parts. No weights are read but LongRoPE's factors.

    With mended those are the model's hyperparameters, and the file's own are not read. A part whose tensor is missing,
    or is no matrix that could be cut, is missing, too. q and k of a llama file are put in order by the
    hyperparameters' head_size; where their rows are no whole number of such heads they stay as they are. Tensors that
    are no part of the model are left out, without strict; file_problems tells of them.

    Raises:
        FormatError: See file_hyperparameters; or, with strict, there are tensors that no phi3 or llama has, or that
            model.py does not compute with.
    """
    # To ggml a leading 1 of a shape is not there.
    tensors = {name: replace(rows, shape=stripped(rows.shape)) for name, rows in gguf_rows(file).items()}
    architecture = file_architecture(file)
    if strict:
        refuse_unknown(file, tensors)
    hyperparameters = mended or read_hyperparameters(file, tensors)
    parts = [
        *model_parts(tensors),
        *(
            part
            for index in layer_indices(tensors)
            for part in layer_parts(tensors, f"blk.{index}.", architecture, hyperparameters.head_size)
        ),
    ]
    return Model(hyperparameters, {part.name: part for part in parts})


def stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without ones in front: ggml sees (1, 5120) and (5120,) as the same.

    >>> stripped((1, 5120)), stripped((1,))
    ((5120,), (1,))
    """
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def layer_indices(tensors: Mapping[str, GGUFRows]) -> list[int]:
    """The layers that the tensors name, in order."""
    return sorted({int(match[1]) for name in tensors if (match := LAYER_TENSOR.fullmatch(name))})


def model_parts(tensors: Mapping[str, GGUFRows]) -> Iterator[Part]:
    """Embedding, final norm and head, those that are there."""
    for name in (EMBEDDING, OUTPUT_NORM, HEAD):
        yield from whole(tensors, name)


def layer_parts(tensors: Mapping[str, GGUFRows], prefix: str, architecture: str, head_size: int) -> Iterator[Part]:
    """The parts of one layer, in the order of LAYER_PARTS, those that are there."""
    parts = {
        part.name: part
        for name in ("attn_norm", "attn_output", "ffn_norm", "ffn_down")
        for part in whole(tensors, prefix + name)
    }
    for part in (*qkv_parts(tensors, prefix, architecture), *gate_up_parts(tensors, prefix, architecture)):
        parts[part.name] = part
    if architecture == LLAMA:
        for name in (f"{prefix}attn_q", f"{prefix}attn_k"):
            if name in parts:
                parts[name] = in_checkpoint_order(parts[name], head_size)
    yield from (parts[prefix + name] for name in LAYER_PARTS if prefix + name in parts)


def qkv_parts(tensors: Mapping[str, GGUFRows], prefix: str, architecture: str) -> Iterator[Part]:
    """q, k and v in the file's order: llama.cpp looks for the fused tensor first (create_tensor_qkv)."""
    fused = tensors.get(f"{prefix}{FUSED_QKV}.weight")
    if fused is None:
        for name in ("attn_q", "attn_k", "attn_v"):
            yield from whole(tensors, prefix + name)
    elif len(fused.shape) == 2:
        q = min(fused.shape[0], q_rows(tensors, prefix, architecture, fused))
        k = q + (fused.shape[0] - q) // 2
        yield cut(fused, f"{prefix}attn_q", 0, q)
        yield cut(fused, f"{prefix}attn_k", q, k)
        yield cut(fused, f"{prefix}attn_v", k, fused.shape[0])


def q_rows(tensors: Mapping[str, GGUFRows], prefix: str, architecture: str, fused: GGUFRows) -> int:
    """How many rows of a fused tensor are q: heads * head size, which phi3 wants to be the hidden size."""
    output = tensors.get(f"{prefix}attn_output.weight")
    if architecture == LLAMA and output is not None and len(output.shape) == 2:
        return output.shape[1]
    return fused.shape[1]


def gate_up_parts(tensors: Mapping[str, GGUFRows], prefix: str, architecture: str) -> Iterator[Part]:
    """Gate and up: the halves of phi3's ffn_up, unless there is a gate by itself."""
    up = tensors.get(f"{prefix}ffn_up.weight")
    if architecture == LLAMA or up is None or f"{prefix}ffn_gate.weight" in tensors:
        yield from whole(tensors, f"{prefix}ffn_gate")
        yield from whole(tensors, f"{prefix}ffn_up")
    elif len(up.shape) == 2:
        half = up.shape[0] // 2
        yield cut(up, f"{prefix}ffn_gate", 0, half)
        yield cut(up, f"{prefix}ffn_up", half, up.shape[0])


def whole(tensors: Mapping[str, GGUFRows], name: str) -> Iterator[Part]:
    """A tensor that is a part by itself, if it is there."""
    rows = tensors.get(f"{name}.weight")
    if rows is not None:
        yield Part(name, rows, rows.name, qtype=rows.qtype)


def cut(rows: GGUFRows, name: str, start: int, stop: int) -> Part:
    """A part that is some rows of a tensor."""
    return Part(name, SlicedRows(rows, start, stop), rows.name, start, rows.qtype)


def in_checkpoint_order(part: Part, head_size: int) -> Part:
    """The q or k of a llama file with its rows in the checkpoint's order."""
    if not can_be_permuted(part.shape, head_size):
        return part
    rows: RowSource = PermutedRows(part.rows, head_size)
    return Part(part.name, rows, part.tensor, part.first_row, part.qtype)


def refuse_unknown(file: GGUFFile, tensors: Mapping[str, GGUFRows]) -> None:
    """Raise FormatError, with the first few names, for tensors that model.py would leave out of the sum."""
    known = {*MODEL_TENSORS, *FACTOR_TENSORS}
    unknown = [name for name in tensors if name not in known and not LAYER_TENSOR.fullmatch(name)]
    if unknown:
        problems = [
            Problem(
                what_it_is(name),
                where=f"{file.path}: {name}",
                expected=f"only tensors of a {PHI3} model without biases and experts",
                found=f"shape {tensors[name].shape}",
                next_step="convert the checkpoint again, or give a file that was made from a Phi-3 or Phi-4",
            )
            for name in unknown[:SHOWN_TENSORS]
        ]
        if len(unknown) > SHOWN_TENSORS:
            problems.append(Problem(f"and {len(unknown) - SHOWN_TENSORS} more such tensors", where=str(file.path)))
        raise FormatError(*problems)


def what_it_is(name: str) -> str:
    """Why a tensor cannot be left out of the sum."""
    if name.endswith(BIASES):
        return "phi4conv runs no model with biases"
    if name.endswith(EXPERTS):
        return "phi4conv runs no mixture of experts"
    return "a tensor that llama.cpp does not expect, and refuses the file for"
