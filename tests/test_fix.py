"""Repairs: the right metadata and the same weights, proved before they are written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from checkpoints import SHARED_DATA, TINY, TINY_BROKEN
from gguf import GGMLQuantizationType, Keys, TokenType
from vocabulary_files import changed, tiny_pairs, with_changes

from phi4conv.carried import PHI4_ROWS, PHI4_WIDTH, first_release_template, phi4_vocabulary
from phi4conv.check.expectation import Origin
from phi4conv.convert import convert
from phi4conv.errors import FormatError, RepairError
from phi4conv.fix import Repair, plan_repair, write_repaired
from phi4conv.gguf_file.layout import (
    MetadataPair,
    f32s,
    i32s,
    text,
    texts,
    u32,
)
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.write import encode_header
from phi4conv.phi3 import ConversionOptions
from phi4conv.reference.llama_cpp import LlamaCpp

K = Keys.Tokenizer
WINDOW = "phi3.attention.sliding_window"
SHARED_BROKEN = SHARED_DATA / "broken" / "phi4-vocab-broken-spm.gguf"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Phi-4 as phi4conv converts it."""
    path = tmp_path_factory.mktemp("good") / "tiny.gguf"
    convert(TINY, path, ConversionOptions(file_type="Q8_0"))
    return path


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Repair]:
    """The broken twin after its repair, and the repair."""
    return fixed(TINY_BROKEN, tmp_path_factory.mktemp("repaired") / "fixed.gguf", TINY)


def fixed(source: Path, target: Path, folder: Path | None = None) -> tuple[Path, Repair]:
    """A file after its repair, and the repair."""
    repair = plan_repair(source, folder)
    write_repaired(repair, target)
    return target, repair


def tensor_digests(path: Path) -> list[tuple[str, tuple[int, ...], int, str]]:
    """Name, shape, type and sha256 of the bytes of every tensor."""
    file, data = read_gguf(path), path.read_bytes()
    starts = [file.data_offset + entry.offset for entry in file.tensors]
    return [
        (entry.name, entry.shape, int(entry.qtype), hashlib.sha256(data[start : start + entry.size_bytes]).hexdigest())
        for entry, start in zip(file.tensors, starts, strict=True)
    ]


def codes(repair: Repair) -> list[tuple[str, str]]:
    """What was mended: the checks' ids and codes."""
    return [(root.id, root.code) for root in repair.roots]


def test_the_broken_twin_gets_the_vocabulary_of_its_model_and_keeps_its_weights(
    repaired: tuple[Path, Repair], good: Path
) -> None:
    path, repair = repaired
    assert codes(repair) == [
        ("tokenizer/model", "sentencepiece-from-bpe"),
        ("tokenizer/eos-id", "first-release"),
        ("tokenizer/pad-id", "first-release"),
        ("phi3/sliding-window", "wrong"),
        ("tokenizer/chat-template", "no-generation-prompt"),
    ]
    assert repair.proof.is_right
    assert tensor_digests(path) == tensor_digests(TINY_BROKEN)
    vocabulary = {key: pair for key, pair in read_gguf(path).metadata.items() if key.startswith("tokenizer.")}
    assert vocabulary == {key: pair for key, pair in read_gguf(good).metadata.items() if key.startswith("tokenizer.")}


def test_a_repair_is_deterministic_and_repairing_again_copies(repaired: tuple[Path, Repair], tmp_path: Path) -> None:
    path, _ = repaired
    twice, _ = fixed(TINY_BROKEN, tmp_path / "twice.gguf", TINY)
    assert twice.read_bytes() == path.read_bytes()
    again, repair = fixed(path, tmp_path / "again.gguf", TINY)
    assert (repair.changes, repair.roots) == ((), ())
    assert again.read_bytes() == path.read_bytes()


def test_a_repaired_file_of_unknown_source_needs_no_source_again(repaired: tuple[Path, Repair], tmp_path: Path) -> None:
    path, _ = repaired
    again, repair = fixed(path, tmp_path / "again.gguf")
    assert repair.expected.origin is Origin.FILE_ITSELF
    assert again.read_bytes() == path.read_bytes()


def answers(llama: LlamaCpp, prompts: list[str], length: int) -> list[str]:
    """What the loaded model says, up to the end of its turn."""
    said = []
    for ids in llama.tokenize(prompts):
        new = llama.generate(ids, length)
        ends = llama.end_of_generation()
        stop = next((place for place, token in enumerate(new) if token in ends), len(new))
        said.append(b"".join(llama.pieces(new[:stop])).decode("utf-8", "replace"))
    return said


@pytest.mark.slow
def test_the_repaired_twin_speaks_in_real_llama_cpp_and_the_broken_one_does_not(
    repaired: tuple[Path, Repair], chats: list[tuple[str, str]]
) -> None:
    prompts, expected = [prompt for prompt, _ in chats], [answer for _, answer in chats]
    assert len(prompts) == 15
    with LlamaCpp(threads=1) as llama:
        llama.load(repaired[0])
        assert answers(llama, prompts, 80) == expected
        llama.load(TINY_BROKEN)
        single_lines = [prompt for prompt in prompts if "\n" not in prompt]  # a line end ends the broken tokenizer
        said = answers(llama, single_lines, 80)
    assert single_lines
    assert not set(said) & set(expected)


