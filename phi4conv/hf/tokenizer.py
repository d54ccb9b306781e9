"""tokenizer.json as a Vocabulary, held against the tokenizers library that defines what the file means.

Only byte-level BPE is converted. What kind of tokenizer a folder holds is read off tokenizer.json and never off
tokenizer_class, which names whatever program saved the folder last. What GGUF cannot express is refused with the
name of the field; what is odd but convertible becomes a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf import TokenType

from phi4conv.errors import CheckpointError, Problem
from phi4conv.hf.chat_template import is_there, read_chat_templates
from phi4conv.hf.json_file import (
    MAX_JSON_BYTES,
    listed,
    parse_json_object,
    read_at_most,
    read_json_object,
    require_file,
    shortened,
)
from phi4conv.hf.pre_tokenizer import pre_tokenizer_name
from phi4conv.hf.special_tokens import (
    CONFIG_FILE,
    DOWNLOAD_TOKENIZER,
    SPECIAL_MAP_FILE,
    added_ends,
    flag_warnings,
    library_errors,
    special_ids,
)
from phi4conv.vocab import LARGEST_VOCABULARY, PHI4_SEPARATOR, Vocabulary, byte_alphabet, pad_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class TokenTable:
    """The tokens of a tokenizer.json. types has an entry for every id up to the largest; added is added_tokens."""

    texts: Mapping[int, str]
    ids: Mapping[str, int]
    types: tuple[TokenType, ...]
    added: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class VocabularyReading:
    """A vocabulary, what the user should know about the files that it came from, and tokenizer.json as it was read."""

    vocabulary: Vocabulary
    warnings: tuple[str, ...]
    path: Path = field(compare=False)
    content: bytes = field(compare=False, repr=False)


def read_vocabulary(folder: Path, config_ids: Mapping[str, int | None]) -> VocabularyReading:
    """Read the tokenizer of a model folder.

    config_ids are the special ids of config.json by role ("bos", "eos", "pad"), used where the tokenizer's own
    files name no token.

    Raises:
        CheckpointError: tokenizer.json is missing, broken, contradicts itself or the tokenizers library, or is of
            a kind that GGUF cannot express.
    """
    path = find_tokenizer(folder)
    where = str(path)
    require_file(path)
    content = read_at_most(path, MAX_JSON_BYTES)
    data = parse_json_object(content, where)
    model = byte_level_model(data, where)
    settings, special_map = (optional_json(folder / name) for name in (CONFIG_FILE, SPECIAL_MAP_FILE))
    pre = pre_tokenizer_name(data.get("pre_tokenizer"), ignore_merges=bool(model.get("ignore_merges")), where=where)

    tokens = read_tokens(model["vocab"], added_tokens(data, where), where)
    merges = read_merges(model.get("merges"), model["vocab"], where)
    tokenizer = load_tokenizer(content, where)
    compare_with_library(tokens.ids, tokenizer, where)

    sources = {CONFIG_FILE: settings, SPECIAL_MAP_FILE: special_map}
    special, warnings = special_ids(tokens.ids, tokens.types, sources, config_ids, str(folder))
    add_bos, add_eos = added_ends(tokenizer, special, where)
    warnings += token_warnings(tokens, merges, settings)
    warnings += flag_warnings(settings, {"add_bos_token": add_bos, "add_eos_token": add_eos})
    if pre == "gpt-2" and PHI4_SEPARATOR in tokens.ids:
        warnings.append(
            f"{TOKENIZER_FILE} splits text like GPT-2, yet {PHI4_SEPARATOR!r} says that it is Phi-4's: transformers 5 "
            "loses the regex when it saves a tokenizer loaded from a folder without config.json; take tokenizer.json "
            "from the original model"
        )
    templates = read_chat_templates(folder, settings)
    vocabulary = Vocabulary(
        texts=tuple(tokens.texts.get(token_id, pad_text(token_id)) for token_id in range(len(tokens.types))),
        types=tokens.types,
        merges=merges,
        pre=pre,
        special=special,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=templates.default,
        named_templates=templates.named,
    )
    return VocabularyReading(vocabulary, (*warnings, *templates.warnings), path, content)


def bad(
    where: str, what: str, expected: str = "", found: str = "", next_step: str = DOWNLOAD_TOKENIZER
) -> CheckpointError:
    """The error for a tokenizer file that cannot be converted."""
    return CheckpointError(Problem(what, where, expected, found, next_step))


def find_tokenizer(folder: Path) -> Path:
    """The folder's tokenizer.json; raises CheckpointError that says what to do when it has only other kinds."""
    path = folder / TOKENIZER_FILE
    if is_there(path):
        return path
    if is_there(folder / "tokenizer.model"):
        raise sentencepiece(str(folder / "tokenizer.model"), "tokenizer.model and no tokenizer.json")
    if is_there(folder / "vocab.json") and is_there(folder / "merges.txt"):
        raise bad(
            str(folder),
            "no tokenizer.json, only vocab.json and merges.txt, which do not say how text is split",
            next_step="download tokenizer.json of the model, or of the one it was tuned from; do not let transformers "
            "make one from these two files, because it would split text like GPT-2",
        )
    raise bad(str(folder), "no tokenizer.json", next_step="download the whole model folder, tokenizer files included")


