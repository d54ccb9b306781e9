"""Where a key stands among the others: the order in which llama.cpp's converter writes them.

Order carries no meaning in the format, but a file that is repaired should look like one that was never broken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguf import Keys

# conversion/base.py, conversion/phi.py and vocab.py, metadata.py of gguf-py, in the order of a run; "{arch}" stands for
# the architecture. A name that ends in a dot stands for all keys that begin so and are not listed themselves.
KEY_ORDER = (
    Keys.General.ARCHITECTURE,
    Keys.General.TYPE,
    "general.sampling.",
    Keys.General.NAME,
    Keys.General.AUTHOR,
    Keys.General.VERSION,
    Keys.General.ORGANIZATION,
    Keys.General.FINETUNE,
    Keys.General.BASENAME,
    Keys.General.DESCRIPTION,
    Keys.General.QUANTIZED_BY,
    Keys.General.SIZE_LABEL,
    Keys.General.LICENSE,
    Keys.General.LICENSE_NAME,
    Keys.General.LICENSE_LINK,
    Keys.General.URL,
    Keys.General.DOI,
    Keys.General.UUID,
    Keys.General.REPO_URL,
    "general.source.",
    "general.base_model.",
    "general.dataset.",
    Keys.General.TAGS,
    Keys.General.LANGUAGES,
    "general.",
    Keys.LLM.CONTEXT_LENGTH,
    Keys.Rope.SCALING_ORIG_CTX_LEN,
    Keys.LLM.EMBEDDING_LENGTH,
    Keys.LLM.FEED_FORWARD_LENGTH,
    Keys.LLM.BLOCK_COUNT,
    Keys.Attention.HEAD_COUNT,
    Keys.Attention.HEAD_COUNT_KV,
    Keys.Attention.LAYERNORM_RMS_EPS,
    Keys.Rope.DIMENSION_COUNT,
    Keys.Rope.FREQ_BASE,
    Keys.General.FILE_TYPE,
    Keys.Attention.SLIDING_WINDOW,
    Keys.Rope.SCALING_ATTN_FACTOR,
    "{arch}.",
    Keys.General.QUANTIZATION_VERSION,
    Keys.Tokenizer.MODEL,
    Keys.Tokenizer.PRE,
    Keys.Tokenizer.LIST,
    Keys.Tokenizer.SCORES,
    Keys.Tokenizer.TOKEN_TYPE,
    Keys.Tokenizer.MERGES,
    Keys.Tokenizer.BOS_ID,
    Keys.Tokenizer.EOS_ID,
    Keys.Tokenizer.EOT_ID,
    Keys.Tokenizer.EOM_ID,
    Keys.Tokenizer.UNK_ID,
    Keys.Tokenizer.SEP_ID,
    Keys.Tokenizer.PAD_ID,
    Keys.Tokenizer.MASK_ID,
    Keys.Tokenizer.FIM_PRE_ID,
    Keys.Tokenizer.FIM_SUF_ID,
    Keys.Tokenizer.FIM_MID_ID,
    Keys.Tokenizer.FIM_PAD_ID,
    Keys.Tokenizer.FIM_REP_ID,
    Keys.Tokenizer.FIM_SEP_ID,
    Keys.Tokenizer.ADD_BOS,
    Keys.Tokenizer.ADD_EOS,
    Keys.Tokenizer.ADD_SEP,
    Keys.Tokenizer.ADD_PREFIX,
    f"{Keys.Tokenizer.CHAT_TEMPLATE}.",
    Keys.Tokenizer.CHAT_TEMPLATES,
    Keys.Tokenizer.CHAT_TEMPLATE,
    "tokenizer.",
)


def place_for(key: str, keys: Sequence[str], architecture: str | None) -> int:
    """Where among keys, those of a file in its order, a new key belongs: the index that it gets.

    That is right behind the nearest key that precedes it in KEY_ORDER; behind one that stands out of order itself, as
    general.file_type does at the end of what llama-quantize writes, only when there is no other. A key of which
    nothing is known goes to the end.

    >>> place_for("tokenizer.ggml.eot_token_id", ["tokenizer.ggml.eos_token_id", "tokenizer.chat_template"], "phi3")
    1
    """
    order = {name.format(arch=architecture or ""): rank for rank, name in enumerate(KEY_ORDER)}
    rank = _rank(key, order)
    if rank is None:
        return len(keys)
    best, place, highest = (False, -1), 0, -1
    for index, other in enumerate(keys):
        found = _rank(other, order)
        if found is None:
            continue
        in_order, highest = found >= highest, max(found, highest)
        if found <= rank and (in_order, found) >= best:
            best, place = (in_order, found), index + 1
    return place


def _rank(key: str, order: Mapping[str, int]) -> int | None:
    """The key's place in the order; None for a key of which nothing is known."""
    if key in order:
        return order[key]
    parts = key.split(".")
    families = (".".join(parts[:count]) + "." for count in range(len(parts) - 1, 0, -1))
    return next((order[family] for family in families if family in order), None)