# What is wrong with the good file, and the defects that follow from the file itself how to mend.
TYPES_AS_WORDS = i32s(K.TOKEN_TYPE, [TokenType.NORMAL] * len(tiny_pairs()[K.LIST].value))
SAFE: dict[str, tuple[dict[str, MetadataPair | None], list[tuple[str, str]]]] = {
    "merges missing": ({K.MERGES: None}, [("tokenizer/merges", "missing")]),
    "merges cut short": (
        {K.MERGES: texts(K.MERGES, list(tiny_pairs()[K.MERGES].value)[:-40])},
        [("tokenizer/merges", "dropped")],
    ),
    "specials typed NORMAL": ({K.TOKEN_TYPE: TYPES_AS_WORDS}, [("tokenizer/token-types", "special-as-normal")]),
    "types missing": ({K.TOKEN_TYPE: None}, [("tokenizer/token-types", "missing")]),
    "pre missing": ({K.PRE: None}, [("tokenizer/pre", "missing")]),
    "first release": (
        {
            K.EOS_ID: u32(K.EOS_ID, 929),
            K.PAD_ID: u32(K.PAD_ID, 929),
            K.EOT_ID: None,
            K.CHAT_TEMPLATE: text(K.CHAT_TEMPLATE, first_release_template()),
        },
        [
            ("tokenizer/eos-id", "first-release"),
            ("tokenizer/pad-id", "first-release"),
            ("tokenizer/chat-template", "first-release"),
        ],
    ),
    "sliding window": ({WINDOW: u32(WINDOW, 1024)}, [("phi3/sliding-window", "wrong")]),
    "name of a Phi-3": (
        {Keys.General.NAME: text(Keys.General.NAME, "my phi-3 killer")},
        [("general/name", "phi-3-in-name")],
    ),
}
ALONE_ONLY = {"merges cut short", "specials typed NORMAL"}  # the same key is missing altogether in another case
SAFE["all at once"] = (
    {key: pair for name in SAFE.keys() - ALONE_ONLY for key, pair in SAFE[name][0].items()},
    [code for name in SAFE.keys() - ALONE_ONLY for code in SAFE[name][1]],
)


@pytest.mark.parametrize("case", SAFE)
def test_what_follows_from_the_file_itself_needs_no_source(good: Path, tmp_path: Path, case: str) -> None:
    changes, expected = SAFE[case]
    broken = with_changes(good, tmp_path / "broken.gguf", changes)
    path, repair = fixed(broken, tmp_path / "fixed.gguf")
    assert repair.expected.origin is Origin.FILE_ITSELF
    assert sorted(codes(repair)) == sorted(expected)
    before, after = read_gguf(good).metadata, dict(read_gguf(path).metadata)
    if Keys.General.NAME in changes:
        assert after[Keys.General.NAME].value == "my Phi 3 killer"
        after[Keys.General.NAME] = before[Keys.General.NAME]
    assert after == before
    assert tensor_digests(path) == tensor_digests(good)


def test_the_types_of_a_file_that_calls_all_tokens_words_come_from_its_merges(good: Path, tmp_path: Path) -> None:
    broken = with_changes(good, tmp_path / "broken.gguf", {K.TOKEN_TYPE: TYPES_AS_WORDS, K.MERGES: None})
    path, repair = fixed(broken, tmp_path / "fixed.gguf")
    assert {code for _, code in codes(repair)} == {"special-as-normal", "missing"}
    assert path.read_bytes() == good.read_bytes()


def test_a_file_whose_own_tokens_tell_nothing_needs_its_source() -> None:
    with pytest.raises(RepairError, match=r"do not tell(.|\n)*--tokenizer MODEL_DIR") as caught:
        plan_repair(TINY_BROKEN)
    assert caught.value.exit_code == 1


def test_the_source_of_another_model_is_refused(tmp_path: Path) -> None:
    """One row less than the tokenizer has tokens."""
    pairs = tiny_pairs().values()
    header = encode_header(pairs, [("token_embd.weight", (1000, 256), GGMLQuantizationType.F32)])
    path = tmp_path / "small.gguf"
    path.write_bytes(header.data)
    os.truncate(path, header.size_bytes)
    with pytest.raises(RepairError, match=r"more tokens than the embedding has rows(.|\n)*1,000(.|\n)*1,024"):
        plan_repair(path, TINY)


