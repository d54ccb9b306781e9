"""Files of metadata alone, for tests of tokenizers: the tiny Phi-4's vocabulary, and one that shows every split."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path

from checkpoints import TINY
from gguf import Keys, TokenType

from phi4conv.convert import convert
from phi4conv.files import AtomicFile
from phi4conv.gguf_file.edit import Change, edited_size, write_edited
from phi4conv.gguf_file.layout import MetadataPair, boolean, i32s, text, texts, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.write import encode_header
from phi4conv.phi3 import ConversionOptions
from phi4conv.progress import Silent
from phi4conv.vocab import byte_alphabet

Pairs = Mapping[str, MetadataPair]

# Merged with every byte on both sides in the probe vocabulary. A word's boundary beside one of them is seen in the ids.
MARKERS = "aA1!'Ġ"
PROBE_SPECIALS = {
    "<|end|>": TokenType.CONTROL,
    "<|user|>": TokenType.USER_DEFINED,
    "<|user|><|end|>": TokenType.CONTROL,
    "|><|": TokenType.USER_DEFINED,
    "<unk>": TokenType.UNKNOWN,
    "né": TokenType.USER_DEFINED,
    "<spare>": TokenType.UNUSED,
}


@cache
def tiny_pairs() -> Pairs:
    """The metadata of the tiny Phi-4 as phi4conv converts it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        convert(TINY, path, ConversionOptions(vocab_only=True))
        return dict(read_gguf(path).metadata)


@cache
def probe_pairs() -> Pairs:
    """The tiny Phi-4 with a vocabulary of single bytes, of every MARKER with every byte, and of PROBE_SPECIALS."""
    alphabet = byte_alphabet()
    merges = dict.fromkeys([*product(MARKERS, alphabet), *product(alphabet, MARKERS)])
    tokens = dict.fromkeys([*alphabet, *("".join(merge) for merge in merges)])
    first_special = len(tokens)
    keys = Keys.Tokenizer
    return changed(
        tiny_pairs(),
        texts(keys.LIST, [*tokens, *PROBE_SPECIALS]),
        i32s(keys.TOKEN_TYPE, [TokenType.NORMAL] * first_special + [int(kind) for kind in PROBE_SPECIALS.values()]),
        texts(keys.MERGES, [" ".join(merge) for merge in merges]),
        *(u32(key, first_special) for key in (keys.BOS_ID, keys.EOS_ID, keys.EOT_ID, keys.PAD_ID)),
        boolean(keys.ADD_BOS, value=True),
        boolean(keys.ADD_EOS, value=True),
    )


def changed(pairs: Pairs, *changes: MetadataPair) -> Pairs:
    """The same metadata but for these pairs."""
    return {**pairs, **{pair.key: pair for pair in changes}}


def with_pre(pairs: Pairs, pre: str) -> Pairs:
    """The same metadata with another split regex, and with nothing said of BOS and EOS, which pre may then decide."""
    kept = changed(pairs, text(Keys.Tokenizer.PRE, pre))
    return {key: pair for key, pair in kept.items() if key not in (Keys.Tokenizer.ADD_BOS, Keys.Tokenizer.ADD_EOS)}


def written(pairs: Pairs, path: Path) -> Path:
    """A file of metadata alone."""
    path.write_bytes(encode_header(pairs.values(), ()).data)
    return path


def with_changes(source: Path, target: Path, changes: Mapping[str, MetadataPair | None]) -> Path:
    """A file with other metadata and the same weights."""
    file = read_gguf(source)
    edits = [Change(key, pair) for key, pair in changes.items()]
    with AtomicFile(target, edited_size(file, edits)) as out:
        write_edited(file, edits, out, Silent())
        out.commit()
    return target
