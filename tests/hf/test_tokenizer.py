from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf import TokenType
from small_tokenizers import (
    DUMMY,
    ENDOFTEXT,
    IM_END,
    MERGES,
    NO_IDS,
    SETTINGS,
    SPECIALS,
    Json,
    add_token,
    end_with,
    read_changed,
    setting,
    small_tokenizer,
    write_folder,
)

from phi4conv.errors import CheckpointError
from phi4conv.hf.pre_tokenizer import O200K
from phi4conv.hf.tokenizer import read_vocabulary
from phi4conv.vocab import SpecialIds, Vocabulary, byte_alphabet

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def phi4() -> Path:
    folder = DATA / "phi-4"
    if not folder.is_dir():
        pytest.skip("the published files of Phi-4 are not beside the checkout")
    return folder


def test_a_small_phi_4_is_read_whole(tmp_path: Path) -> None:
    reading = read_vocabulary(write_folder(tmp_path), NO_IDS)
    assert reading.warnings == ()
    assert reading.vocabulary == Vocabulary(
        texts=(*byte_alphabet(), "he", "ll", "hell", "hello", "Ġw", *SPECIALS),
        types=(TokenType.NORMAL,) * 261 + (TokenType.CONTROL,) * 5,
        merges=("h e", "l l", "he ll", "hell o", "Ġ w"),
        pre="dbrx",
        special=SpecialIds(bos=ENDOFTEXT, eos=IM_END, eot=IM_END, pad=DUMMY),
        add_bos=False,
        add_eos=False,
        chat_template="{{ messages }}",
    )


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode here")
def test_a_folder_whose_name_is_no_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "phi").mkdir()
    folder = tmp_path / os.fsdecode(b"phi-\xff")
    folder.mkdir()
    assert read_vocabulary(write_folder(folder), NO_IDS) == read_vocabulary(write_folder(tmp_path / "phi"), NO_IDS)


def test_both_spellings_of_merges_are_one_vocabulary(tmp_path: Path) -> None:
    data = small_tokenizer()
    data["model"]["merges"] = [list(pair) for pair in MERGES]
    pairs = read_vocabulary(write_folder(tmp_path, data), NO_IDS)
    data["model"]["merges"] = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    assert read_vocabulary(write_folder(tmp_path, data), NO_IDS) == pairs


def test_a_space_inside_a_merge_is_written_as_its_byte(tmp_path: Path) -> None:
    def change(data: Json) -> None:
        data["model"]["vocab"] |= {"o w": 266, "o wa": 267}
        data["model"]["merges"] = [*map(list, MERGES), ["o w", "a"]]

    assert read_changed(tmp_path, change).vocabulary.merges[-1] == "oĠw a"


def test_added_tokens_need_not_be_in_the_vocabulary(tmp_path: Path) -> None:
    expected = read_vocabulary(write_folder(tmp_path), NO_IDS)

    def change(data: Json) -> None:
        for text in SPECIALS:
            del data["model"]["vocab"][text]

    assert read_changed(tmp_path, change) == expected


def test_types_are_llama_cpps(tmp_path: Path) -> None:
    def change(data: Json) -> None:
        add_token(data, "<think>", 266)
        add_token(data, "<|looks|>", 267)
        add_token(data, "hello", 259)

    vocabulary = read_changed(tmp_path, change).vocabulary
    assert vocabulary.token(266) == ("<think>", TokenType.USER_DEFINED)
    assert vocabulary.token(267) == ("<|looks|>", TokenType.CONTROL)
    assert vocabulary.token(259) == ("hello", TokenType.USER_DEFINED)