@pytest.mark.parametrize("lost", [1, 100_000])
def test_missing_weights_are_said_to_be_missing(good: Path, tmp_path: Path, lost: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(good.read_bytes()[:-lost])
    with pytest.raises(RepairError, match=r"cut short(.|\n)*blk\.3\.ffn_up\.weight(.|\n)*download"):
        plan_repair(path)


def test_a_file_that_changes_between_examination_and_copy_is_not_written(good: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(good.read_bytes())
    repair = plan_repair(source)
    with source.open("ab") as file:
        file.write(b"more")
    with pytest.raises(FormatError, match="changed while it was read"):
        write_repaired(repair, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_a_setting_counts_more_than_a_repair_and_its_fault_is_the_users(good: Path, tmp_path: Path) -> None:
    broken = with_changes(good, tmp_path / "broken.gguf", {K.PRE: None, K.MERGES: None})
    repair = plan_repair(broken, settings=[f"{K.PRE}=gpt-2", "general.name=Mine"])
    write_repaired(repair, tmp_path / "out.gguf")
    file = read_gguf(tmp_path / "out.gguf")
    assert file.text(K.PRE) == "gpt-2"
    assert file.text(Keys.General.NAME) == "Mine"
    assert list(file.strings(K.MERGES)) == list(tiny_pairs()[K.MERGES].value)
    assert not repair.proof.is_right
    assert [finding.id for finding in repair.proof.findings if finding.severity > 2] == ["tokenizer/pre"]


def test_a_setting_that_is_there_already_changes_nothing(good: Path) -> None:
    assert plan_repair(good, settings=[f"{K.PRE}=dbrx"]).changes == ()


def broken_table() -> dict[str, MetadataPair | None]:
    """The vocabulary of the file that started it all, or what is as bad: pieces that are token strings."""
    if SHARED_BROKEN.is_file():
        pairs = read_gguf(SHARED_BROKEN).metadata
        table: dict[str, MetadataPair | None] = {key: pairs[key] for key in pairs if key.startswith("tokenizer.")}
        return {K.MERGES: None, **table}
    right = phi4_vocabulary()
    normal = right.types.count(TokenType.NORMAL)
    pieces = ["<unk>", *(f"\u2581{piece}" for piece in reversed(right.texts[1:normal])), *right.texts[normal:]]
    return {
        K.MODEL: text(K.MODEL, "llama"),
        K.PRE: text(K.PRE, "default"),
        K.LIST: texts(K.LIST, pieces),
        K.TOKEN_TYPE: i32s(K.TOKEN_TYPE, [TokenType.UNKNOWN, *right.types[1:]]),
        K.SCORES: f32s(K.SCORES, [0.0, *(-float(rank) for rank in range(len(pieces) - 1))]),
        K.MERGES: None,
        K.EOS_ID: u32(K.EOS_ID, 100257),
        K.PAD_ID: u32(K.PAD_ID, 100257),
    }


def sparse(path: Path, pairs: Mapping[str, MetadataPair]) -> Path:
    """A file of Phi-4's embedding alone, all of it a hole on the disk."""
    tensors = [("token_embd.weight", (PHI4_ROWS, PHI4_WIDTH), GGMLQuantizationType.Q4_K)]
    header = encode_header(pairs.values(), tensors)
    path.write_bytes(header.data)
    os.truncate(path, header.size_bytes)
    return path


@pytest.mark.slow
def test_a_file_of_phi_4s_shape_is_repaired_without_any_model_folder(tmp_path: Path) -> None:
    pairs = {key: pair for key, pair in tiny_pairs().items() if not key.startswith("tokenizer.")}
    table = {key: pair for key, pair in broken_table().items() if pair is not None}
    scalars = [
        text(K.CHAT_TEMPLATE, phi4_vocabulary().chat_template or ""),
        u32(K.BOS_ID, 100257),
        u32(WINDOW, PHI4_ROWS),
        u32("phi3.embedding_length", PHI4_WIDTH),
    ]
    broken = sparse(tmp_path / "broken.gguf", {**changed(pairs, *scalars), **table})
    path, repair = fixed(broken, tmp_path / "fixed.gguf")
    assert repair.expected.origin is Origin.CARRIED
    assert codes(repair)[0] == ("tokenizer/model", "sentencepiece-from-bpe")
    assert ("phi3/sliding-window", "wrong") in codes(repair)
    assert repair.proof.is_right
    assert tensor_digests(path) == tensor_digests(broken)
    with LlamaCpp(threads=1) as llama:
        llama.load(path, vocab_only=True)
        assert llama.tokenize(["Tell me a joke."]) == [[41551, 757, 264, 22380, 13]]
        assert llama.end_of_generation() == {100257, 100265}


def test_one_of_two_repairs_of_one_file_at_once_is_whole(good: Path, tmp_path: Path) -> None:
    """Both are planned on the same bytes; the one that comes second finds the name taken."""
    first = plan_repair(good, settings=["general.name=First"])
    second = plan_repair(good, settings=["general.name=Second"])
    write_repaired(first, tmp_path / "out.gguf")
    with pytest.raises(Exception, match="the output exists"):
        write_repaired(second, tmp_path / "out.gguf")
    assert read_gguf(tmp_path / "out.gguf").text(Keys.General.NAME) == "First"
