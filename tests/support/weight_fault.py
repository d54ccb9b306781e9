"""What a fault of weights or of architecture metadata is, and the ways in which one is made."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, Keys
from good_files import TINY_KINDS, GoodFile, good_weights
from weight_changes import BytesChange, Values, parts_of_qkv
from weight_files import WeightFile, encoded, write_weight_file

from phi4conv.arrays import Floats
from phi4conv.gguf_file.layout import MetadataPair, u32

Codes = str | tuple[str, ...]  # a name for a fault, or any of several
FileChange = Callable[[WeightFile], WeightFile]

TINY = tuple(TINY_KINDS)
LAYER_TENSORS = ("attn_norm", "attn_output", "attn_qkv", "ffn_down", "ffn_norm", "ffn_up")
LAYERS = range(4)

BLOCK_COUNT = Keys.LLM.BLOCK_COUNT.format(arch="phi3")


class Effect(enum.Enum):
    """What llama.cpp makes of a file with the fault."""

    OTHER_LOGITS = "it loads, and computes other logits"
    SAME_LOGITS = "it loads, and computes what it does with the good file"
    REFUSED = "it does not load"


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a good file's weights, or with what its metadata say of them.

    Attributes:
        name: What is wrong, and where, for people.
        change: From the good file to the wrong one.
        where: The tensors or metadata keys that have to be blamed, each of them.
        codes: By which the fault may be recognised, any of them; none where it is told by the metadata key alone, or
            by what the file lacks.
        kinds: The kinds of good files (good_files.KINDS) on which it makes sense. The first is an F32 file.
        also: What may be blamed besides, because it follows from the fault.
        effect: What llama.cpp makes of the file. NaN and infinity among the weights are loaded unless it is told to
            check them (--check-tensors), and count as other logits.
    """

    name: str
    change: FileChange
    where: tuple[str, ...]
    codes: tuple[str, ...]
    kinds: tuple[str, ...] = TINY
    also: tuple[str, ...] = ()
    effect: Effect = Effect.OTHER_LOGITS

    def apply(self, good: GoodFile, target: Path) -> Path:
        """Write the good file with the fault to target."""
        wrong = self.change(good_weights(good.kind))
        return write_weight_file(target, wrong.pairs.values(), wrong.tensors)


def as_codes(codes: Codes) -> tuple[str, ...]:
    """One code, or several, as several."""
    return (codes,) if isinstance(codes, str) else codes


def weights(
    what: str,
    tensor: str,
    other: Values,
    codes: Codes,
    *,
    kinds: tuple[str, ...] = TINY,
    effect: Effect = Effect.OTHER_LOGITS,
) -> Fault:
    """Other weights in one tensor."""

    def apply(file: WeightFile) -> WeightFile:
        return file.with_values(tensor, other(file.exact[tensor]))

    return Fault(f"{tensor}: {what}", apply, (tensor,), as_codes(codes), kinds, effect=effect)


def damage(what: str, tensor: str, other: BytesChange, codes: Codes) -> Fault:
    """Other bytes in one tensor."""

    def apply(file: WeightFile) -> WeightFile:
        return file.with_bytes(tensor, other(file.tensors[tensor]))

    return Fault(f"{tensor}: {what}", apply, (tensor,), as_codes(codes))


def qkv(what: str, layer: int, other: Callable[[Floats, int, int], Floats], codes: Codes) -> Fault:
    """Other weights in a fused qkv; other is given them and the numbers of heads and of kv heads."""
    tensor = f"blk.{layer}.attn_qkv.weight"

    def apply(file: WeightFile) -> WeightFile:
        return file.with_values(tensor, other(file.exact[tensor], *head_counts(file)))

    return Fault(f"{tensor}: {what}", apply, (tensor,), as_codes(codes))


def qkv_parts(what: str, layer: int, names: str, other: Callable[[Floats, int], Floats], codes: Codes) -> Fault:
    """Other weights in some of q, k and v; other is given them and the number of their heads."""

    def apply(fused: Floats, head_count: int, kv_head_count: int) -> Floats:
        parts = parts_of_qkv(fused, head_count, kv_head_count)
        for name in names:
            parts[name] = other(parts[name], head_count if name == "q" else kv_head_count)
        return np.concatenate([parts[name] for name in "qkv"])

    return qkv(what, layer, apply, codes)


def head_counts(file: WeightFile) -> tuple[int, int]:
    """How many heads and kv heads the file has."""
    arch = file.pairs[Keys.General.ARCHITECTURE].value
    keys = (Keys.Attention.HEAD_COUNT, Keys.Attention.HEAD_COUNT_KV)
    heads, kv_heads = (int(file.pairs[key.format(arch=arch)].value) for key in keys)
    return heads, kv_heads


def combined(name: str, faults: tuple[Fault, ...], codes: Codes) -> Fault:
    """Several faults at once, which are one."""

    def apply(file: WeightFile) -> WeightFile:
        for fault in faults:
            file = fault.change(file)
        return file

    return Fault(
        name, apply, tuple(where for fault in faults for where in fault.where), as_codes(codes), faults[0].kinds
    )