def test_holes_become_unused_pads_with_a_warning(tmp_path: Path) -> None:
    def change(data: Json) -> None:
        data["model"]["vocab"]["hehe"] = 268
        data["model"]["merges"].append(["he", "he"])

    reading = read_changed(tmp_path, change)
    assert [reading.vocabulary.token(token_id) for token_id in (266, 267, 268)] == [
        ("[PAD266]", TokenType.UNUSED),
        ("[PAD267]", TokenType.UNUSED),
        ("hehe", TokenType.NORMAL),
    ]
    assert reading.warnings == ("2 ids have no token and become '[PAD266]' and so on, of type UNUSED",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["tokenizer.model"], "a SentencePiece vocabulary (Phi-3): not supported yet"),
        (["vocab.json", "merges.txt"], "no tokenizer.json, only vocab.json and merges.txt"),
        (["vocab.json", "merges.txt"], "download tokenizer.json of the model, or of the one it was tuned from"),
        (["tokenizer_config.json"], "download the whole model folder"),
        ([], "no tokenizer.json"),
    ],
)
def test_without_tokenizer_json_the_message_says_what_to_do(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_vocabulary(tmp_path, NO_IDS)
    assert message in str(caught.value)


def test_tokenizer_json_counts_even_beside_tokenizer_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    settings = SETTINGS | {"tokenizer_class": "LlamaTokenizer"}
    assert read_vocabulary(write_folder(tmp_path, settings=settings), NO_IDS).vocabulary.pre == "dbrx"


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (setting("model", "byte_fallback", value=True), "byte_fallback"),
        (setting("model", value={"type": "Unigram", "vocab": [["a", -1.0]]}), "the model type Unigram"),
        (setting("pre_tokenizer", value=METASPACE), "Metaspace"),
        (setting("decoder", value={"type": "Sequence", "decoders": [METASPACE]}), "Metaspace"),
        (setting("model", "vocab", "▁the", value=266), "tokens that start with ▁"),
    ],
)
def test_sentencepiece_is_refused_by_its_signs(tmp_path: Path, change: Callable[[Json], None], found: str) -> None:
    with pytest.raises(CheckpointError, match=rf"SentencePiece vocabulary \(Phi-3\): not supported yet[^~]*{found}"):
        read_changed(tmp_path, change)


def without_byte(data: Json) -> None:
    data["model"]["vocab"].pop("Ċ")


def renumbered(data: Json) -> None:
    add_token(data, "<|far|>", 300)
    del data["model"]["vocab"]["<|far|>"]


