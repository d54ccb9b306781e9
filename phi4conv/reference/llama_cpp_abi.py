"""llama.cpp's C interface for ctypes: the structs, the functions, and the proof that they still fit.

What is declared here is `llama.h`, `ggml.h` and `ggml-quants.h` of October 2026, the release inside
xllamacpp 2026.10.11549. Struct layouts drift between releases without a version number to ask for, so
open_library() compares every default value that llama.cpp fills in with the one expected at that offset.

This module runs in the child process of `phi4conv.reference.llama_cpp` only: a failed assertion of
llama.cpp ends the process that holds it.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_void_p,
)
from typing import Any

# Both parameter structs grow at their end. llama.cpp reads and writes its own size only, so room to spare
# is harmless: both are passed in memory (System V x86-64, AArch64), each as the last argument.
SLACK = c_uint8 * 256


class ModelParams(ctypes.Structure):
    """`struct llama_model_params`."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("slack", SLACK),
    )


class ContextParams(ctypes.Structure):
    """`struct llama_context_params` up to `type_v`.

    What follows moved by eight bytes within ten days of October 2026; nothing here needs it.
    """

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("slack", SLACK),
    )


class Batch(ctypes.Structure):
    """`llama_batch`. Null `pos` and `seq_id` mean the next positions of sequence 0."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)

# Name: (result, *arguments), as in the headers.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "llama_log_set": (None, LogCallback, c_void_p),
    "llama_backend_init": (None,),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (c_void_p, c_char_p, ModelParams),
    "llama_model_free": (None, c_void_p),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_model_meta_count": (c_int32, c_void_p),
    "llama_model_meta_key_by_index": (c_int32, c_void_p, c_int32, c_void_p, c_size_t),
    "llama_model_meta_val_str_by_index": (c_int32, c_void_p, c_int32, c_void_p, c_size_t),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_vocab_get_text": (c_char_p, c_void_p, c_int32),
    "llama_vocab_get_attr": (c_int, c_void_p, c_int32),
    "llama_vocab_is_eog": (c_bool, c_void_p, c_int32),
    "llama_tokenize": (c_int32, c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool),
    "llama_detokenize": (c_int32, c_void_p, c_void_p, c_int32, c_void_p, c_int32, c_bool, c_bool),
    "llama_token_to_piece": (c_int32, c_void_p, c_int32, c_void_p, c_int32, c_int32, c_bool),
    "llama_init_from_model": (c_void_p, c_void_p, ContextParams),
    "llama_free": (None, c_void_p),
    "llama_batch_init": (Batch, c_int32, c_int32, c_int32),
    "llama_batch_free": (None, Batch),
    "llama_decode": (c_int32, c_void_p, Batch),
    "llama_get_logits": (POINTER(c_float), c_void_p),
    "ggml_blck_size": (c_int64, c_int),
    "ggml_row_size": (c_size_t, c_int, c_int64),
    "ggml_quantize_requires_imatrix": (c_bool, c_int),
    "ggml_quantize_chunk": (c_size_t, c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p),
    "ggml_fp16_to_fp32_row": (None, c_void_p, c_void_p, c_int64),
    "ggml_bf16_to_fp32_row": (None, c_void_p, c_void_p, c_int64),
}

# Each is llama_vocab_NAME, from a vocabulary to an id, or to -1 when the vocabulary has no such token.
SPECIAL_TOKENS = (
    *("bos", "eos", "eot", "sep", "nl", "pad", "mask"),
    *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
)
FUNCTIONS |= {f"llama_vocab_{name}": (c_int32, c_void_p) for name in SPECIAL_TOKENS}

# llama_model_default_params() and llama_context_default_params(), src/llama-model.cpp and src/llama-context.cpp.
MODEL_DEFAULTS = {
    "devices": None,
    "tensor_buft_overrides": None,
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "tensor_split": None,
    "progress_callback": None,
    "progress_callback_user_data": None,
    "kv_overrides": None,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
}
CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "cb_eval": None,
    "cb_eval_user_data": None,
    "type_k": 1,
    "type_v": 1,
}


class InterfaceError(Exception):
    """The library is not the llama.cpp that this module describes."""


def open_library(path: str) -> ctypes.CDLL:
    """Load llama.cpp into this process, with every function of FUNCTIONS declared.

    Raises InterfaceError when the library cannot be loaded, lacks a function, or lays a struct out otherwise.
    """
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise InterfaceError(f"it cannot be loaded: {error}") from error
    missing = [name for name in FUNCTIONS if not hasattr(library, name)]
    if missing:
        raise InterfaceError(f"it does not export {', '.join(missing)}")
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    check_layouts(library)
    return library


def check_layouts(library: ctypes.CDLL) -> None:
    """Raise InterfaceError when llama.cpp's default values are not where the structs above say."""
    check_defaults("llama_model_params", library.llama_model_default_params(), MODEL_DEFAULTS)
    check_defaults("llama_context_params", library.llama_context_default_params(), CONTEXT_DEFAULTS)
    batch = library.llama_batch_init(3, 0, 1)
    # A fresh batch for token ids has no embeddings; its list of sequence ids ends in a null pointer.
    fits = (
        batch.n_tokens == 0
        and not batch.embd
        and all((batch.token, batch.pos, batch.n_seq_id, batch.seq_id, batch.logits))
        and [bool(batch.seq_id[index]) for index in range(4)] == [True, True, True, False]
    )
    if not fits:
        raise InterfaceError("llama_batch has another layout")
    library.llama_batch_free(batch)


def check_defaults(name: str, params: ctypes.Structure, expected: dict[str, Any]) -> None:
    """Raise InterfaceError when a field of params does not hold its expected value."""
    for field, value in expected.items():
        found = getattr(params, field)
        if found != value:
            raise InterfaceError(f"{name} has another layout: {field} is {found} by default, not {value}")
