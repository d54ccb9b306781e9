"""Vocabularies that differ in one thing from a good one: what differs, and the metadata of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from gguf import GGUFValueType, Keys, TokenType
from vocabulary_files import Pairs, changed

from phi4conv.gguf_file.layout import MetadataPair, boolean, f32s, i32, i32s, text, texts, u32, u64
from phi4conv.reference.llama_vocab_rules import END_TEXTS, ROLE_TEXTS

K = Keys.Tokenizer
NAME = Keys.General.NAME
SCORES = "tokenizer.ggml.scores"
TYPE_COUNT = "tokenizer.ggml.token_type_count"
LOWERCASE = "tokenizer.ggml.normalizer.lowercase"
ACCENTS = "tokenizer.ggml.normalizer.strip_accents"
SUPPRESSED = "tokenizer.ggml.suppress_tokens"

ID_KEYS = (
    *(K.BOS_ID, K.EOS_ID, K.EOT_ID, K.EOM_ID, K.UNK_ID, K.SEP_ID, K.PAD_ID, K.MASK_ID),
    *(K.FIM_PRE_ID, K.FIM_SUF_ID, K.FIM_MID_ID, K.FIM_PAD_ID, K.FIM_REP_ID, K.FIM_SEP_ID),
    *(K.PREFIX_ID, K.SUFFIX_ID, K.MIDDLE_ID),
)
FLAG_KEYS = (K.ADD_BOS, K.ADD_EOS, K.ADD_SEP, K.ADD_PREFIX, K.REMOVE_EXTRA_WS)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>")
NOT_U32: Sequence[Callable[[str], MetadataPair]] = (
    lambda key: i32(key, 5),
    lambda key: u64(key, 5),
    lambda key: boolean(key, value=True),
    lambda key: text(key, "5"),
    lambda key: texts(key, ["5"]),
)


def without(pairs: Pairs, *keys: str) -> Pairs:
    """The same metadata but for these keys."""
    return {key: pair for key, pair in pairs.items() if key not in keys}


def tokens_of(pairs: Pairs) -> list[str]:
    """The token texts."""
    return list(pairs[K.LIST].value)


def respelled(pairs: Pairs, spellings: Mapping[int, str] | Mapping[str, str]) -> Pairs:
    """The same vocabulary with other texts for some tokens, named by their text or id."""
    stored = tokens_of(pairs)
    for token, spelling in spellings.items():
        stored[token if isinstance(token, int) else stored.index(token)] = spelling
    return changed(pairs, texts(K.LIST, stored))


def retyped(pairs: Pairs, types: Mapping[int, int] | Mapping[str, int]) -> Pairs:
    """The same vocabulary with other types for some tokens, named by their text or id."""
    stored, tokens = list(pairs[K.TOKEN_TYPE].value), tokens_of(pairs)
    for token, kind in types.items():
        stored[token if isinstance(token, int) else tokens.index(token)] = int(kind)
    return changed(pairs, i32s(K.TOKEN_TYPE, stored))


def cut_to(pairs: Pairs, count: int) -> Pairs:
    """Only the first tokens, with their types and scores, and without BOS, which they may lack."""
    kept = changed(
        pairs,
        texts(K.LIST, tokens_of(pairs)[:count]),
        i32s(K.TOKEN_TYPE, list(pairs[K.TOKEN_TYPE].value)[:count]),
        boolean(K.ADD_BOS, value=False),
    )
    return without(kept, SCORES)


def other_tables(good: Pairs) -> Iterator[tuple[str, Pairs]]:
    """Byte-level BPE vocabularies with other tokens, types, merges or scores, all of which llama.cpp loads."""
    count = len(good[K.LIST].value)
    yield "nothing", good
    yield "model ends at NUL", changed(good, text(K.MODEL, "gpt2\0x"))
    yield "pre missing", without(good, K.PRE)
    yield "pre empty", changed(good, text(K.PRE, ""))
    yield "merges missing for kimi-k2", without(changed(good, text(K.PRE, "kimi-k2")), K.MERGES)
    yield "merges empty", changed(good, texts(K.MERGES, []))
    yield "merges odd", changed(good, texts(K.MERGES, ["", " ", "ab", " a", " a b", "a b c", "a b", "a b", "\0"]))
    yield "no tokens", cut_to(good, 0)
    yield "one token", cut_to(good, 1)
    yield "no token 11", cut_to(good, 11)
    yield "token 11 is the last", cut_to(good, 12)
    yield "token empty", respelled(good, {300: ""})
    yield "token empty before NUL", respelled(good, {300: "\0x"})
    yield "token no UTF-8", respelled(good, {300: "\udcc3", 301: "\udced\udca0\udc80"})
    yield "token of a lead byte beyond Unicode's", respelled(good, {300: "\udcf8\udc90\udc80\udc80\udc80"})
    yield "control token beyond Unicode", respelled(good, {"<|im_sep|>": "\udcf4\udc90\udc80\udc80"})
    yield "newline missing", respelled(good, {"Ċ": "newline"})
    yield "newline missing, one of its bytes a token", respelled(respelled(good, {"Ċ": "newline"}), {301: "\udc8a"})
    yield "scores", changed(good, f32s(SCORES, [0.5] * count))
    yield "scores whole numbers", changed(good, i32s(SCORES, range(count)))
    yield "scores too many", changed(good, f32s(SCORES, [0.5] * (count + 1)))
    yield "types missing", without(good, K.TOKEN_TYPE)
    yield "types too many", changed(good, i32s(K.TOKEN_TYPE, [1] * (count + 1)))
    yield "types that do not exist", retyped(good, {300: 0, 301: 7, 302: -1, 303: 2**31 - 1})
    for kind in TokenType:
        yield f"specials typed {kind.name}", retyped(good, dict.fromkeys(SPECIALS, kind))
        yield f"specials typed {kind.name}, no eot", without(retyped(good, dict.fromkeys(SPECIALS, kind)), K.EOT_ID)
        yield f"a word of three bytes typed {kind.name}", retyped(respelled(good, {300: "ABC"}), {300: kind})
    yield "byte token", retyped(respelled(good, {300: "<0x41>"}), {300: TokenType.BYTE})


def other_scalars(good: Pairs) -> Iterator[tuple[str, Pairs]]:
    """The same with other special ids and flags."""
    count = len(good[K.LIST].value)
    for key in ID_KEYS:
        yield f"{key} missing", without(good, key)
        yield f"{key} 300", changed(good, u32(key, 300))
        yield f"{key} too large", changed(good, u32(key, count))
        yield f"{key} -1", changed(good, u32(key, 2**32 - 1))
    yield "old key and new", changed(good, u32(K.PREFIX_ID, 300), u32(K.FIM_PRE_ID, 301))
    for key in FLAG_KEYS:
        for flag in (True, False):
            yield f"{key} {flag}", changed(good, boolean(key, flag))
        yield f"{key} missing", without(good, key)
    yield "count of types", changed(good, u32(TYPE_COUNT, 2))
    yield "lowercase", changed(good, boolean(LOWERCASE, value=True))
    yield "suppressed tokens", changed(good, i32s(SUPPRESSED, [1, -1, count]))


def other_families(good: Pairs) -> Iterator[tuple[str, Pairs]]:
    """The same with names by which llama.cpp knows a family of models."""
    for name in ("phi-4", "modern-bert", "ph\u0130-3", "\0phi-3"):
        yield f"called {name!r}", changed(good, text(NAME, name))
    yield "a Phi-3 indeed", respelled(changed(good, text(NAME, "Phi-3")), {300: "</s>", 301: "<unk>", 302: "<s>"})
    yield "a modern-bert indeed", respelled(changed(good, text(NAME, "Modern-BERT")), {300: "[MASK]"})
    yield "jina without its mask", changed(good, text(K.PRE, "jina-v2-code"))
    yield "jina", respelled(changed(good, text(K.PRE, "jina-v2-de")), {300: "<mask>"})
    yield "jina before Phi-3", changed(good, text(K.PRE, "jina-v2-es"), text(NAME, "Phi-3"))
    yield "gemma4 without BOS", changed(good, text(K.PRE, "gemma4"), boolean(K.ADD_BOS, value=False))
    yield "gemma4 with newline by byte", respelled(changed(good, text(K.PRE, "gemma4")), {300: "<0x0A>"})


def telling_texts(good: Pairs) -> Iterator[tuple[str, Pairs]]:
    """The same with tokens that llama.cpp knows by their texts."""
    yield "harmony", respelled(good, {300: "<|return|>", 301: "<|call|>", 302: "<|end|>"})
    yield "harmony without a call", respelled(good, {300: "<|return|>", 302: "<|end|>"})
    yield "solar", respelled(good, {300: "<|flush|>", 301: "<|calls|>", 302: "<|end|>"})
    yield "gemma", respelled(good, {300: "<|tool_response>", 301: "</s>"})
    yield "plamo", changed(respelled(good, {300: "<|plamo:eos|>", 301: "</s>"}), u32(K.EOS_ID, 300))
    yield "plamo with another end", respelled(good, {300: "<|plamo:eos|>", 301: "</s>"})
    yield "gpt-oss", respelled(good, {300: "<|channel|>", 301: "<|message|>", 302: "<|start|>", 303: "<|constrain|>"})
    yield "unused control token", respelled(good, {"<|im_sep|>": "<unused1>"})
    yield "unused word", respelled(good, {300: "unused"})
    for end in sorted(END_TEXTS.difference(tokens_of(good))):
        yield f"{end} ends", respelled(good, {300: end})
    named = {token: f"[{token}]" for token in tokens_of(good) if token.startswith("<|")}
    unnamed = without(respelled(good, named), K.EOT_ID, K.EOS_ID)
    for role, spellings in ROLE_TEXTS.items():
        for spelling in spellings:
            yield f"{spelling} is {role}", respelled(unnamed, {300: spelling})


def refused_gpt2(good: Pairs) -> Iterator[tuple[str, str, Pairs]]:
    """Byte-level BPE vocabularies that llama.cpp refuses, or that end it: what differs, and the reason's name."""
    count = len(good[K.LIST].value)
    yield "model missing", "model-missing", without(good, K.MODEL)
    yield "model unknown", "unknown-model", changed(good, text(K.MODEL, "gpt4"))
    yield "model empty", "unknown-model", changed(good, text(K.MODEL, ""))
    yield "pre unknown", "unknown-pre", changed(good, text(K.PRE, "phi-4"))
    yield "pre in capitals", "unknown-pre", changed(good, text(K.PRE, "DBRX"))
    yield "merges missing", "merges-missing", without(good, K.MERGES)
    yield "tokens missing", "tokens-missing", without(good, K.LIST)
    yield "token twice", "duplicate-token", respelled(good, {300: "Ġ"})
    yield "token twice before NUL", "duplicate-token", respelled(good, {300: "Ġ\0x"})
    yield "token called as an empty one", "duplicate-token", respelled(good, {300: "", 301: "[EMPTY_300]"})
    yield "token beyond Unicode", "beyond-unicode", respelled(good, {300: "a\udcf4\udc90\udc80\udc80"})
    yield "token far beyond Unicode", "beyond-unicode", respelled(good, {300: "\udcf7\udcbf\udcbf\udcbf"})
    yield "scores too few", "scores-short", changed(good, f32s(SCORES, [0.5] * (count - 1)))
    yield "types too few", "token-types-short", changed(good, i32s(K.TOKEN_TYPE, [1] * (count - 1)))
    yield "byte token too short", "byte-token-short", retyped(respelled(good, {300: "AB"}), {300: TokenType.BYTE})
    for name in ("Phi-3", "my PHI3 model", "phi-3\0"):
        yield f"called {name!r}", "phi-3-name", changed(good, text(NAME, name))
    wrong = [
        *(i32s(key, [1, 2]) for key in (K.MODEL, K.PRE, K.MERGES, K.LIST, NAME)),
        *(text(key, "a b") for key in (K.MERGES, K.LIST, K.TOKEN_TYPE, SCORES, SUPPRESSED, TYPE_COUNT)),
        *(u32(key, 1) for key in (*FLAG_KEYS, K.MODEL, K.PRE, LOWERCASE, ACCENTS, SUPPRESSED, NAME)),
        *(as_wrong(key) for key in ID_KEYS for as_wrong in NOT_U32),
        texts(SCORES, ["a"] * count),
        MetadataPair(K.TOKEN_TYPE, GGUFValueType.ARRAY, (1,) * count, GGUFValueType.UINT32),
    ]
    for pair in wrong:
        yield f"{pair.key} {pair.type.name}", "wrong-type", changed(good, pair)