def duplicate_merge(data: Json) -> None:
    data["model"]["merges"].append(["h", "e"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("model", "type", value="WordPiece"), "not a BPE vocabulary"),
        (setting("model", value=None), "no vocabulary in the file"),
        (setting("model", "vocab", value={}), "lacks tokens for single bytes"),
        (without_byte, "lacks tokens for single bytes[^~]*'Ċ'"),
        (setting("normalizer", value={"type": "NFC"}), "normalizer is set, which GGUF cannot express[^~]*'NFC'"),
        (setting("model", "dropout", value=0.1), r"model\.dropout is set[^~]*0\.1"),
        (setting("model", "continuing_subword_prefix", value="##"), r"model\.continuing_subword_prefix is set"),
        (setting("model", "end_of_word_suffix", value="</w>"), r"model\.end_of_word_suffix is set"),
        (lambda data: data["model"].update({"unk_token": "!", "fuse_unk": True}), r"model\.fuse_unk is set"),
        (setting("decoder", value=None), "not byte-level"),
        (setting("decoder", value={"type": "Sequence", "decoders": 1}), "not byte-level"),
        (setting("pre_tokenizer", value={"type": "Whitespace"}), "a pre-tokenizer that GGUF cannot express"),
        (setting("added_tokens", value={"a": 1}), "added_tokens is not a list"),
        (setting("added_tokens", 0, value={"id": 261}), "an added token without text or id"),
        (setting("model", "vocab", "x1", value=-1), "impossible id[^~]*-1 for 'x1'"),
        (setting("model", "vocab", "x1", value=1.5), "impossible id[^~]*1.5 for 'x1'"),
        (setting("model", "vocab", "x1", value=True), "impossible id[^~]*True for 'x1'"),
        (setting("model", "vocab", "x1", value=2**31), "impossible id[^~]*from 0 to 999999[^~]*2147483648 for 'x1'"),
        (setting("added_tokens", 0, "id", value="261"), r"impossible id[^~]*'261' for '<\|endoftext\|>'"),
        (setting("model", "vocab", "x1", value=256), "two tokens have the id 256[^~]*'he' and 'x1'"),
        (setting("added_tokens", 0, "id", value=256), r"two tokens have the id 256[^~]*'he' and '<\|endoftext\|>'"),
        (lambda data: add_token(data, "hello", 266), "the token 'hello' has two ids[^~]*259 and 266"),
        (lambda data: add_token(data, "", 266), "a token that GGUF cannot hold[^~]*'' with id 266"),
        (setting("model", "vocab", "a\0b", value=266), r"a token that GGUF cannot hold[^~]*'a\\x00b' with id 266"),
        (setting("model", "vocab", "\ud800", value=266), "half of a surrogate pair"),
        (lambda data: data["model"]["vocab"].update({"[PAD266]": 267}), r"unused id 266[^~]*'\[PAD266\]' with id 267"),
        (setting("model", "merges", value=[]), "no merges"),
        (setting("model", "merges", value=None), "no merges"),
        (setting("model", "merges", 0, value="h e"), "merges in two spellings"),
        (setting("model", "merges", value=["h e", "l  l"]), "merge 1 is not a pair of tokens[^~]*'l  l'"),
        (setting("model", "merges", 1, value=["l", "l", "o"]), "merge 1 is not a pair of tokens"),
        (setting("model", "merges", 1, value=["l", "x1"]), "merge 1 needs a token that is not in the [^~]*'x1' from"),
        (setting("model", "merges", 1, value=["l", "h"]), "merge 1 needs a token that is not in the [^~]*'lh' from"),
        (duplicate_merge, r"merge 5 occurs twice[^~]*\['h', 'e'\]"),
        (setting("post_processor", value={"type": "Nonsense"}), "the tokenizers library cannot read the file"),
        (
            renumbered,
            r"numbers tokens otherwise than the file \(1 in all\)[^~]*300 for '<\|far\|>'[^~]*266",
        ),
        (lambda data: end_with(data, "<|im_start|>", None), r"the post_processor adds tokens[^~]*found:    \[262, "),
    ],
)
def test_each_defect_is_refused_by_name(tmp_path: Path, change: Callable[[Json], None], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_changed(tmp_path, change)
    assert str(tmp_path) in str(caught.value)


def test_a_broken_configuration_is_an_error_and_not_an_absence(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token":', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        read_vocabulary(tmp_path, NO_IDS)


def test_odd_tokens_are_warnings(tmp_path: Path) -> None:
    def change(data: Json) -> None:
        add_token(data, "<word>", 266, single_word=True)
        data["model"]["vocab"]["hehe"] = 267

    decoder = {"261": {"content": "<|endoftext|>"}, "262": {"content": "<|tool|>"}, "999": {"content": "<|x|>"}}
    assert read_changed(tmp_path, change, SETTINGS | {"added_tokens_decoder": decoder}).warnings == (
        "no merge makes the tokens 'hehe', so no text is ever tokenized to them: are merges missing?",
        "the added tokens '<word>' are single_word: llama.cpp will find them inside words too",
        "tokenizer_config.json gives the added tokens '<|tool|>', '<|x|>' ids that tokenizer.json does not",
    )


def test_a_lost_regex_is_a_warning(tmp_path: Path) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    reading = read_changed(tmp_path, setting("pre_tokenizer", value=byte_level))
    assert reading.vocabulary.pre == "gpt-2"
    [warning] = reading.warnings
    assert "splits text like GPT-2, yet '<|im_sep|>' says that it is Phi-4's" in warning


def test_ignore_merges_and_other_regexes_reach_the_name(tmp_path: Path) -> None:
    assert read_changed(tmp_path, setting("model", "ignore_merges", value=True)).vocabulary.pre == "llama-bpe"
    regex = setting("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", value=O200K)
    assert read_changed(tmp_path, regex).vocabulary.pre == "gpt-4o"


@pytest.mark.slow
@pytest.mark.parametrize("with_config", [True, False])
def test_a_re_save_by_transformers_5_is_the_same_vocabulary(tmp_path: Path, *, with_config: bool) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    config = {"config": {"model_type": "phi3", "vocab_size": 266}} if with_config else {}
    before = write_folder(tmp_path / "before", **config)
    transformers.AutoTokenizer.from_pretrained(before).save_pretrained(tmp_path / "after")
    settings = json.loads((tmp_path / "after" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (tmp_path / "after" / "chat_template.jinja").is_file()
    first, second = (read_vocabulary(tmp_path / name, NO_IDS) for name in ("before", "after"))
    if with_config:
        assert settings["tokenizer_class"] == "TokenizersBackend"
        assert second == first
    else:
        assert second.vocabulary.pre == "gpt-2"
        assert "loaded from a folder without config.json" in second.warnings[-1]


def test_phi_4_has_its_known_digests(phi4: Path) -> None:
    reading = read_vocabulary(phi4, NO_IDS)
    vocabulary = reading.vocabulary
    assert reading.warnings == ()
    assert vocabulary.tokens_digest == "62916ca5b5628762db2c869b1e1a5e32c7e304692ae37b2365fa862948d0fe54"
    assert vocabulary.merges_digest == "463a8a98983bfe6c750d19de658d7bb1b2313831d81d18e450de182d97d677b9"
    assert vocabulary.special.present() == {"bos": 100257, "eos": 100265, "eot": 100265, "pad": 100349}
    assert vocabulary.padded(100352) == vocabulary


@pytest.mark.slow
def test_phi_4_equals_llama_cpps_own_conversion(phi4: Path) -> None:
    vocabulary = read_vocabulary(phi4, NO_IDS).vocabulary
    keys = gguf.Keys.Tokenizer
    reader = gguf.GGUFReader(phi4 / "vocab-by-llama.cpp.gguf")
    theirs = {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.")}
    assert tuple(theirs.pop(keys.LIST)) == vocabulary.texts
    assert tuple(theirs.pop(keys.TOKEN_TYPE)) == vocabulary.types
    assert tuple(theirs.pop(keys.MERGES)) == vocabulary.merges
    assert theirs == {
        keys.MODEL: "gpt2",
        keys.PRE: vocabulary.pre,
        keys.BOS_ID: vocabulary.special.bos,
        keys.EOS_ID: vocabulary.special.eos,
        keys.PAD_ID: vocabulary.special.pad,
        keys.ADD_BOS: vocabulary.add_bos,
        keys.ADD_EOS: vocabulary.add_eos,
        keys.CHAT_TEMPLATE: vocabulary.chat_template,
    }


def test_phi_4s_original_release_ends_texts_otherwise(phi4: Path, tmp_path: Path) -> None:
    shutil.copy(phi4 / "tokenizer.json", tmp_path)
    original = DATA / "phi-4-original-release" / "tokenizer_config.json"
    shutil.copy(original, tmp_path)
    reading = read_vocabulary(tmp_path, {"bos": 100257, "eos": 100257, "pad": 100257})
    assert reading.warnings == ()
    assert reading.vocabulary.special == SpecialIds(bos=100257, eos=100257, eot=100265, pad=100257)
    assert reading.vocabulary.chat_template == json.loads(original.read_text(encoding="utf-8"))["chat_template"]


def test_phi_3_is_refused_as_sentencepiece(phi4: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a SentencePiece vocabulary \(Phi-3\): not supported yet"):
        read_vocabulary(phi4.parent / "phi-3-mini", NO_IDS)
