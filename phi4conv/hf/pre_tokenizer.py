"""The split regex of a tokenizer.json as the name llama.cpp has for it.

llama.cpp carries the regexes itself; a GGUF holds only a name (`tokenizer.ggml.pre`), and a wrong name splits
text wrongly without a word. So the name is derived from the regex and from nothing else, and a regex that is
not known to split like one of llama.cpp's is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.json_file import listed, shortened

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K_TIKTOKEN_0_6 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Spellings of one name split alike under tokenizers' regex engine, Oniguruma: the tests compare them. Left out
# because they do not: tiktoken's cl100k since 0.8 (its `\s++$` takes "\n\t" whole at the end of a line) and
# llama.cpp's own rewriting of (?i:'s) as '[sS] (Oniguruma also folds U+017F, the long s).
LLAMA_CPP_NAMES: Mapping[str, str] = {
    CL100K: "dbrx",  # Phi-4, dbrx and Llama 3; tiktoken until 0.5; llama-vocab.cpp quotes it as "original regex"
    CL100K_TIKTOKEN_0_6: "dbrx",  # tiktoken 0.6 and 0.7
    O200K: "gpt-4o",  # Phi-4-mini, Xenova/gpt-4o and every tiktoken; quoted in llama-vocab.cpp
    QWEN2: "qwen2",  # Qwen 1.5 to 3; quoted in llama-vocab.cpp
    GPT2: "gpt-2",  # built into ByteLevel(use_regex=True); tiktoken's gpt2 until 0.5
}

# With ignore_merges a word that is a token as a whole stays one. llama.cpp ties that to the name of the regex.
IGNORE_MERGES_NAMES: Mapping[str, str] = {"dbrx": "llama-bpe"}

# Some files hold the characters CR and LF in the regex (stabilityai/stablelm-2-zephyr-1_6b), others escapes.
ESCAPED_LINE_ENDS = str.maketrans({"\r": r"\r", "\n": r"\n"})

# Every regex above matches every character, so keeping the matches (Removed, inverted) and cutting at them
# (Isolated) give the same pieces. StableLM 2 and, by huggingface/swift-transformers pull 152, Phi-4 itself are
# published with the first, Llama 3 with the second.
SPLIT_BEHAVIOURS = (("Isolated", False), ("Removed", True))

KEEP_THE_ORIGINAL = "take tokenizer.json from the original model; phi4conv knows the tokenizers of Phi-4 and Phi-4-mini"


def pre_tokenizer_name(pre_tokenizer: Any, *, ignore_merges: bool, where: str) -> str:
    """llama.cpp's name for the pre_tokenizer object of a tokenizer.json.

    Known are Sequence[Split(regex), ByteLevel(use_regex false)] and ByteLevel(use_regex true), without a prefix
    space. ignore_merges is the model's flag of that name; where names the file in errors.

    Raises:
        CheckpointError: The splitter is something else, or llama.cpp has no name for it.
    """
    regex = split_regex(pre_tokenizer, where).translate(ESCAPED_LINE_ENDS)
    name = LLAMA_CPP_NAMES.get(regex)
    if name is None:
        raise refusal(
            where,
            "a split regex that phi4conv does not know",
            expected=f"one that llama.cpp calls {listed(dict.fromkeys(LLAMA_CPP_NAMES.values()))}",
            found=shortened_regex(regex),
        )
    if not ignore_merges:
        return name
    if name not in IGNORE_MERGES_NAMES:
        raise refusal(
            where,
            f"ignore_merges is true, which llama.cpp cannot do with the split regex {name!r}",
            expected=f"false, or the split regex {listed(IGNORE_MERGES_NAMES)}",
            found="true",
        )
    return IGNORE_MERGES_NAMES[name]


def split_regex(pre_tokenizer: Any, where: str) -> str:
    """The one regex that a pre_tokenizer object splits by; raises CheckpointError for any other kind of splitter."""
    parts = steps(pre_tokenizer, where)
    types = [part.get("type") for part in parts]
    if types not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise refusal(
            where,
            "a pre-tokenizer that GGUF cannot express",
            expected="a Split by regex followed by ByteLevel, or ByteLevel alone",
            found=" then ".join(str(name) for name in types) or "none",
        )
    byte_level = parts[-1]
    # Where a key is absent, as use_regex is in older files, tokenizers takes true.
    if byte_level.get("add_prefix_space", True):
        raise refusal(
            where, "ByteLevel adds a space before the text, which GGUF cannot express for BPE", "add_prefix_space false"
        )
    own_regex = byte_level.get("use_regex", True)
    if len(parts) == 1:
        if not own_regex:
            raise refusal(where, "ByteLevel without a regex: text is not split at all", "use_regex true, or a Split")
        return GPT2
    if own_regex:
        raise refusal(where, "two splitters, Split and the regex of ByteLevel", "use_regex false", "use_regex true")
    return regex_of_split(parts[0], where)


def steps(pre_tokenizer: Any, where: str) -> list[dict[str, Any]]:
    """The pre-tokenizers that run one after another; a single one counts as a Sequence of one."""
    if pre_tokenizer is None:
        return []
    parts: Any = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        parts = pre_tokenizer.get("pretokenizers")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise refusal(where, "pre_tokenizer is not a pre-tokenizer object", found=shortened(repr(pre_tokenizer)))
    return parts


def regex_of_split(split: dict[str, Any], where: str) -> str:
    """The regex of a Split that keeps every match as a piece; raises CheckpointError for any other Split."""
    behaviour = (split.get("behavior"), split.get("invert"))
    if behaviour not in SPLIT_BEHAVIOURS:
        raise refusal(
            where,
            "a Split that does not keep its matches as pieces",
            expected=" or ".join(
                f"behavior {kind!r} with invert {str(flag).lower()}" for kind, flag in SPLIT_BEHAVIOURS
            ),
            found=f"behavior {behaviour[0]!r} with invert {str(behaviour[1]).lower()}",
        )
    pattern = split.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str):
        raise refusal(where, "a Split by something else than a regex", '{"Regex": ...}', shortened(repr(pattern)))
    return regex


def shortened_regex(regex: str) -> str:
    """A regex whole if it is of an ordinary length; people compare it by eye."""
    return regex if len(regex) <= 2 * len(O200K) else regex[: 2 * len(O200K)] + "..."


def refusal(where: str, what: str, expected: str = "", found: str = "") -> CheckpointError:
    """The error for a pre-tokenizer that cannot be converted."""
    return CheckpointError(Problem(what, f"{where}: pre_tokenizer", expected, found, KEEP_THE_ORIGINAL))
