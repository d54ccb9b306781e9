"""What a file's metadata say of the model's shape, held against config.json: which keys differ, and what that does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from gguf.constants import Keys

from phi4conv.check.model import Finding, Severity
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, f32, u32
from phi4conv.reference.file_hyperparameters import (
    HYPERPARAMETER_KEYS,
    LLAMA3_FACTORS,
    OTHER_KEYS,
    hyperparameter_key,
    stated_by,
)
from phi4conv.reference.hyperparameters import Hyperparameters

WARN = Severity.WARN

AGAIN = "make the file again from its checkpoint, with `phi4conv convert`"

REFUSED = "its tensors have other shapes, so that llama.cpp refuses the file"
OTHER_HEADS = "attention cuts its vectors into other heads than the model was trained with"


@dataclass(frozen=True)
class Field:
    """One value that both sides state.

    Attributes:
        name: Its place in Hyperparameters; file_hyperparameters.py knows the metadata key.
        id: Of the finding when they differ.
        meaning: What a wrong value does.
        severity: How much that matters.
    """

    name: str
    id: str
    meaning: str
    severity: Severity = Severity.FAIL


FIELDS = (
    Field("layer_count", "phi3/block-count", "layers are lost or missing, so that llama.cpp refuses the file"),
    Field("hidden_size", "phi3/embedding-length", REFUSED),
    Field("feed_forward_size", "phi3/feed-forward-length", REFUSED),
    Field("head_count", "phi3/head-count", OTHER_HEADS),
    Field("kv_head_count", "phi3/kv-head-count", "queries meet the keys of other heads, or llama.cpp refuses the file"),
    Field("head_size", "phi3/head-size", OTHER_HEADS),
    Field("rms_norm_eps", "phi3/norm-epsilon", "every norm scales its vectors a little otherwise"),
    Field("rope.base", "phi3/rope-base", "positions turn at other frequencies: the longer a text, the worse"),
    Field("rope.dimension_count", "phi3/rope-dimension", "positions turn other parts of each head"),
    Field("rope.position_scale", "phi3/rope-scaling", "positions are counted in other steps than the model knows"),
    Field("rope.magnitude", "phi3/rope-attention-factor", "attention is too sharp or too blurred"),
    Field("rope.short_factors", "phi3/rope-factors", "positions up to the original context turn at other frequencies"),
    Field("rope.long_factors", "phi3/rope-factors", "positions in long contexts turn at other frequencies"),
    Field("context_length", "phi3/context-length", "programs offer a context that the model was not made for", WARN),
    Field(
        "sliding_window",
        "phi3/sliding-window",
        "programs that respect it let attention see other tokens than the model knows; llama.cpp leaves it out",
    ),
)

ORIGINAL_LENGTH = "phi3/rope-original-context-length"

# The ids of all findings here.
IDS = frozenset({*(field.id for field in FIELDS), ORIGINAL_LENGTH})

# Those that the tensors' shapes follow.
SIZES = frozenset({"layer_count", "hidden_size", "feed_forward_size", "head_count", "kv_head_count", "head_size"})

# Of the ids those by which a run of the file as llama.cpp does it is no other.
IDS_WITHOUT_EFFECT = frozenset({"phi3/context-length", "phi3/sliding-window"})

# How `phi4conv fix --set` spells that there is none.
NONE_AS_SETTING: Mapping[str, str] = {"sliding_window": "0"}


def differences(
    file: Hyperparameters,
    source: Hyperparameters,
    architecture: str,
    *,
    stated_in: GGUFFile | None = None,
    tensors_fit: bool = True,
) -> Iterator[Finding]:
    """A finding for every value that differs; where is the metadata key, or the tensor of LongRoPE factors.

    stated_in: The GGUF from which file was read: of several keys for one value the one that is there is blamed.
    tensors_fit: Whether the file's tensors have the shapes of the source's: then another value mends the file, while
    tensors that were made for a wrong one have to be made again.
    """
    told: set[str] = set()
    for field in (*FIELDS, original_length(source)):
        stated, right = attrgetter(field.name)(file), attrgetter(field.name)(source)
        if (field.name == "head_size" and follows(file, source)) or same(stated, right):
            continue
        usual = hyperparameter_key(field.name, architecture)
        where = usual if stated_in is None else stated_by(field.name, stated_in)
        if where in told:  # a llama file has the same factors for every length
            continue
        told.add(where)
        severity, meaning = weight_of(field, where, stated, right)
        made_for_it = field.name in SIZES and not tensors_fit
        yield Finding(
            id=field.id,
            severity=severity,
            code="wrong",
            message=meaning,
            where=where,
            expected=shown(in_file(field.name, right)),
            actual=shown(in_file(field.name, stated)),
            advice=AGAIN if made_for_it else mending(field.name, right, architecture, where),
        )


def weight_of(field: Field, where: str, stated: Any, right: Any) -> tuple[Severity, str]:
    """How much a difference matters, and what it does."""
    if field.name.endswith("_factors") and same(effective(stated), effective(right)):
        return Severity.INFO, "factors of 1 change nothing"
    if where == LLAMA3_FACTORS:
        return field.severity, "positions turn at other frequencies"
    return field.severity, field.meaning


def effective(factors: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Factors by what they do: to divide by 1 is to leave as it is.

    >>> effective((1.0, 1.0)), effective((1.0, 2.0))
    (None, (1.0, 2.0))
    """
    return None if factors is None or all(factor == 1 for factor in factors) else factors


