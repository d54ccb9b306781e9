"""What a file is held against: a model folder, the carried vocabulary, or what the file itself tells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import TINY, TINY_BROKEN, copy_of_tiny, edit_json
from gguf import GGMLQuantizationType, Keys, TokenType
from small_tokenizers import write_folder
from vocabulary_changes import respelled, retyped, without
from vocabulary_files import Pairs, changed, tiny_pairs

from phi4conv.carried import PHI4_ROWS, PHI4_WIDTH, first_release_template, phi4_vocabulary
from phi4conv.check.expectation import (
    Origin,
    expected_from_folder,
    expected_of_phi4,
    has_phi4_shape,
    is_phi4,
    row_count,
)
from phi4conv.check.inferred import expected_of_file
from phi4conv.errors import CheckpointError, FormatError, RepairError
from phi4conv.gguf_file.layout import GGUFFile, TensorEntry, boolean, i32s, text, texts, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.phi3.metadata import tokenizer_pairs
from phi4conv.vocab import PHI4_SEPARATOR, Vocabulary

K = Keys.Tokenizer
WIDTH = "phi3.embedding_length"
THINK, PLAIN = 100350, 5


def file_of(pairs: Pairs, shape: Sequence[int] | None = None) -> GGUFFile:
    """A file in memory with these metadata and, where a shape is given, an embedding."""
    entry = TensorEntry("token_embd.weight", tuple(shape or ()), GGMLQuantizationType.F16, 0)
    return GGUFFile(
        path=Path("a.gguf"),
        version=3,
        byte_order="little",
        alignment=32,
        metadata=dict(pairs),
        tensors=(entry,) if shape else (),
        data_offset=0,
        file_size=0,
        defects=(),
        header_complete=True,
    )


def phi4_pairs(vocabulary: Vocabulary) -> Pairs:
    """The metadata of a file with Phi-4's width and this vocabulary."""
    kept = {key: pair for key, pair in tiny_pairs().items() if not key.startswith("tokenizer.")}
    return changed(kept, u32(WIDTH, PHI4_WIDTH), *tokenizer_pairs(vocabulary))


def renamed(names: dict[int, str], kind: int = TokenType.CONTROL) -> Vocabulary:
    """Phi-4's vocabulary with other texts for some tokens."""
    right = phi4_vocabulary()
    tokens, kinds = list(right.texts), list(right.types)
    for token_id, name in names.items():
        tokens[token_id], kinds[token_id] = name, kind
    return replace(right, texts=tuple(tokens), types=tuple(kinds))


class TestFromAFolder:
    def test_the_folders_vocabulary_has_a_token_for_each_row(self) -> None:
        expected = expected_from_folder(file_of(tiny_pairs(), (1030, 256)), TINY)
        assert expected.origin is Origin.MODEL_FOLDER
        assert expected.origin_text == str(TINY)
        assert len(expected.vocabulary) == 1030
        assert expected.vocabulary.texts[1024:] == tuple(f"[PAD{row}]" for row in range(1024, 1030))
        assert set(expected.vocabulary.types[1024:]) == {TokenType.UNUSED}
        assert len(expected.source.vocabulary) == 1024

    def test_without_weights_the_files_own_padding_tells_the_rows(self) -> None:
        stored = list(tiny_pairs()[K.LIST].value)
        padded = changed(tiny_pairs(), texts(K.LIST, [*stored, "[PAD1024]", "[PAD1025]"]))
        other = changed(tiny_pairs(), texts(K.LIST, [*stored, "[PAD1024]", "mine"]))
        assert len(expected_from_folder(file_of(padded), TINY).vocabulary) == 1026
        assert len(expected_from_folder(file_of(other), TINY).vocabulary) == 1024

    def test_more_tokens_than_rows_are_refused(self) -> None:
        with pytest.raises(RepairError, match=r"more tokens than(.|\n)*a\.gguf(.|\n)*1,000(.|\n)*1,024"):
            expected_from_folder(file_of(tiny_pairs(), (1000, 256)), TINY)

    def test_the_window_is_config_jsons_and_0_where_there_is_none(self, tmp_path: Path) -> None:
        assert expected_from_folder(file_of(tiny_pairs()), TINY).sliding_window == 0
        folder = copy_of_tiny(tmp_path / "model")
        edit_json(folder / "config.json", lambda data: data.update(sliding_window=512))
        assert expected_from_folder(file_of(tiny_pairs()), folder).sliding_window == 512

    def test_the_tokenizers_files_alone_are_enough(self, tmp_path: Path) -> None:
        expected = expected_from_folder(file_of(tiny_pairs()), write_folder(tmp_path))
        assert len(expected.vocabulary) == 266
        assert expected.sliding_window == 0
        assert expected.padding_ids == {265}
        assert expected.known_template

    def test_a_folder_without_a_tokenizer_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            expected_from_folder(file_of(tiny_pairs()), tmp_path)


