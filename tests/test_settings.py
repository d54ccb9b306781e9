"""KEY=VALUE as the pair that a file gets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, Keys
from vocabulary_files import changed, tiny_pairs, with_changes, written

from phi4conv.carried import phi4_vocabulary
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, boolean, f32, f32s, i32s, text, texts, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.settings import parse_setting

K = Keys.Tokenizer
WINDOW = "phi3.attention.sliding_window"


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    """The tiny Phi-4 with a key of each type."""
    kinds = {
        GGUFValueType.UINT8: 1,
        GGUFValueType.INT8: -1,
        GGUFValueType.UINT16: 1,
        GGUFValueType.INT16: -1,
        GGUFValueType.INT32: -1,
        GGUFValueType.UINT64: 1,
        GGUFValueType.INT64: -1,
        GGUFValueType.FLOAT64: 0.5,
    }
    pairs = [
        *(MetadataPair(f"own.{kind.name}", kind, value) for kind, value in kinds.items()),
        u32("own.UINT32", 1),
        f32("own.FLOAT32", 0.5),
        boolean("own.BOOL", value=True),
        text("own.STRING", "a"),
        texts("own.strings", ["a"]),
        i32s("own.numbers", [1]),
        f32s("own.floats", [0.5]),
        MetadataPair("own.flags", GGUFValueType.ARRAY, (True,), GGUFValueType.BOOL),
        MetadataPair("own.bytes", GGUFValueType.ARRAY, (1,), GGUFValueType.UINT8),
    ]
    path = tmp_path_factory.mktemp("types") / "types.gguf"
    return read_gguf(written(changed(tiny_pairs(), *pairs), path))


SETTINGS: dict[str, Any] = {
    "own.UINT8=255": 255,
    "own.INT8=-128": -128,
    "own.UINT16=65535": 65535,
    "own.INT16=-3": -3,
    "own.UINT32=4294967295": 4294967295,
    "own.INT32=-7": -7,
    "own.UINT64=18446744073709551615": 18446744073709551615,
    "own.INT64=-9223372036854775808": -9223372036854775808,
    "own.FLOAT32=0.1": f32("x", 0.1).value,
    "own.FLOAT32=inf": math.inf,
    "own.FLOAT64=0.1": 0.1,
    "own.BOOL=False": False,
    "own.BOOL=true": True,
    "own.STRING=": "",
    "own.STRING=a=b": "a=b",
    'own.strings=["b", "c=d"]': ("b", "c=d"),
    "own.strings=[]": (),
    "own.numbers=[-1, 2]": (-1, 2),
    "own.floats=[1, 0.1]": (1.0, f32("x", 0.1).value),
    "own.flags=[false]": (False,),
    "own.bytes=[255]": (255,),
    "general.url=https://example.org/": "https://example.org/",  # known, and not in the file
    "phi3.rope.scaling.original_context_length=16384": 16384,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_has_the_type_of_its_key(every_type: GGUFFile, tmp_path: Path, setting: str) -> None:
    change = parse_setting(setting, every_type, phi4_vocabulary())
    assert change.pair is not None
    stored = every_type.metadata.get(change.key)
    if stored is not None:
        assert (change.pair.type, change.pair.item_type) == (stored.type, stored.item_type)
    value = tuple(change.pair.value) if change.pair.type == GGUFValueType.ARRAY else change.pair.value
    assert (value, type(value)) == (SETTINGS[setting], type(SETTINGS[setting]))
    path = with_changes(every_type.path, tmp_path / "set.gguf", {change.key: change.pair})
    assert read_gguf(path).metadata[change.key] == change.pair


REFUSED = [
    ("own.UINT8", "KEY=VALUE"),
    ("=1", "KEY=VALUE"),
    ("", "KEY=VALUE"),
    ("no.such.key=1", "no such key"),
    ("own.UINT32=", "UINT32"),
    ("own.UINT32=1.5", "UINT32"),
    ("own.UINT32=0x10", "UINT32"),
    ("own.UINT32=-1", "UINT32"),
    ("own.UINT32=4294967296", "UINT32"),
    ("own.UINT8=256", "UINT8"),
    ("own.INT8=128", "INT8"),
    ("own.INT64=9223372036854775808", "INT64"),
    ("own.FLOAT32=1e39", "FLOAT32"),
    ("own.FLOAT32=fast", "FLOAT32"),
    ("own.FLOAT64=", "FLOAT64"),
    ("own.BOOL=1", "BOOL"),
    ("own.BOOL=yes", "BOOL"),
    ("own.strings=a,b", "ARRAY"),
    ("own.strings=[1]", "ARRAY"),
    ('own.strings={"a": 1}', "ARRAY"),
    ("own.numbers=[1.5]", "ARRAY"),
    ("own.numbers=[true]", "ARRAY"),
    ("own.numbers=[4294967296]", "ARRAY"),
    ("own.numbers=" + "[" * 100_000, "ARRAY"),
    ("own.floats=[1e39]", "ARRAY"),
    ("own.flags=[1]", "ARRAY"),
    ("own.bytes=[256]", "ARRAY"),
    ("own.STRING=\udcff", "UTF-8"),
    ('own.strings=["\\udcff"]', "UTF-8"),
]


@pytest.mark.parametrize(("setting", "word"), REFUSED, ids=[setting[:24] for setting, _ in REFUSED])
def test_a_setting_that_does_not_fit_is_refused(every_type: GGUFFile, setting: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        parse_setting(setting, every_type, phi4_vocabulary())