def in_file(name: str, value: Any) -> Any:
    """A value as the file's key states it: llama.cpp's factor is the inverse of what positions are multiplied by."""
    if name != "rope.position_scale":
        return value
    return 1 / value if value else math.inf


def mending(name: str, right: Any, architecture: str, where: str = "") -> str:
    """What gives a file the right value; where is what it has for it, if that may be another key than the usual one."""
    usual = hyperparameter_key(name, architecture)
    key = usual if name == "head_size" else where or usual
    if key.endswith(".weight"):
        return AGAIN
    # llama.cpp wants both halves of a head's description, or none.
    keys = (key, Keys.Attention.VALUE_LENGTH.format(arch=architecture)) if name == "head_size" else (key,)
    value = exactly(in_file(name, right)) if right is not None else NONE_AS_SETTING.get(name)
    settings = [f"--set {key}={value}" for key in keys]
    return AGAIN if value is None else f"`phi4conv fix IN.gguf OUT.gguf {' '.join(settings)}`"


def mending_key(key: str, source: Hyperparameters, architecture: str) -> str:
    """What gives a file the right value of a key that llama.cpp refuses; empty for a key that is not known here."""
    if key == Keys.Rope.SCALING_TYPE.format(arch=architecture):
        right = "none" if source.rope.long_factors is None else "longrope"
        return f"`phi4conv fix IN.gguf OUT.gguf --set {key}={right}`"
    name = field_of(key, architecture)
    return "" if name is None else mending(name, attrgetter(name)(source), architecture)


def source_pair(key: str, source: Hyperparameters, architecture: str) -> MetadataPair | None:
    """The source's value as the pair that llama.cpp reads; None where it has none, or nobody knows the key."""
    if (name := field_of(key, architecture)) is None:
        return None
    right = in_file(name, attrgetter(name)(source))
    return None if right is None else f32(key, right) if isinstance(right, float) else u32(key, right)


def field_of(key: str, architecture: str) -> str | None:
    """Which field a metadata key holds.

    >>> field_of("phi3.rope.freq_base", "phi3"), field_of("general.name", "phi3")
    ('rope.base', None)
    """
    patterns = (*HYPERPARAMETER_KEYS.items(), *OTHER_KEYS.items())
    return next((name for name, pattern in patterns if pattern.format(arch=architecture) == key), None)


def follows(file: Hyperparameters, source: Hyperparameters) -> bool:
    """Whether the size of a head is wrong only because another value is, which has a finding of its own."""
    others = (file.head_count, file.hidden_size) != (source.head_count, source.hidden_size)
    return others and file.head_size == file.hidden_size // max(1, file.head_count)


def original_length(source: Hyperparameters) -> Field:
    """The original context length matters to LongRoPE alone, whose factors are chosen by it."""
    name = "rope.original_context_length"
    if same(effective(source.rope.short_factors), effective(source.rope.long_factors)):
        return Field(name, ORIGINAL_LENGTH, "short and long contexts have no different factors", Severity.INFO)
    return Field(name, ORIGINAL_LENGTH, "LongRoPE changes from its short to its long factors elsewhere")


def same(stated: Any, right: Any) -> bool:
    """Whether two values are equal as float32, in which GGUF keeps numbers.

    >>> same(1e-5, float(np.float32(1e-5))), same(None, (1.0,))
    (True, False)
    """
    if stated is None or right is None:
        return stated is right
    with np.errstate(over="ignore"):  # the inverse of a tiny factor is infinite in float32
        left, other = np.atleast_1d(np.float32(stated)), np.atleast_1d(np.float32(right))
    return left.shape == other.shape and bool(np.all(left == other))


def shown(value: Any) -> str:
    """A value for people, with no more digits than float32 has.

    >>> shown(float(np.float32(1e-5))), shown(250000.0), shown(None)
    ('1e-05', '250000', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"{len(value)} factors, {', '.join(shown(each) for each in value[:4])}…"
    return exactly(value)


def exactly(value: float) -> str:
    """A number in the fewest digits that give the same float32.

    >>> exactly(1e-5), exactly(250000.0), exactly(40)
    ('1e-05', '250000', '40')
    """
    return str(np.float32(value)).removesuffix(".0") if isinstance(value, float) else str(value)
