"""What llama.cpp knows by heart about vocabularies: names of split regexes and texts of special tokens, as data.

Everything is from llama_vocab::impl::load in llama.cpp's src/llama-vocab.cpp, as of October 2026; the tests hold
every name and text against the running library. How a named regex splits text is the business of split.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf import Keys, TokenType

from phi4conv.reference.llama_cpp import TokenAttribute

DEFAULT_PRE = "default"

# Keys that `gguf` has no constant for: llama-arch.cpp.
TOKEN_TYPE_COUNT = "tokenizer.ggml.token_type_count"  # noqa: S105  # no password
SUPPRESS_TOKENS = "tokenizer.ggml.suppress_tokens"
LOWERCASE = "tokenizer.ggml.normalizer.lowercase"
STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents"

# A type that is not here gives no attribute at all.
TYPE_ATTRIBUTES: Mapping[int, int] = {
    TokenType.NORMAL: TokenAttribute.NORMAL.value,
    TokenType.UNKNOWN: TokenAttribute.UNKNOWN.value,
    TokenType.CONTROL: TokenAttribute.CONTROL.value,
    TokenType.USER_DEFINED: TokenAttribute.USER_DEFINED.value,
    TokenType.UNUSED: TokenAttribute.UNUSED.value,
    TokenType.BYTE: TokenAttribute.BYTE.value,
}


@dataclass(frozen=True)
class PreSettings:
    """What a name in tokenizer.ggml.pre sets besides the regex."""

    add_bos: bool = False  # what tokenizer.ggml.add_bos_token replaces
    add_sep: bool = False
    ignore_merges: bool = False  # a word that is a token stays whole, whatever the merges say
    clean_spaces: bool = True  # llama_detokenize drops spaces before punctuation
    escape_whitespaces: bool = False  # spaces are U+2581, as in SentencePiece
    byte_level: bool = True  # words are spelled in GPT-2's byte alphabet
    default_bos: bool = True  # without a bos_token_id, 11 is BOS


# A SentencePiece vocabulary has no split regex; it adds BOS unless the file says otherwise.
SENTENCEPIECE = PreSettings(add_bos=True, clean_spaces=False, escape_whitespaces=True, byte_level=False)

_GROUPS: tuple[tuple[PreSettings, str], ...] = (
    (
        PreSettings(),
        (
            "default falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum "
            "modern-bert jais-2 refact stablelm2 olmo dbrx smaug-bpe jais codeshell bloom gpt3-finnish exaone exaone4 "
            "exaone-moe minerva-7b megrez mellum2"
        ),
    ),
    (
        PreSettings(clean_spaces=False),
        (
            "deepseek-llm deepseek-coder deepseek-v3 spark2_5 command-r qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 "
            "poro-chat viking smollm gpt-4o llama4 kanana2 talkie tiny_aya cohere2moe superbpe trillion "
            "granite-docling bailingmoe bailingmoe2 llada-moe seed-coder hunyuan hunyuan-dense hy_v4 joyai-llm kimi-k2 "
            "ufakzeka grok-2 afmoe laguna minimax-m2 solar-open"
        ),
    ),
    (
        PreSettings(ignore_merges=True, add_bos=True),
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (PreSettings(ignore_merges=True), "minicpm5"),
    (PreSettings(ignore_merges=True, clean_spaces=False), "youtu granite-embed-multi-97m"),
    (PreSettings(ignore_merges=True, clean_spaces=False, add_bos=True), "tekken"),
    (PreSettings(clean_spaces=False, add_bos=True), "chameleon"),
    (PreSettings(add_sep=True), "jina-v1-en jina-v2-code roberta-bpe"),
    (PreSettings(default_bos=False), "chatglm-bpe"),
    (PreSettings(default_bos=False, ignore_merges=True), "glm4 glm5"),
    (PreSettings(escape_whitespaces=True, byte_level=False), "gemma4 granite-embed-multi-311m"),
    (PreSettings(escape_whitespaces=True, byte_level=False, clean_spaces=False), "sarvam-moe"),
    (PreSettings(byte_level=False), "whitespace"),
)

# Every name that llama.cpp accepts in tokenizer.ggml.pre of a gpt2 vocabulary.
PRE_SETTINGS: Mapping[str, PreSettings] = {name: settings for settings, names in _GROUPS for name in names.split()}

# With this one, tokenizer.ggml.merges may be absent.
MERGES_OPTIONAL = frozenset({"kimi-k2"})

# With these two, add_bos is true whatever the file says.
ALWAYS_ADD_BOS = frozenset({"gemma4", "granite-embed-multi-311m"})

# tokenizer.ggml.model of the vocabularies that are read here, and of those that llama.cpp knows besides.
KNOWN_MODELS = ("gpt2", "llama")
OTHER_MODELS = frozenset(
    {"no_vocab", "none", "bert", "hybriddna", "whitespace", "t5", "rwkv", "test", "plamo2", "gemma4"}
)

# BOS, EOS and the unknown token where the file names none, by model.
DEFAULT_IDS: Mapping[str, Mapping[str, int]] = {"gpt2": {"bos": 11, "eos": 11}, "llama": {"bos": 1, "eos": 2, "unk": 0}}

# Role and key in the order in which llama.cpp reads them; the last three keys are of old files.
ID_KEYS: tuple[tuple[str, str], ...] = (
    ("bos", Keys.Tokenizer.BOS_ID),
    ("eos", Keys.Tokenizer.EOS_ID),
    ("eot", Keys.Tokenizer.EOT_ID),
    ("eom", Keys.Tokenizer.EOM_ID),
    ("unk", Keys.Tokenizer.UNK_ID),
    ("sep", Keys.Tokenizer.SEP_ID),
    ("pad", Keys.Tokenizer.PAD_ID),
    ("mask", Keys.Tokenizer.MASK_ID),
    ("fim_pre", Keys.Tokenizer.FIM_PRE_ID),
    ("fim_suf", Keys.Tokenizer.FIM_SUF_ID),
    ("fim_mid", Keys.Tokenizer.FIM_MID_ID),
    ("fim_pad", Keys.Tokenizer.FIM_PAD_ID),
    ("fim_rep", Keys.Tokenizer.FIM_REP_ID),
    ("fim_sep", Keys.Tokenizer.FIM_SEP_ID),
    ("fim_pre", Keys.Tokenizer.PREFIX_ID),
    ("fim_suf", Keys.Tokenizer.SUFFIX_ID),
    ("fim_mid", Keys.Tokenizer.MIDDLE_ID),
)

# A role that no key fills goes to the token with one of these texts. Of several, the first in the order of
# llama.cpp's hash map gets it: see gnu_order.py.
ROLE_TEXTS: Mapping[str, tuple[str, ...]] = {
    "eot": (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>"),
        *("_<EOT>", "[EOT]", "<\uff5cend▁of▁sentence\uff5c>", "<end_of_utterance>"),
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim▁begin\uff5c>", "<PRE>", "▁<PRE>"),
        *("<|code_prefix|>", "<|prefix|>"),
    ),
    "fim_suf": (
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim▁hole\uff5c>", "<SUF>", "▁<SUF>"),
        *("<|code_suffix|>", "<|suffix|>"),
    ),
    "fim_mid": (
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim▁end\uff5c>", "<MID>", "▁<MID>"),
        *("<|code_middle|>", "<|middle|>"),
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}

# Tokens with these texts end generation, whatever their type; so do those with these roles.
END_TEXTS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend▁of▁sentence\uff5c>", "[e~["),
    }
)
END_ROLES = ("fim_pad", "fim_rep", "fim_sep", "eos", "eot", "eom")

# Typed USER_DEFINED whatever the file says, so that they are always shown (gpt-oss).
ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

# Where one of these sets is complete, "<|end|>" does not end generation (o200k_harmony, solar-open).
END_IS_A_MARK = (
    *({"<|return|>", "<|call|>"}, {"<|return|>", "<|calls|>"}),
    *({"<|flush|>", "<|call|>"}, {"<|flush|>", "<|calls|>"}),
)

# Where one of these ends generation, "</s>" does not (gemma4, plamo).
EOS_IS_A_MARK = ("<|tool_response>", "<|plamo:eos|>")