class TestCarried:
    def test_the_shape_of_the_weights_decides_and_without_weights_the_metadata(self) -> None:
        phi4 = phi4_pairs(phi4_vocabulary())
        assert has_phi4_shape(file_of(phi4))
        assert has_phi4_shape(file_of({}, (PHI4_ROWS, PHI4_WIDTH)))
        assert not has_phi4_shape(file_of(phi4, (PHI4_ROWS, 3072)))
        assert not has_phi4_shape(file_of(changed(phi4, u32(WIDTH, 3072))))
        assert not has_phi4_shape(file_of(tiny_pairs()))
        assert row_count(file_of({}, (PHI4_ROWS, PHI4_WIDTH))) == PHI4_ROWS
        assert row_count(file_of({})) is None

    def test_another_shape_has_nothing_to_be_held_against(self) -> None:
        with pytest.raises(FormatError, match=r"100,352 tokens of 5,120(.|\n)*1024 x 256(.|\n)*MODEL_DIR"):
            expected_of_phi4(read_gguf(TINY_BROKEN))

    def test_phi_4_itself_is_expected_whole(self) -> None:
        expected = expected_of_phi4(file_of(phi4_pairs(phi4_vocabulary())))
        assert expected.vocabulary == phi4_vocabulary()
        assert (expected.origin, expected.notes, expected.sliding_window) == (Origin.CARRIED, (), 0)
        assert expected.padding_ids == {100349, 100351}
        assert not expected.known_template

    @pytest.mark.parametrize("kind", [TokenType.CONTROL, TokenType.USER_DEFINED])
    def test_names_in_free_slots_are_the_files_own_and_told(self, kind: int) -> None:
        file = file_of(phi4_pairs(renamed({THINK: "<think>", THINK + 1: "</think>"}, kind)))
        expected = expected_of_phi4(file)
        assert expected.vocabulary.texts[THINK : THINK + 2] == ("<think>", "</think>")
        assert expected.vocabulary.types[THINK] == kind
        assert "100350 '<think>'" in expected.notes[0]

    @pytest.mark.parametrize(
        "names",
        [{PLAIN: "<think>"}, {100265: "<|end|>"}, {THINK: "<|im_end|>"}, {THINK: "<think>", THINK + 1: "<think>"}],
        ids=["a word", "a named token", "a name that is taken", "one name twice"],
    )
    def test_other_names_are_faults(self, names: dict[int, str]) -> None:
        expected = expected_of_phi4(file_of(phi4_pairs(renamed(names))))
        assert expected.vocabulary == phi4_vocabulary()
        assert expected.notes == ()


