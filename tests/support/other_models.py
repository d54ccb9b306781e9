"""Checkpoints of other shapes and of unlike weights, and importance matrices of several kinds, each from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import Words, copy_of_tiny, edit_json, replace_tensors, tiny_tensors

from phi4conv.arrays import Floats
from phi4conv.gguf_file.read import read_gguf
from phi4conv.imatrix import ImportanceMatrix, write_imatrix

Generator = np.random.Generator
# A tensor's name, its weights and a generator -> weights of the same shape.
Change = Callable[[str, Floats, Generator], Floats]


@dataclass(frozen=True)
class Shape:
    """What config.json says of a model's size."""

    layers: int = 2
    hidden: int = 256
    feed_forward: int = 512
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 1024

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by its name in a checkpoint."""
        head_size = self.hidden // self.heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for index in range(self.layers):
            layer = f"model.layers.{index}"
            shapes |= {
                f"{layer}.input_layernorm.weight": (self.hidden,),
                f"{layer}.self_attn.qkv_proj.weight": ((self.heads + 2 * self.kv_heads) * head_size, self.hidden),
                f"{layer}.self_attn.o_proj.weight": (self.hidden, self.hidden),
                f"{layer}.post_attention_layernorm.weight": (self.hidden,),
                f"{layer}.mlp.gate_up_proj.weight": (2 * self.feed_forward, self.hidden),
                f"{layer}.mlp.down_proj.weight": (self.hidden, self.feed_forward),
            }
        return {**shapes, "model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}


def as_words(weights: Floats, dtype: str) -> tuple[str, Words]:
    """Weights as a checkpoint stores them, rounded to nearest even."""
    if dtype == "BF16":
        bits = weights.astype(np.float32).view(np.uint32).astype(np.uint64)
        return dtype, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return dtype, weights.astype(np.float16 if dtype == "F16" else np.float32)


def random_checkpoint(folder: Path, shape: Shape, *, change: Change | None = None, seed: int = 5) -> Path:
    """A model of this shape: normal weights in BF16, of 1 / sqrt(width), norms around 1; change is applied to each."""
    copy_of_tiny(folder)

    def configure(data: dict[str, Any]) -> None:
        data.update(
            num_hidden_layers=shape.layers,
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            vocab_size=shape.vocabulary,
        )

    edit_json(folder / "config.json", configure)
    generator = np.random.default_rng(seed)
    tensors: dict[str, tuple[str, Words]] = {}
    for name, size in shape.tensors().items():
        norm = len(size) == 1
        weights = generator.uniform(0.5, 1.5, size) if norm else generator.normal(0, size[-1] ** -0.5, size)
        tensors[name] = as_words(changed(change, name, weights.astype(np.float32), generator), "BF16")
    replace_tensors(folder, tensors)
    return folder


def tiny_with(folder: Path, change: Change | None = None, *, dtypes: tuple[str, ...] = ("BF16",)) -> Path:
    """The tiny checkpoint with other weights; its tensors are stored in these types in turn."""
    copy_of_tiny(folder)
    generator = np.random.default_rng(5)
    tensors: dict[str, tuple[str, Words]] = {}
    for number, (name, (_, words)) in enumerate(tiny_tensors().items()):
        weights = (words.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = as_words(changed(change, name, weights, generator), dtypes[number % len(dtypes)])
    replace_tensors(folder, tensors)
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    edit_json(folder / "config.json", lambda data: data.update(torch_dtype=names[dtypes[0]]))
    return folder


def changed(change: Change | None, name: str, weights: Floats, generator: Generator) -> Floats:
    """The weights after the change, if there is one."""
    return weights if change is None else change(name, weights, generator)


def matrices_alone(change: Callable[[Floats, Generator], Floats]) -> Change:
    """A change of matrices, float32 (rows, width), that leaves norms as they are."""
    return lambda _, weights, generator: weights if weights.ndim == 1 else change(weights.copy(), generator)


def finer(_: str, weights: Floats, generator: Generator) -> Floats:
    """Weights that need all bits of float32."""
    return (weights * generator.uniform(0.999, 1.001, weights.shape)).astype(np.float32)


@matrices_alone
def with_outlier(weights: Floats, generator: Generator) -> Floats:
    """One weight a hundred times as large as the largest."""
    weights.flat[generator.integers(weights.size)] = 100 * np.abs(weights).max()
    return weights


@matrices_alone
def heavy_tailed(weights: Floats, generator: Generator) -> Floats:
    """Weights multiplied by the magnitudes of Cauchy's distribution: the largest ones by thousands."""
    return (weights * np.abs(generator.standard_cauchy(weights.shape))).astype(np.float32)


@matrices_alone
def with_dead_rows(weights: Floats, generator: Generator) -> Floats:
    """Rows of zeros, one in eight, as those of tokens that were never trained."""
    weights[generator.random(len(weights)) < 1 / 8] = 0
    return weights


@matrices_alone
def with_dead_columns(weights: Floats, generator: Generator) -> Floats:
    """Columns of zeros, one in eight."""
    weights[:, generator.random(weights.shape[1]) < 1 / 8] = 0
    return weights


@matrices_alone
def with_constant_rows(weights: Floats, generator: Generator) -> Floats:
    """Rows of one value, one in eight, most of them positive."""
    rows = generator.random(len(weights)) < 1 / 8
    weights[rows] = generator.normal(0.02, 0.02, (int(rows.sum()), 1))
    return weights


@matrices_alone
def with_tiny_rows(weights: Floats, generator: Generator) -> Floats:
    """Rows of 1e-8 of their size, one in eight: too small for any scale in float16."""
    weights[generator.random(len(weights)) < 1 / 8] *= np.float32(1e-8)
    return weights


