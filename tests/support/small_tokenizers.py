"""A Phi-4 tokenizer of 266 tokens, and model folders that hold it with one thing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from phi4conv.hf.pre_tokenizer import CL100K
from phi4conv.hf.tokenizer import VocabularyReading, read_vocabulary
from phi4conv.vocab import byte_alphabet

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|dummy_85|>")
ENDOFTEXT, IM_START, IM_END, IM_SEP, DUMMY = range(261, 266)
NO_IDS: dict[str, int | None] = {"bos": None, "eos": None, "pad": None}

Json = dict[str, Any]


def small_tokenizer() -> Json:
    """The tokenizer.json of a Phi-4 with five merges: 256 bytes, 5 merged tokens, 5 special ones.

    As in Phi-4's own file the vocabulary lists the added tokens too, which fixes their ids.
    """
    texts = [*byte_alphabet(), *("".join(pair) for pair in MERGES), *SPECIALS]
    tokenizer = Tokenizer(BPE({text: token_id for token_id, text in enumerate(texts)}, list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(text, lstrip=True, rstrip=True) for text in SPECIALS])
    data: Json = json.loads(tokenizer.to_str())
    return data


SETTINGS: Json = {
    "bos_token": "<|endoftext|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|dummy_85|>",
    "tokenizer_class": "GPT2Tokenizer",
    "chat_template": "{{ messages }}",
}


def write_folder(folder: Path, data: Json | None = None, settings: Json | None = None, **files: Json) -> Path:
    """A model folder; files are further JSON files by stem."""
    contents = {"tokenizer": data or small_tokenizer(), "tokenizer_config": SETTINGS if settings is None else settings}
    for stem, content in (contents | files).items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def read_changed(folder: Path, change: Callable[[Json], Any], settings: Json | None = None) -> VocabularyReading:
    """The reading of a small tokenizer in which one thing was changed."""
    data = small_tokenizer()
    change(data)
    return read_vocabulary(write_folder(folder, data, settings), NO_IDS)


def setting(*path: str | int, value: Any) -> Callable[[Json], None]:
    """A change that sets one value."""

    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def add_token(data: Json, text: str, token_id: int, **flags: bool) -> None:
    """Append an added token, to the vocabulary too, that is not special unless flags say so."""
    data["model"]["vocab"].setdefault(text, token_id)
    plain = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"].append({"id": token_id, "content": text} | plain | flags)


def end_with(data: Json, before: str | None, after: str | None) -> None:
    """A post_processor that puts special tokens around the text."""
    used = [text for text in (before, after) if text]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(filter(None, (before, "$A", after))),
        special_tokens=[(text, tokenizer.token_to_id(text)) for text in used],
    )
    data["post_processor"] = json.loads(tokenizer.to_str())["post_processor"]
