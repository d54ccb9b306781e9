"""Repair without a model folder leaves alone what may be a fine-tune's own, and says what it cannot know."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFValueType, Keys
from vocabulary_changes import respelled, without
from vocabulary_files import changed, tiny_pairs, written

from phi4conv.carried import phi4_vocabulary
from phi4conv.check.expectation import expected_of_phi4
from phi4conv.errors import FormatError, RepairError
from phi4conv.fix import plan_repair, write_repaired
from phi4conv.gguf_file.layout import MetadataPair, boolean, text, texts, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.phi3.metadata import tokenizer_pairs
from phi4conv.settings import SettingError, parse_setting

K = Keys.Tokenizer
OWN_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|dummy_3|>{% endfor %}"
OWN_END = "<|end_of_answer|>"


def token_id(name: str) -> int:
    return list(tiny_pairs()[K.LIST].value).index(name)


def own_ends() -> dict[str, MetadataPair]:
    """A fine-tune that ends its answers with a token that Phi-4 leaves free."""
    end = token_id("<|dummy_3|>")
    pairs = [u32(K.EOS_ID, end), u32(K.EOT_ID, end), boolean(K.ADD_BOS, True), text(K.CHAT_TEMPLATE, OWN_TEMPLATE)]
    return dict(changed(tiny_pairs(), *pairs))


def test_a_fine_tunes_own_end_token_stays(tmp_path: Path) -> None:
    repair = plan_repair(written(own_ends(), tmp_path / "tuned.gguf"))
    assert repair.changes == ()
    assert [note.split()[0] for note in repair.proof.notes] == ["eos", "eot", K.ADD_BOS]
    assert repair.proof.is_right


def test_what_cannot_be_meant_is_repaired_in_a_fine_tune_too(tmp_path: Path) -> None:
    broken = written(without(changed(own_ends(), u32(K.EOS_ID, 5_000)), K.MERGES), tmp_path / "tuned.gguf")
    repair = plan_repair(broken)
    assert {change.key for change in repair.changes} == {K.MERGES, K.EOS_ID}


def test_a_token_in_a_free_slot_of_phi_4_may_end_its_answers(tmp_path: Path) -> None:
    right = {pair.key: pair for pair in tokenizer_pairs(phi4_vocabulary())}
    slot = phi4_vocabulary().ids["<|dummy_5|>"]
    pairs = {
        **{pair.key: pair for pair in (text("general.architecture", "phi3"), u32("phi3.embedding_length", 5120))},
        **changed(respelled(right, {slot: OWN_END}), u32(K.EOS_ID, slot)),
    }
    expected = expected_of_phi4(read_gguf(written(pairs, tmp_path / "tuned.gguf")))
    assert expected.vocabulary.texts[slot] == OWN_END
    assert expected.vocabulary.special.eos == slot
    assert len(expected.notes) == 2


@pytest.mark.parametrize("name", ["", " ", "\udcff"])
def test_no_free_slot_is_renamed_to_nothing(tmp_path: Path, name: str) -> None:
    right = {pair.key: pair for pair in tokenizer_pairs(phi4_vocabulary())}
    head = {"phi3.embedding_length": u32("phi3.embedding_length", 5120)}
    head = {"general.architecture": text("general.architecture", "phi3"), **head}
    pairs = {**head, **respelled(right, {phi4_vocabulary().ids["<|dummy_5|>"]: name})}
    expected = expected_of_phi4(read_gguf(written(pairs, tmp_path / "damaged.gguf")))
    assert expected.vocabulary == phi4_vocabulary()


def test_a_template_that_does_not_work_is_no_fine_tunes_choice(tmp_path: Path) -> None:
    path = written(changed(tiny_pairs(), text(K.CHAT_TEMPLATE, "{% for x in y %}{{ x")), tmp_path / "broken.gguf")
    with pytest.raises(RepairError, match="no conversation becomes a prompt"):
        plan_repair(path)


def test_a_key_that_stands_twice_is_repaired_by_a_new_header(tmp_path: Path) -> None:
    path = written(tiny_pairs(), tmp_path / "once.gguf")
    data = bytearray(path.read_bytes())
    name = b"general.author"
    again = struct.pack("<Q", len(name)) + name + struct.pack("<I", GGUFValueType.UINT32) + struct.pack("<I", 1)
    data[16:24] = struct.pack("<Q", len(tiny_pairs()) + 2)
    twice = tmp_path / "twice.gguf"
    twice.write_bytes(data + again * 2)
    assert [flaw.code for flaw in read_gguf(twice).defects] == ["duplicate-key"]
    repair = plan_repair(twice)
    assert [finding.id for finding in repair.roots] == ["container/duplicate-key"]
    write_repaired(repair, tmp_path / "mended.gguf")
    assert read_gguf(tmp_path / "mended.gguf").defects == ()
    assert plan_repair(tmp_path / "mended.gguf").changes == ()


def part(number: int) -> dict[str, MetadataPair]:
    """The tiny vocabulary as one of two parts that gguf-split makes."""
    split = Keys.Split
    kinds = {split.LLM_KV_SPLIT_NO: number, split.LLM_KV_SPLIT_COUNT: 2}
    pairs = [MetadataPair(key, GGUFValueType.UINT16, value) for key, value in kinds.items()]
    return dict(changed(tiny_pairs(), *pairs))


def test_a_later_part_of_a_split_file_is_sent_back_for_the_first(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"part 2 of 2"):
        plan_repair(written(part(1), tmp_path / "phi-4-00002-of-00002.gguf"))


def test_the_first_part_of_a_split_file_says_how_the_result_is_to_be_called(tmp_path: Path) -> None:
    repair = plan_repair(written(part(0), tmp_path / "phi-4-00001-of-00002.gguf"))
    assert any("-00001-of-00002.gguf" in note for note in repair.proof.notes)


def test_the_architecture_is_no_setting(tmp_path: Path) -> None:
    file = read_gguf(written(tiny_pairs(), tmp_path / "tiny.gguf"))
    with pytest.raises(SettingError, match="depend on it"):
        parse_setting("general.architecture=llama", file, phi4_vocabulary())


def test_tokens_that_are_no_text_tell_nothing(tmp_path: Path) -> None:
    tokens = ["\udcff" if text == "<|dummy_3|>" else text for text in tiny_pairs()[K.LIST].value]
    path = written(changed(tiny_pairs(), texts(K.LIST, tokens)), tmp_path / "bytes.gguf")
    with pytest.raises(RepairError, match="do not tell what its tokenizer should be"):
        plan_repair(path)