@matrices_alone
def with_small_rows(weights: Floats, generator: Generator) -> Floats:
    """Rows of every size from 1e-7 to 1, which float16 scales can hold better or worse."""
    return (weights * 10 ** generator.uniform(-7, 0, (len(weights), 1))).astype(np.float32)


@matrices_alone
def one_signed(weights: Floats, _: Generator) -> Floats:
    """No weight below zero."""
    return np.abs(weights)


@matrices_alone
def with_scaled_columns(weights: Floats, generator: Generator) -> Floats:
    """Columns of unlike size, over a range of e^4."""
    found: Floats = (weights * np.exp(generator.uniform(-4, 0, weights.shape[1]))).astype(np.float32)
    return found


@matrices_alone
def ternary(weights: Floats, _: Generator) -> Floats:
    """Three values to a matrix, as in BitNet."""
    step = np.float32(np.abs(weights).mean())
    found: Floats = np.clip(np.rint(weights / step), -1, 1) * step
    return found


@matrices_alone
def sparse(weights: Floats, generator: Generator) -> Floats:
    """Nine weights in ten pruned."""
    found: Floats = weights * (generator.random(weights.shape) < 0.1)
    return found


@matrices_alone
def off_center(weights: Floats, _: Generator) -> Floats:
    """Weights that vary by a tenth of their mean."""
    found: Floats = (weights + 10 * np.float32(weights.std())) / 10
    return found


def with_negative_norms(_: str, weights: Floats, generator: Generator) -> Floats:
    """Norms below zero everywhere, and a few of their weights zero."""
    if weights.ndim > 1:
        return weights
    return np.where(generator.random(weights.shape) < 0.02, 0, -np.abs(weights)).astype(np.float32)


def with_large_norms(_: str, weights: Floats, generator: Generator) -> Floats:
    """Norms from 0.01 to 100, with matrices that undo the mean of it."""
    return weights if weights.ndim > 1 else np.exp(generator.normal(0, 2, weights.shape)).astype(np.float32)


def without_effect_in_one_layer(name: str, weights: Floats, _: Generator) -> Floats:
    """A layer that adds nothing, as those that block expansion puts between trained ones."""
    gone = name in {"model.layers.1.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"}
    return np.zeros_like(weights) if gone else weights


# What weights may look like.
FAMILIES: Mapping[str, Change] = {
    "weights that BF16 cannot hold": finer,
    "an outlier in every matrix": with_outlier,
    "heavy tails": heavy_tailed,
    "dead rows": with_dead_rows,
    "dead columns": with_dead_columns,
    "constant rows": with_constant_rows,
    "tiny rows": with_tiny_rows,
    "rows of all sizes": with_small_rows,
    "one sign": one_signed,
    "columns of all sizes": with_scaled_columns,
    "three values": ternary,
    "pruned": sparse,
    "off center": off_center,
    "negative norms": with_negative_norms,
    "norms of all sizes": with_large_norms,
    "a layer that adds nothing": without_effect_in_one_layer,
}


def flat(width: int, _: Generator) -> Floats:
    """Every column alike."""
    return np.ones(width, np.float32)


def log_normal(width: int, generator: Generator) -> Floats:
    """Columns over some e^12."""
    return np.exp(generator.normal(0, 3, width)).astype(np.float32)


def with_zeros(width: int, generator: Generator) -> Floats:
    """A third of the columns without any importance."""
    return (log_normal(width, generator) * (generator.random(width) > 1 / 3)).astype(np.float32)


def one_column(width: int, generator: Generator) -> Floats:
    """One column that matters a million times as much as all others, as where activations are massive."""
    return np.where(np.arange(width) == generator.integers(width), 1e6, 1.0).astype(np.float32)


IMPORTANCE: Mapping[str, Callable[[int, Generator], Floats]] = {
    "flat": flat,
    "log-normal": log_normal,
    "with zeros": with_zeros,
    "one column": one_column,
}


MEASURED = "measured"


def write_importance(path: Path, kind: str, model: Path) -> Path:
    """An importance matrix of a kind, or a measured one, for every matrix of a GGUF but the embedding."""
    if kind == MEASURED:
        weights = measured_importance(model)
    else:
        generator = np.random.default_rng(9)
        matrices = [entry for entry in read_gguf(model).tensors if len(entry.shape) > 1]
        weights = {entry.name: IMPORTANCE[kind](entry.shape[-1], generator) for entry in matrices}
        del weights["token_embd.weight"]
    write_imatrix(ImportanceMatrix(path, weights, (kind,), 1))
    return path


def measured_importance(model: Path, ids: Sequence[int] = tuple(range(20, 532))) -> dict[str, Floats]:
    """As llama-imatrix measures it: the mean squares of what every matrix of the layers is multiplied with.

    By tensor name, float32 (width,). Needs torch.
    """
    from phi4conv.reference.file_model import file_model  # noqa: PLC0415
    from phi4conv.reference.parts import Part  # noqa: PLC0415
    from phi4conv.reference.run import Runner  # noqa: PLC0415  # loads torch

    found: dict[str, Floats] = {}

    class Measuring(Runner):
        def _matrix(self, *parts: Part) -> Any:
            linear = super()._matrix(*parts)

            def apply(x: Any) -> Any:
                found[parts[0].tensor] = x.square().mean(0).numpy()
                return linear(x)

            return apply

    runner = Measuring(file_model(read_gguf(model)))
    x = runner.embed(ids)
    for index in range(runner.model.hyperparameters.layer_count):
        x = runner.layer(index, x, [runner.settings.stretch(len(ids))])
    return found
