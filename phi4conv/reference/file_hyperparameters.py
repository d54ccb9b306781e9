"""Hyperparameters from GGUF metadata alone, as llama.cpp reads them for the architectures phi3 and llama.

Rules and defaults are those of llama.cpp's src/llama-model.cpp (load_hparams), src/llama-context.cpp (the rope
settings of a context), src/models/phi3.cpp and src/models/llama.cpp. A value of another type than llama.cpp reads is
refused here as it is there. What llama.cpp knows and the forward pass of model.py does not (YaRN, experts, prediction
layers, attention that is not causal, layers of different shapes) is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gguf.constants import GGUFValueType, Keys

from phi4conv.errors import FormatError, Problem
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.rows import GGUFRows, gguf_rows
from phi4conv.reference.hyperparameters import Hyperparameters, Rope
from phi4conv.reference.llama_metadata import RefusedByLlamaCpp, array, flag, scalar, string
from phi4conv.rows import row_count

PHI3, LLAMA = "phi3", "llama"

# Tensors that stand beside the layers; the factors are hyperparameters in all but name.
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
LLAMA3_FACTORS = "rope_freqs.weight"

# gguf-py has no name for the old spelling of the scaling factor (llama.cpp's LLM_KV_ROPE_SCALE_LINEAR).
SCALE_LINEAR = "{arch}.rope.scale_linear"

# Where each field is in a file: a key with the architecture to be put in, or a tensor's name.
HYPERPARAMETER_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "layer_count": Keys.LLM.BLOCK_COUNT,
        "hidden_size": Keys.LLM.EMBEDDING_LENGTH,
        "feed_forward_size": Keys.LLM.FEED_FORWARD_LENGTH,
        "head_count": Keys.Attention.HEAD_COUNT,
        "kv_head_count": Keys.Attention.HEAD_COUNT_KV,
        "head_size": Keys.Attention.KEY_LENGTH,
        "rms_norm_eps": Keys.Attention.LAYERNORM_RMS_EPS,
        "context_length": Keys.LLM.CONTEXT_LENGTH,
        "sliding_window": Keys.Attention.SLIDING_WINDOW,
        "rope.dimension_count": Keys.Rope.DIMENSION_COUNT,
        "rope.base": Keys.Rope.FREQ_BASE,
        "rope.original_context_length": Keys.Rope.SCALING_ORIG_CTX_LEN,
        "rope.short_factors": SHORT_FACTORS,
        "rope.long_factors": LONG_FACTORS,
        "rope.magnitude": Keys.Rope.SCALING_ATTN_FACTOR,
        "rope.position_scale": Keys.Rope.SCALING_FACTOR,
    }
)

# Keys by which a file may state a field without having the field's own key: values are as long as keys, and the old
# spelling of the scaling factor.
OTHER_KEYS: Mapping[str, str] = MappingProxyType(
    {"head_size": Keys.Attention.VALUE_LENGTH, "rope.position_scale": SCALE_LINEAR}
)

LAYER_LIMIT = 512  # LLAMA_MAX_LAYERS, llama-hparams.h
DEFAULT_BASE = 10000.0
SCALING_TYPES = ("none", "linear", "yarn", "longrope")  # llama-model.cpp, LLAMA_ROPE_SCALING_TYPES

# More factors than any head has pairs: a tensor that is larger holds something else and is not read.
MOST_FACTORS = 1 << 16

INTEGERS = (GGUFValueType.UINT32, GGUFValueType.INT32)  # of an array with one value a layer

# Keys that change what llama.cpp computes, and what they must be for model.py to compute the same.
UNSUPPORTED = (Keys.LLM.EXPERT_COUNT, Keys.LLM.NEXTN_PREDICT_LAYERS)


def hyperparameter_key(field: str, architecture: str) -> str:
    """The metadata key, or the tensor, that holds a field; see stated_by for what a file has in its place.

    >>> hyperparameter_key("rope.base", "phi3"), hyperparameter_key("rope.long_factors", "phi3")
    ('phi3.rope.freq_base', 'rope_factors_long.weight')
    """
    return HYPERPARAMETER_KEYS[field].format(arch=architecture)


def stated_by(field: str, file: GGUFFile) -> str:
    """The metadata key, or the tensor, by which this file states a field; hyperparameter_key's where it has none.

    Both fields of factors come from one tensor, rope_freqs, in a llama file without longrope.

    Raises:
        RefusedByLlamaCpp: rope.scaling.type, which says what tensors are read, is no string.
        FormatError: See file_architecture.
    """
    architecture = file_architecture(file)
    usual = hyperparameter_key(field, architecture)
    if usual in (SHORT_FACTORS, LONG_FACTORS):
        scaling = string(file, Keys.Rope.SCALING_TYPE.format(arch=architecture)) or "linear"
        read = factor_tensors(architecture, scaling)[usual == LONG_FACTORS]
        return read if any(entry.name == read for entry in file.tensors) else usual
    other = OTHER_KEYS.get(field, usual).format(arch=architecture)
    return other if other in file.metadata and usual not in file.metadata else usual


def file_architecture(file: GGUFFile) -> str:
    """PHI3 or LLAMA.

    Raises:
        FormatError: The file says something else, or nothing.
    """
    architecture = string(file, Keys.General.ARCHITECTURE)
    if architecture in (PHI3, LLAMA):
        return architecture
    raise FormatError(
        Problem(
            "phi4conv runs no model of this architecture",
            where=f"{file.path}: {Keys.General.ARCHITECTURE}",
            expected=f"{PHI3}, or {LLAMA} for a Phi-4 saved as a Llama",
            found="missing" if architecture is None else architecture,
            next_step="give a file that was made from a Phi-3 or Phi-4",
        )
    )


def file_hyperparameters(file: GGUFFile) -> Hyperparameters:
    """The shape of the model in a file, with llama.cpp's defaults for what the file leaves out.

    Values that llama.cpp reads and then cannot run with are given as they are; file_problems.key_problems lists them.
    feed_forward_size is 0 without its key. sliding_window is the file's, though llama.cpp does not apply it.

    Raises:
        RefusedByLlamaCpp: A required key is missing, or a value has a type or a size that llama.cpp refuses.
        FormatError: The file cannot be trusted, is of another architecture, or asks for what model.py does not run.
    """
    return read_hyperparameters(file, gguf_rows(file))


def read_hyperparameters(file: GGUFFile, tensors: Mapping[str, GGUFRows]) -> Hyperparameters:
    """As file_hyperparameters, with the file's tensors at hand."""
    keys = LlamaKeys(file)
    keys.refuse_unsupported()
    context_length = keys.required(Keys.LLM.CONTEXT_LENGTH, GGUFValueType.UINT32)
    hidden_size = keys.required(Keys.LLM.EMBEDDING_LENGTH, GGUFValueType.UINT32)
    layer_count = keys.required(Keys.LLM.BLOCK_COUNT, GGUFValueType.UINT32)
    if not 0 < layer_count <= LAYER_LIMIT:
        raise keys.refused("value", Keys.LLM.BLOCK_COUNT, f"1 to {LAYER_LIMIT}", str(layer_count), aborts=True)
    head_count = keys.same_for_all_layers(Keys.Attention.HEAD_COUNT, layer_count, default=0)
    if not head_count:
        raise keys.refused("missing", Keys.Attention.HEAD_COUNT, "the number of attention heads", "none")
    share = hidden_size // head_count
    head_size = keys.optional(Keys.Attention.KEY_LENGTH, GGUFValueType.UINT32, share)
    value_size = keys.optional(Keys.Attention.VALUE_LENGTH, GGUFValueType.UINT32, share)
    if value_size != head_size:
        sizes = {Keys.Attention.KEY_LENGTH: head_size, Keys.Attention.VALUE_LENGTH: value_size}
        # At least one is not what a file without the key means, so that its key is there.
        wrong = next(pattern for pattern, size in sizes.items() if size != share)
        right = next(size for pattern, size in sizes.items() if pattern != wrong)
        expected = f"{right}: the keys and the values of a head have one length"
        raise keys.refused("value", wrong, expected, str(sizes[wrong]), aborts=True)
    return Hyperparameters(
        layer_count=layer_count,
        hidden_size=hidden_size,
        feed_forward_size=keys.same_for_all_layers(Keys.LLM.FEED_FORWARD_LENGTH, layer_count, default=0),
        head_count=head_count,
        kv_head_count=keys.same_for_all_layers(Keys.Attention.HEAD_COUNT_KV, layer_count, default=head_count),
        head_size=head_size,
        rms_norm_eps=keys.required(Keys.Attention.LAYERNORM_RMS_EPS, GGUFValueType.FLOAT32),
        rope=read_rope(keys, tensors, head_size, context_length),
        context_length=context_length,
        sliding_window=keys.optional(Keys.Attention.SLIDING_WINDOW, GGUFValueType.UINT32, 0) or None,
    )


