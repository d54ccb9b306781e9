"""The check of the types that metadata is stored with: llama.cpp asks for each key by one type, and takes no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from gguf import GGUFValueType
from gguf.constants import Keys

from phi4conv.check.case import Case
from phi4conv.check.model import Finding, Severity
from phi4conv.gguf_file.edit import Change
from phi4conv.gguf_file.layout import MetadataPair
from phi4conv.phi3.metadata import tokenizer_pairs
from phi4conv.reference.llama_vocab_rules import ID_KEYS

# What llama_vocab::impl::load in src/llama-vocab.cpp reads of a byte-level vocabulary; the tests of load_vocab hold
# these types against the running library.
SCALAR_TYPES: Mapping[str, GGUFValueType] = {
    Keys.General.NAME: GGUFValueType.STRING,
    Keys.Tokenizer.MODEL: GGUFValueType.STRING,
    Keys.Tokenizer.PRE: GGUFValueType.STRING,
    **{key: GGUFValueType.UINT32 for _, key in ID_KEYS},
    Keys.Tokenizer.ADD_BOS: GGUFValueType.BOOL,
    Keys.Tokenizer.ADD_EOS: GGUFValueType.BOOL,
    Keys.Tokenizer.ADD_SEP: GGUFValueType.BOOL,
    Keys.Tokenizer.ADD_PREFIX: GGUFValueType.BOOL,
    Keys.Tokenizer.REMOVE_EXTRA_WS: GGUFValueType.BOOL,
}
ITEM_TYPES: Mapping[str, tuple[GGUFValueType, ...]] = {
    Keys.Tokenizer.LIST: (GGUFValueType.STRING,),
    Keys.Tokenizer.MERGES: (GGUFValueType.STRING,),
    Keys.Tokenizer.TOKEN_TYPE: (GGUFValueType.INT32,),
    Keys.Tokenizer.SCORES: (GGUFValueType.FLOAT32, GGUFValueType.INT32),
}


def value_types(case: Case) -> Iterator[Finding]:
    """A finding for every key of another type; the right value replaces it, or nothing where there is none."""
    right = {pair.key: pair for pair in tokenizer_pairs(case.right)}
    for pair in case.file.metadata.values():
        expected = expected_type(pair)
        if expected:
            message = f"llama.cpp reads {pair.key} as {expected} alone: it refuses to load the file"
            yield Finding(
                "tokenizer/value-types",
                Severity.FAIL,
                "wrong-type",
                message,
                pair.key,
                expected,
                stored_type(pair),
                (Change(pair.key, right.get(pair.key)),),
            )


def expected_type(pair: MetadataPair) -> str:
    """The type that llama.cpp wants in place of a pair's own; empty when it takes that, or never looks at the key."""
    if pair.key in ITEM_TYPES:
        wanted = ITEM_TYPES[pair.key]
        return "" if pair.item_type in wanted else f"an array of {' or '.join(kind.name for kind in wanted)}"
    kind = SCALAR_TYPES.get(pair.key, pair.type)
    return "" if pair.type == kind else kind.name


def stored_type(pair: MetadataPair) -> str:
    """A pair's type in words."""
    return pair.type.name if pair.item_type is None else f"an array of {pair.item_type.name}"


CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (value_types,)