def sentencepiece(where: str, found: str) -> CheckpointError:
    """The refusal of a SentencePiece vocabulary."""
    return bad(
        where,
        "a SentencePiece vocabulary (Phi-3): not supported yet",
        expected="byte-level BPE, as Phi-4 and Phi-4-mini have",
        found=found,
        next_step="if this is meant to be a Phi-4, take the tokenizer files from the original model",
    )


def optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no such file."""
    return read_json_object(path) if is_there(path) else {}


def byte_level_model(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The model of a tokenizer.json that is byte-level BPE; raises CheckpointError for any other."""
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise bad(where, "no vocabulary in the file", expected='"model" with a "vocab"')
    vocab = model["vocab"]
    signs = {
        "byte_fallback": model.get("byte_fallback"),
        "the model type Unigram": model.get("type") == "Unigram",
        "Metaspace": "Metaspace" in step_types(data),
        "tokens that start with ▁": isinstance(vocab, dict) and any(text.startswith("▁") for text in vocab),
    }
    if any(signs.values()):
        raise sentencepiece(where, ", ".join(sign for sign, present in signs.items() if present))
    # Files older than tokenizers 0.9 leave the type out.
    if model.get("type", "BPE") != "BPE" or not isinstance(vocab, dict):
        raise bad(where, "not a BPE vocabulary", "model type 'BPE'", shortened(repr(model.get("type"))))
    normalizer = data.get("normalizer")
    refused = {
        "normalizer": None if normalizer == {"type": "Sequence", "normalizers": []} else normalizer,
        "model.dropout": model.get("dropout"),
        "model.fuse_unk": model.get("unk_token") and model.get("fuse_unk"),
        "model.continuing_subword_prefix": model.get("continuing_subword_prefix"),
        "model.end_of_word_suffix": model.get("end_of_word_suffix"),
    }
    for name, value in refused.items():
        if value:
            raise bad(where, f"{name} is set, which GGUF cannot express", "null", shortened(repr(value)))
    if "ByteLevel" not in step_types({"decoder": data.get("decoder")}):
        raise bad(where, "not byte-level: tokens are not turned back into bytes", "a ByteLevel decoder")
    if missing := [character for character in byte_alphabet() if character not in vocab]:
        raise bad(
            where,
            "the vocabulary lacks tokens for single bytes, so that some text has no tokens",
            found=listed(missing),
        )
    return model


def step_types(data: Mapping[str, Any]) -> set[str]:
    """The types of normalizers, pre-tokenizers and decoders in a tokenizer.json, those inside a Sequence too."""
    found = set()
    for kind, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        step = data.get(kind)
        if isinstance(step, dict):
            parts = step.get(inner) if step.get("type") == "Sequence" else [step]
            parts = parts if isinstance(parts, list) else []
            found |= {str(part.get("type")) for part in parts if isinstance(part, dict)}
    return found


def added_tokens(data: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The entries of added_tokens, each with a text and an id."""
    added = data.get("added_tokens") or []
    if not isinstance(added, list):
        raise bad(where, "added_tokens is not a list", found=shortened(repr(added)))
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or "id" not in entry:
            raise bad(where, "an added token without text or id", '{"id": ..., "content": ...}', shortened(repr(entry)))
    return added


def read_tokens(vocab: Mapping[str, Any], added: Sequence[Mapping[str, Any]], where: str) -> TokenTable:
    """The vocabulary and the added tokens together.

    An added token may repeat an entry of the vocabulary; any other double use of an id or a text is an error.
    """
    texts: dict[int, str] = {}
    ids: dict[str, int] = {}
    for text, token_id in [*vocab.items(), *((entry["content"], entry["id"]) for entry in added)]:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < LARGEST_VOCABULARY:
            found = f"{shortened(repr(token_id))} for {shortened(repr(text))}"
            raise bad(where, "a token with an impossible id", f"a number from 0 to {LARGEST_VOCABULARY - 1}", found)
        if not text or "\0" in text:
            raise bad(where, "a token that GGUF cannot hold", "text without NUL", f"{text!r} with id {token_id}")
        if texts.setdefault(token_id, text) != text:
            found = f"{shortened(repr(texts[token_id]))} and {shortened(repr(text))}"
            raise bad(where, f"two tokens have the id {token_id}", found=found)
        if ids.setdefault(text, token_id) != token_id:
            raise bad(where, f"the token {shortened(repr(text))} has two ids", found=f"{ids[text]} and {token_id}")
    for token_id in range(max(texts)):
        if token_id not in texts and pad_text(token_id) in ids:
            found = f"{pad_text(token_id)!r} with id {ids[pad_text(token_id)]}"
            raise bad(where, f"a token bears the name that llama.cpp gives to the unused id {token_id}", found=found)
    return TokenTable(texts, ids, token_types(texts, added), added)


def token_types(texts: Mapping[int, str], added: Iterable[Mapping[str, Any]]) -> tuple[TokenType, ...]:
    """The type of every id up to the largest, by the rules of llama.cpp's get_vocab_base (conversion/base.py)."""
    types = [TokenType.NORMAL if token_id in texts else TokenType.UNUSED for token_id in range(max(texts) + 1)]
    for entry in added:
        control = entry.get("special") or looks_special(entry["content"])
        types[entry["id"]] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    return tuple(types)


def looks_special(text: str) -> bool:
    """Whether llama.cpp takes an added token for a control token by its looks (does_token_look_special).

    >>> looks_special("<|im_end|>"), looks_special("<think>")
    (True, False)
    """
    brackets = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))  # the second pair is DeepSeek's
    if any(text.startswith(start) and text.endswith(end) for start, end in brackets):
        return True
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")