def read_rope(keys: LlamaKeys, tensors: Mapping[str, GGUFRows], head_size: int, context_length: int) -> Rope:
    """The rotary settings; raises as file_hyperparameters does."""
    scaling = keys.optional(Keys.Rope.SCALING_TYPE, GGUFValueType.STRING, "linear")
    if scaling not in SCALING_TYPES:
        expected = f"one of {', '.join(SCALING_TYPES)}"
        raise keys.refused("value", Keys.Rope.SCALING_TYPE, expected, scaling, aborts=True)
    if scaling == "yarn":
        raise keys.not_run(Keys.Rope.SCALING_TYPE, "none, linear or longrope", "yarn")
    factor = keys.optional(Keys.Rope.SCALING_FACTOR, GGUFValueType.FLOAT32, None)
    if factor is None:
        factor = keys.optional(SCALE_LINEAR, GGUFValueType.FLOAT32, 0.0)
    short_factors, long_factors = rope_factors(tensors, keys.architecture, scaling)
    return Rope(
        dimension_count=keys.optional(Keys.Rope.DIMENSION_COUNT, GGUFValueType.UINT32, head_size),
        base=keys.optional(Keys.Rope.FREQ_BASE, GGUFValueType.FLOAT32, DEFAULT_BASE),
        original_context_length=keys.optional(Keys.Rope.SCALING_ORIG_CTX_LEN, GGUFValueType.UINT32, context_length),
        short_factors=short_factors,
        long_factors=long_factors,
        magnitude=keys.optional(Keys.Rope.SCALING_ATTN_FACTOR, GGUFValueType.FLOAT32, 1.0),
        position_scale=1.0 if scaling == "none" or not factor else 1.0 / factor,
    )