def other_sentencepiece(good: Pairs) -> Iterator[tuple[str, Pairs]]:
    """SentencePiece vocabularies that llama.cpp loads."""
    count = len(good[K.LIST].value)
    yield "nothing", good
    for pre in ("", "dbrx", "phi-4"):
        yield f"pre {pre!r}", changed(good, text(K.PRE, pre))
    yield "merges numbers", changed(good, i32s(K.MERGES, [1]))
    yield "scores missing", without(good, SCORES)
    yield "types missing", without(good, K.TOKEN_TYPE)
    yield "newline by byte", respelled(good, {300: "<0x0A>"})
    yield "newline by character", respelled(good, {300: "\n"})
    yield "newline by both", respelled(good, {300: "\n", 301: "<0x0A>"})
    yield "token beyond Unicode", respelled(good, {300: "a\udcf4\udc90\udc80\udc80"})
    for count_kept in (0, 2):
        yield f"{count_kept} tokens", cut_to(good, count_kept)
    for key in ID_KEYS:
        yield f"{key} missing", without(good, key)
        yield f"{key} too large", changed(good, u32(key, count))
    for key in FLAG_KEYS:
        for flag in (True, False):
            yield f"{key} {flag}", changed(good, boolean(key, flag))
        yield f"{key} missing", without(good, key)


def refused_llama(good: Pairs) -> Iterator[tuple[str, str, Pairs]]:
    """SentencePiece vocabularies that llama.cpp refuses, or that end it: what differs, and the reason's name."""
    yield "pre a number", "wrong-type", changed(good, u32(K.PRE, 1))
    yield "byte token too short", "byte-token-short", retyped(respelled(good, {300: "\1"}), {300: TokenType.BYTE})
    yield "token twice", "duplicate-token", respelled(good, {300: tokens_of(good)[301]})
    yield "called Phi-3", "phi-3-name", changed(good, text(NAME, "Phi-3"))