def read_merges(merges: Any, vocab: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The merges as "a b" in rank order, from either spelling: "a b" strings or, since transformers 4.45, ["a", "b"].

    Raises:
        CheckpointError: The list is empty or mixes spellings, a merge occurs twice (tokenizers keeps the last rank,
            llama.cpp the first), or a part or product of a merge is not in the vocabulary.
    """
    if not isinstance(merges, list) or not merges:
        raise bad(where, "no merges: the vocabulary would only tokenize single bytes", "model.merges, a list")
    if len({type(merge) for merge in merges}) > 1:
        raise bad(where, "merges in two spellings", 'all "a b", or all ["a", "b"]')
    lines: dict[str, None] = {}
    for rank, merge in enumerate(merges):
        # tokenizers passes over a header that merges.txt files start with.
        if isinstance(merge, str) and merge.startswith("#version"):
            continue
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
            raise bad(where, f"merge {rank} is not a pair of tokens", found=shortened(repr(merge)))
        for text in (*parts, "".join(parts)):
            if text not in vocab:
                found = f"{shortened(repr(text))} from the merge {shortened(repr(merge))}"
                raise bad(where, f"merge {rank} needs a token that is not in the vocabulary", found=found)
        # The space between the parts is the separator, so one inside a part is written as its byte character.
        line = " ".join(part.replace(" ", "Ġ") for part in parts)
        if line in lines:
            raise bad(where, f"merge {rank} occurs twice", found=shortened(repr(merge)))
        lines[line] = None
    return tuple(lines)


def load_tokenizer(content: bytes, where: str) -> Tokenizer:
    """The bytes of tokenizer.json as the tokenizers library understands them.

    Not the file, since the library opens no file whose path is not UTF-8. Raises CheckpointError.
    """
    from tokenizers import Tokenizer  # noqa: PLC0415  # imported here for the start-up time of everything else

    with library_errors("the tokenizers library cannot read the file", where):
        tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def compare_with_library(ids: Mapping[str, int], tokenizer: Tokenizer, where: str) -> None:
    """Raise CheckpointError unless the library gives every token the id that the file gives it.

    The library numbers an added token anew when the vocabulary lacks it and its id is not the next one free.
    """
    with library_errors("the tokenizers library cannot list the file's tokens", where):
        library = tokenizer.get_vocab(with_added_tokens=True)
    if library == ids:
        return
    texts = sorted(text for text in library.keys() | ids.keys() if library.get(text) != ids.get(text))
    raise bad(
        where,
        f"the tokenizers library numbers tokens otherwise than the file ({len(texts):,} in all)",
        expected=f"{ids.get(texts[0], 'no id')} for {shortened(repr(texts[0]))}, as the file says",
        found=f"{library.get(texts[0], 'no id')}",
        next_step="list the added tokens in model.vocab as well, under their ids, or save the tokenizer again",
    )


def token_warnings(tokens: TokenTable, merges: Iterable[str], settings: Mapping[str, Any]) -> Iterator[str]:
    """What converts, but is odd about the tokens."""
    if unused := [token_id for token_id, kind in enumerate(tokens.types) if kind == TokenType.UNUSED]:
        yield f"{len(unused):,} ids have no token and become {pad_text(unused[0])!r} and so on, of type UNUSED"
    reachable = {merge.replace(" ", "", 1) for merge in merges} | set(byte_alphabet())
    normal = [text for token_id, text in tokens.texts.items() if tokens.types[token_id] == TokenType.NORMAL]
    if lost := [text for text in normal if text not in reachable]:
        yield f"no merge makes the tokens {listed(lost)}, so no text is ever tokenized to them: are merges missing?"
    if words := [entry["content"] for entry in tokens.added if entry.get("single_word")]:
        yield f"the added tokens {listed(words)} are single_word: llama.cpp will find them inside words too"
    decoder = settings.get("added_tokens_decoder")
    entries = decoder.items() if isinstance(decoder, dict) else ()
    configured = {(token_id, str(entry.get("content"))) for token_id, entry in entries if isinstance(entry, dict)}
    if other := configured - {(str(token_id), text) for token_id, text in tokens.texts.items()}:
        names = listed(text for _, text in sorted(other))
        yield f"{CONFIG_FILE} gives the added tokens {names} ids that {TOKENIZER_FILE} does not"