def factor_tensors(architecture: str, scaling: str) -> tuple[str, str]:
    """The tensors that hold the factors for short and for long contexts: phi3 reads its two whatever the type is."""
    plain_llama = architecture == LLAMA and scaling != "longrope"
    return (LLAMA3_FACTORS, LLAMA3_FACTORS) if plain_llama else (SHORT_FACTORS, LONG_FACTORS)


def rope_factors(
    tensors: Mapping[str, GGUFRows], architecture: str, scaling: str
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The factors for short and for long contexts; None where the file has no such tensor."""
    short, long = factor_tensors(architecture, scaling)
    return read_factors(tensors.get(short)), read_factors(tensors.get(long))


def read_factors(rows: GGUFRows | None) -> tuple[float, ...] | None:
    """A tensor's values; None without it, or when it is too large to be factors."""
    if rows is None or row_count(rows.shape) * rows.shape[-1] > MOST_FACTORS:
        return None
    return tuple(rows.rows(0, row_count(rows.shape)).ravel().tolist())


class LlamaKeys:
    """Metadata by key pattern, as llama.cpp's llama_model_loader::get_key and get_key_or_arr read them."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = file_architecture(file)

    def optional(self, pattern: str, value_type: GGUFValueType, default: Any) -> Any:
        """A value of this type, or the default without the key."""
        value = scalar(self.file, self._key(pattern), value_type)
        return default if value is None else value

    def required(self, pattern: str, value_type: GGUFValueType) -> Any:
        """A value of this type."""
        value = self.optional(pattern, value_type, None)
        if value is None:
            raise self.refused("missing", pattern, f"a {value_type.name} value", "no such key")
        return value

    def same_for_all_layers(self, pattern: str, layer_count: int, default: int) -> int:
        """A UINT32, or an array of one integer for each layer, all of them equal."""
        pair = self.file.metadata.get(self._key(pattern))
        if pair is None or pair.type != GGUFValueType.ARRAY:
            return int(self.optional(pattern, GGUFValueType.UINT32, default))
        values: Sequence[int] = array(self.file, pair.key, INTEGERS) or ()
        if len(values) != layer_count:
            raise self.refused("array-length", pattern, f"{layer_count} values, one a layer", f"{len(values)}")
        if len(set(values)) > 1:
            raise self.not_run(pattern, "the same for every layer", f"{min(values)} to {max(values)}")
        return values[0]

    def refuse_unsupported(self) -> None:
        """Raise FormatError for keys by which llama.cpp would compute what model.py does not."""
        for pattern in UNSUPPORTED:
            count = self.optional(pattern, GGUFValueType.UINT32, 0)
            if count:
                raise self.not_run(pattern, "0, or no such key", str(count))
        if not flag(self.file, self._key(Keys.Attention.CAUSAL), default=True):
            raise self.not_run(Keys.Attention.CAUSAL, "true, or no such key", "false")

    def refused(
        self, reason: str, pattern: str, expected: str, found: str, *, aborts: bool = False
    ) -> RefusedByLlamaCpp:
        """The error for a value with which llama.cpp does not load."""
        problem = Problem(
            "llama.cpp does not load the file",
            where=f"{self.file.path}: {self._key(pattern)}",
            expected=expected,
            found=found,
            next_step="convert the checkpoint again, or set the key with `phi4conv fix --set`",
        )
        return RefusedByLlamaCpp(reason, problem, aborts=aborts)

    def not_run(self, pattern: str, expected: str, found: str) -> FormatError:
        """The error for a value that llama.cpp may know but that no Phi-4 needs."""
        return FormatError(
            Problem(
                "phi4conv does not run this kind of model",
                where=f"{self.file.path}: {self._key(pattern)}",
                expected=expected,
                found=found,
                next_step="give a file that was made from a Phi-3 or Phi-4",
            )
        )

    def _key(self, pattern: str) -> str:
        return pattern.format(arch=self.architecture)
