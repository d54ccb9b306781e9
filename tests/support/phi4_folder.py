"""The whole of Phi-4's tokenizer as a model folder, from the vocabulary that phi4conv carries: for any clone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import TokenType

from phi4conv.carried import PHI4_ROWS, PHI4_WIDTH, phi4_vocabulary
from phi4conv.hf.tokenizer_json import tokenizer_json
from phi4conv.vocab import Vocabulary

# Phi-4's, where the conversion reads a value or llama.cpp needs one.
CONFIG: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "bos_token_id": 100257,
    "eos_token_id": 100265,
    "pad_token_id": 100349,
    "hidden_act": "silu",
    "hidden_size": PHI4_WIDTH,
    "intermediate_size": 17920,
    "max_position_embeddings": 16384,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "original_max_position_embeddings": 16384,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 250000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": PHI4_ROWS,
}
SPECIAL_TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|dummy_85|>"}


def phi4_folder(folder: Path) -> Path:
    """Write the files of Phi-4's tokenizer and its config.json to a folder, which is made if need be.

    phi4conv convert FOLDER OUT.gguf --vocab-only makes a GGUF with the full vocabulary of it. There are no weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = phi4_vocabulary()
    (folder / "tokenizer.json").write_bytes(tokenizer_json(vocabulary))
    contents = {
        "config": CONFIG,
        "special_tokens_map": SPECIAL_TOKENS,
        "tokenizer_config": tokenizer_config(vocabulary),
    }
    for stem, content in contents.items():
        (folder / f"{stem}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder


def tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer_config.json as Microsoft publishes it."""
    flags = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False, "special": True}
    added = {
        str(token_id): {"content": text, **flags}
        for token_id, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.types, strict=True))
        if kind == TokenType.CONTROL
    }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "chat_template": vocabulary.chat_template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 16384,
        "tokenizer_class": "GPT2Tokenizer",
        **SPECIAL_TOKENS,
    }