def copied(target: str, source: str, codes: Codes = "copy", *, kinds: tuple[str, ...] = TINY) -> Fault:
    """A tensor that holds what another one does."""
    return Fault(
        f"{target}: a copy of {source}",
        lambda file: file.with_values(target, file.exact[source]),
        (target,),
        as_codes(codes),
        kinds,
    )


def exchanged(one: str, other: str, codes: Codes = "exchanged", *, kinds: tuple[str, ...] = TINY) -> Fault:
    """Two tensors that hold each other's weights."""

    def apply(file: WeightFile) -> WeightFile:
        return file.with_values(one, file.exact[other]).with_values(other, file.exact[one])

    return Fault(f"{one} and {other}: exchanged", apply, (one, other), as_codes(codes), kinds)


def layer_tensors(layer: int) -> tuple[str, ...]:
    """The names of a phi3 layer's tensors."""
    return tuple(f"blk.{layer}.{name}.weight" for name in LAYER_TENSORS)


def layers_exchanged(one: int, other: int) -> Fault:
    """All tensors of two layers exchanged."""
    pairs = zip(layer_tensors(one), layer_tensors(other), strict=True)
    return combined(f"layers {one} and {other}: exchanged", tuple(exchanged(*pair) for pair in pairs), "exchanged")


def layer_copied(target: int, source: int) -> Fault:
    """A layer that holds what another one does."""
    pairs = zip(layer_tensors(target), layer_tensors(source), strict=True)
    return combined(f"layer {target}: a copy of layer {source}", tuple(copied(*pair) for pair in pairs), "copy")


def layer_lost(lost: int) -> Fault:
    """A layer left out, those behind it moved up, and the count as if it was never there."""
    last = LAYERS[-1]

    def apply(file: WeightFile) -> WeightFile:
        for layer in range(lost, last):
            for target, source in zip(layer_tensors(layer), layer_tensors(layer + 1), strict=True):
                file = file.with_values(target, file.exact[source])
        return file.without_tensors(*layer_tensors(last)).with_pairs(u32(BLOCK_COUNT, last))

    moved = tuple(name for layer in range(lost, last + 1) for name in layer_tensors(layer))
    return Fault(f"layer {lost}: lost", apply, (BLOCK_COUNT,), (), also=moved)


def layer_added() -> Fault:
    """The last layer once more behind itself."""
    last = LAYERS[-1]
    names = dict(zip(layer_tensors(last + 1), layer_tensors(last), strict=True))

    def apply(file: WeightFile) -> WeightFile:
        for target, source in names.items():
            file = file.with_tensor(target, file.tensors[source])
        return file.with_pairs(u32(BLOCK_COUNT, last + 2))

    return Fault(f"layer {last}: twice", apply, (BLOCK_COUNT,), (), also=tuple(names))


def pair(
    what: str,
    *pairs: MetadataPair,
    kinds: tuple[str, ...] = TINY,
    also: tuple[str, ...] = (),
    effect: Effect = Effect.OTHER_LOGITS,
) -> Fault:
    """Other metadata."""
    keys = tuple(each.key for each in pairs)
    name = f"{' and '.join(keys)}: {what}"
    return Fault(name, lambda file: file.with_pairs(*pairs), keys, (), kinds, also, effect)


def pair_missing(key: str, *, kinds: tuple[str, ...] = TINY, effect: Effect = Effect.OTHER_LOGITS) -> Fault:
    """A metadata key that is not there."""
    return Fault(f"{key}: missing", lambda file: file.without_pairs(key), (key,), (), kinds, effect=effect)


def tensor_missing(
    tensor: str, codes: Codes = (), *, kinds: tuple[str, ...] = TINY, effect: Effect = Effect.OTHER_LOGITS
) -> Fault:
    """A tensor that is not there."""
    return Fault(
        f"{tensor}: missing",
        lambda file: file.without_tensors(tensor),
        (tensor,),
        as_codes(codes),
        kinds,
        effect=effect,
    )


def tensor_added(
    what: str, tensor: str, make: Callable[[WeightFile], Floats], *, kinds: tuple[str, ...], effect: Effect
) -> Fault:
    """A tensor of type F32 that does not belong there; make gives float32 of its shape."""

    def apply(file: WeightFile) -> WeightFile:
        values = make(file)
        return file.with_tensor(tensor, encoded(values, values.shape, GGMLQuantizationType.F32))

    return Fault(f"{tensor}: {what}", apply, (tensor,), (), kinds, effect=effect)


def reshaped(what: str, tensor: str, other: Values) -> Fault:
    """Weights of another shape in one tensor, which llama.cpp refuses."""

    def apply(file: WeightFile) -> WeightFile:
        old = file.tensors[tensor]
        values = other(file.exact[tensor])
        return file.with_tensor(tensor, encoded(values, values.shape, old.qtype))

    return Fault(f"{tensor}: {what}", apply, (tensor,), (), effect=Effect.REFUSED)


def of(model: str, *faults: Fault) -> tuple[Fault, ...]:
    """Faults of another model than the tiny Phi-4, whose names say so."""
    return tuple(replace(fault, name=f"{model}, {fault.name}") for fault in faults)