class TestOfTheFileItself:
    def test_a_good_file_expects_itself(self) -> None:
        expected = expected_of_file(file_of(tiny_pairs()))
        pairs = {pair.key: pair for pair in tokenizer_pairs(expected.vocabulary)}
        assert {key: tiny_pairs()[key] for key in pairs} == pairs
        assert (expected.origin, expected.sliding_window) == (Origin.FILE_ITSELF, 0)

    @pytest.mark.parametrize("key", [K.MERGES, K.TOKEN_TYPE, K.PRE, K.BOS_ID, K.EOS_ID, K.EOT_ID, K.PAD_ID, K.ADD_BOS])
    def test_what_is_missing_in_a_phi_4_is_known(self, key: str) -> None:
        expected = expected_of_file(file_of(without(tiny_pairs(), key))).vocabulary
        assert expected == expected_of_file(file_of(tiny_pairs())).vocabulary

    def test_merges_follow_from_the_tokens_and_not_from_the_file(self) -> None:
        stored = list(tiny_pairs()[K.MERGES].value)
        stored[5], stored[300] = stored[300], stored[5]
        expected = expected_of_file(file_of(changed(tiny_pairs(), texts(K.MERGES, stored)))).vocabulary
        assert expected.merges == tuple(tiny_pairs()[K.MERGES].value)

    def test_tokens_in_another_order_leave_the_files_own_merges(self) -> None:
        stored = list(tiny_pairs()[K.LIST].value)
        stored[300], stored[900] = stored[900], stored[300]
        merges = tuple(reversed(tiny_pairs()[K.MERGES].value))
        pairs = changed(tiny_pairs(), texts(K.LIST, stored), texts(K.MERGES, merges))
        assert expected_of_file(file_of(pairs)).vocabulary.merges == merges

    def test_types_follow_from_the_merges_and_a_meant_one_stays(self) -> None:
        names = {1022: "<think>", 1023: "[PAD1023]"}
        pairs = retyped(respelled(tiny_pairs(), names), {1022: TokenType.USER_DEFINED, 1023: TokenType.NORMAL, 5: 3})
        types = expected_of_file(file_of(pairs)).vocabulary.types
        assert (types[5], types[1022], types[1023]) == (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
        forged = retyped(tiny_pairs(), {PHI4_SEPARATOR: TokenType.USER_DEFINED})
        assert expected_of_file(file_of(forged)).vocabulary.types[938] == TokenType.CONTROL

    def test_the_first_releases_template_is_replaced_and_another_kept(self) -> None:
        for template, right in (
            (first_release_template(), phi4_vocabulary().chat_template),
            ("{{ mine }}", "{{ mine }}"),
        ):
            file = file_of(changed(tiny_pairs(), text(K.CHAT_TEMPLATE, template)))
            assert expected_of_file(file).vocabulary.chat_template == right

    def test_a_padding_that_others_use_stays(self) -> None:
        other = list(tiny_pairs()[K.LIST].value).index("<|dummy_87|>")
        file = file_of(changed(tiny_pairs(), u32(K.PAD_ID, other)))
        assert expected_of_file(file).vocabulary.special.pad == other

    def test_another_family_keeps_its_own_ids_and_flags(self) -> None:
        pairs = changed(respelled(tiny_pairs(), {PHI4_SEPARATOR: "<|other|>"}), boolean(K.ADD_BOS, value=True))
        expected = expected_of_file(file_of(pairs))
        assert expected.vocabulary.add_bos
        assert expected.sliding_window is None
        assert expected.padding_ids == {1021}

    @pytest.mark.parametrize(
        "pairs",
        [
            read_gguf(TINY_BROKEN).metadata,
            without(tiny_pairs(), K.LIST),
            respelled(tiny_pairs(), {300: "Ġ"}),
            respelled(tiny_pairs(), {"Ġ": "mine"}),
            changed(tiny_pairs(), i32s(K.LIST, range(1024))),
            changed(respelled(tiny_pairs(), {PHI4_SEPARATOR: "<|other|>"}), text(K.PRE, "default")),
        ],
        ids=["SentencePiece", "no tokens", "a token twice", "a byte missing", "numbers", "unknown family without pre"],
    )
    def test_what_tells_nothing_is_refused(self, pairs: Pairs) -> None:
        with pytest.raises(FormatError, match=r"do not tell(.|\n)*--tokenizer MODEL_DIR"):
            expected_of_file(file_of(pairs))


def test_phi_4_is_known_by_its_separator() -> None:
    assert is_phi4(phi4_vocabulary().ids)
    assert is_phi4(json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"])
    assert not is_phi4({"<|endoftext|>": 0, "<|im_end|>": 1})
