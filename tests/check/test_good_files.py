"""No false alarm: a file with a right tokenizer, however it was made, has no finding above INFO and no wrong text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from checkpoints import SHARED_DATA, SPELLINGS, TINY
from gguf import GGMLQuantizationType, GGUFValueType, Keys, TokenType
from one_change import put
from phi4_folder import phi4_folder
from proofs import RememberedFolder, defects, is_good
from vocabulary_changes import respelled, retyped, without
from vocabulary_files import Pairs, changed, tiny_pairs, written

from phi4conv.check.case import Case
from phi4conv.check.diagnosis import Diagnosis, diagnose
from phi4conv.check.expectation import expected_from_folder, expected_of_phi4
from phi4conv.check.inferred import expected_of_file
from phi4conv.check.proof import prove
from phi4conv.convert import convert
from phi4conv.fix import plan_repair
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, f32, i32s, text, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.write import encode_header
from phi4conv.phi3 import ConversionOptions

K = Keys.Tokenizer
BY_LLAMA_CPP = SHARED_DATA / "phi-4" / "vocab-by-llama.cpp.gguf"
OWN_TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tiny() -> Iterator[RememberedFolder]:
    folder = RememberedFolder(TINY)
    with pytest.MonkeyPatch.context() as patch:
        folder.use(patch)
        yield folder


@pytest.fixture(scope="module")
def phi4(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    """The vocabulary of Phi-4 itself, converted from a model folder beside it."""
    folder = phi4_folder(tmp_path_factory.mktemp("phi-4"))
    convert(folder, folder / "phi-4.gguf", ConversionOptions(vocab_only=True))
    return read_gguf(folder / "phi-4.gguf")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_checkpoint_converted_is_right_however_it_is_spelled(
    tmp_path: Path, tiny: RememberedFolder, spelling: str
) -> None:
    folder = SPELLINGS[spelling](tmp_path / "model")
    convert(folder, tmp_path / "out.gguf", ConversionOptions(file_type="Q8_0"))
    file = read_gguf(tmp_path / "out.gguf")
    for of_folder in (folder, TINY):
        proof = prove(file, tiny.expected(file, of_folder))
        assert is_good(proof)
        assert proof.findings == ()
    assert plan_repair(file.path, folder).changes == ()
    assert plan_repair(file.path).changes == ()


def test_a_file_by_gguf_pys_own_writer_is_right(tmp_path: Path, tiny: RememberedFolder) -> None:
    writer = gguf.GGUFWriter(tmp_path / "out.gguf", "phi3")
    for pair in tiny_pairs().values():
        if pair.key != Keys.General.ARCHITECTURE:
            value = list(pair.value) if pair.type == GGUFValueType.ARRAY else pair.value
            writer.add_key_value(pair.key, value, pair.type, sub_type=pair.item_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = read_gguf(tmp_path / "out.gguf")
    assert list(file.metadata) == list(tiny_pairs())
    assert is_good(prove(file, tiny.expected(file)))


def as_llama(pairs: Pairs) -> Iterator[MetadataPair]:
    """The metadata that llama.cpp's converter writes for a LlamaForCausalLM of the same weights."""
    for pair in without(pairs, K.EOT_ID, "phi3.attention.sliding_window").values():
        if pair.key == Keys.General.ARCHITECTURE:
            yield text(pair.key, "llama")
        elif pair.key.startswith("phi3."):
            yield MetadataPair(pair.key.replace("phi3.", "llama.", 1), pair.type, pair.value, pair.item_type)
        else:
            yield pair
    yield u32("llama.vocab_size", len(pairs[K.LIST].value))
    yield u32("llama.attention.key_length", 32)
    yield u32("llama.attention.value_length", 32)
    yield f32("llama.rope.scaling.attn_factor", 1.0)


@pytest.mark.parametrize("pre", ["dbrx", "llama-bpe"])
def test_a_llama_file_of_a_llama_fied_phi_4_is_right(tmp_path: Path, tiny: RememberedFolder, pre: str) -> None:
    pairs = {pair.key: pair for pair in as_llama(changed(tiny_pairs(), text(K.PRE, pre)))}
    count, width = len(pairs[K.LIST].value), int(pairs["llama.embedding_length"].value)
    embedding = [("token_embd.weight", (count, width), GGMLQuantizationType.F32)]
    path = tmp_path / "llama.gguf"
    path.write_bytes(encode_header(pairs.values(), embedding).data + bytes(4 * count * width))
    file = read_gguf(path)
    assert (file.architecture, file.defects) == ("llama", ())
    proof = prove(file, tiny.expected(file, SPELLINGS["llama-fied"](tmp_path / "model")))
    assert is_good(proof)
    assert [finding.code for finding in proof.findings] == ["guessed"]  # llama.cpp's converter writes no eot
    assert plan_repair(path, TINY).changes == ()


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_of_an_older_format_is_right(tmp_path: Path, tiny: RememberedFolder, version: int) -> None:
    path = written(tiny_pairs(), tmp_path / "old.gguf")
    content = bytearray(path.read_bytes())
    content[4] = version
    path.write_bytes(content)
    file = read_gguf(path)
    assert file.version == version
    assert is_good(prove(file, tiny.expected(file)))


def diagnosed(phi4: GGUFFile, pairs: Pairs, path: Path) -> tuple[GGUFFile, Diagnosis]:
    """A file of other metadata, held against the vocabulary that phi4conv carries."""
    assert pairs != phi4.metadata
    file = read_gguf(written(pairs, path))
    return file, diagnose(Case(file, expected_of_phi4(file)))


def test_phi_4_itself_has_no_finding(phi4: GGUFFile) -> None:
    for expected in (expected_of_phi4(phi4), expected_from_folder(phi4, phi4.path.parent), expected_of_file(phi4)):
        diagnosis = diagnose(Case(phi4, expected))
        assert diagnosis.roots == ()
        assert diagnosis.cases[0].merges == expected.vocabulary.merges


@pytest.mark.slow
def test_phi_4_itself_is_right_by_the_carried_vocabulary_and_by_its_folder(phi4: GGUFFile) -> None:
    for expected in (expected_of_phi4(phi4), expected_from_folder(phi4, phi4.path.parent)):
        proof = prove(phi4, expected)
        assert is_good(proof)
        assert proof.findings == ()
        assert all(expected == actual for expected, actual in proof.digests.values())


@pytest.mark.slow
@pytest.mark.skipif(not BY_LLAMA_CPP.exists(), reason="needs the published tokenizer files beside the checkout")
def test_the_file_of_llama_cpps_own_converter_is_right() -> None:
    file = read_gguf(BY_LLAMA_CPP)
    for expected in (expected_of_phi4(file), expected_from_folder(file, BY_LLAMA_CPP.parent)):
        proof = prove(file, expected)
        assert is_good(proof)
        assert [finding.code for finding in proof.findings] == ["guessed"]


def test_unsloths_padding_is_right_without_a_model_folder(tmp_path: Path, phi4: GGUFFile) -> None:
    tokens = phi4.strings(K.LIST)
    pairs = changed(phi4.metadata, u32(K.PAD_ID, tokens.index("<|dummy_87|>")))
    file, diagnosis = diagnosed(phi4, pairs, tmp_path / "unsloth.gguf")
    assert diagnosis.roots == ()
    (root,) = diagnose(Case(file, expected_from_folder(file, phi4.path.parent))).roots
    assert (root.id, root.code) == ("tokenizer/pad-id", "wrong")  # the folder is Microsoft's


THOUGHTS = {"<|dummy_86|>": "<think>", "<|dummy_87|>": "</think>"}


@pytest.mark.parametrize("kind", [TokenType.CONTROL, TokenType.USER_DEFINED])
def test_names_for_free_slots_are_right_and_are_told(tmp_path: Path, phi4: GGUFFile, kind: TokenType) -> None:
    pairs = retyped(respelled(phi4.metadata, THOUGHTS), dict.fromkeys(THOUGHTS.values(), kind))
    file, diagnosis = diagnosed(phi4, pairs, tmp_path / "reasoning.gguf")
    assert diagnosis.roots == ()
    (note,) = expected_of_phi4(file).notes
    assert "100350 '<think>', 100351 '</think>'" in note


@pytest.mark.slow
def test_names_for_free_slots_are_proved_with_the_rest(tmp_path: Path, phi4: GGUFFile) -> None:
    file = read_gguf(written(respelled(phi4.metadata, THOUGHTS), tmp_path / "reasoning.gguf"))
    proof = prove(file, expected_of_phi4(file))
    assert is_good(proof)
    assert proof.notes == expected_of_phi4(file).notes


def test_a_name_that_is_no_free_slots_is_wrong(tmp_path: Path, phi4: GGUFFile) -> None:
    pairs = respelled(phi4.metadata, {**THOUGHTS, "<|im_sep|>": "<|sep|>"})
    _, diagnosis = diagnosed(phi4, pairs, tmp_path / "wrong.gguf")
    assert [(root.id, root.code) for root in diagnosis.roots] == [("tokenizer/tokens", "different")]


def test_a_fine_tunes_own_template_is_a_warning_without_its_folder(tmp_path: Path, phi4: GGUFFile) -> None:
    own = put(text(K.CHAT_TEMPLATE, OWN_TEMPLATE))(phi4.metadata)
    _, diagnosis = diagnosed(phi4, own, tmp_path / "fine-tune.gguf")
    assert defects(diagnosis.roots) == [("WARN", "tokenizer/chat-template", "not-phi-4")]
    assert diagnosis.changes == ()


@pytest.mark.slow
def test_a_fine_tunes_own_template_is_compared_as_its_own(tmp_path: Path, phi4: GGUFFile) -> None:
    own = put(text(K.CHAT_TEMPLATE, OWN_TEMPLATE))(phi4.metadata)
    file = read_gguf(written(own, tmp_path / "fine-tune.gguf"))
    proof = prove(file, expected_of_phi4(file))
    assert proof.is_right
    assert defects(proof.findings) == [("WARN", "tokenizer/chat-template", "not-phi-4")]
    assert not any(comparison.wrong for comparison in proof.comparisons)


def test_types_and_scores_that_llama_cpp_does_not_mind_are_right(tmp_path: Path, tiny: RememberedFolder) -> None:
    count = len(tiny_pairs()[K.LIST].value)
    file = read_gguf(written(changed(tiny_pairs(), i32s(K.SCORES, [0] * count)), tmp_path / "scores.gguf"))
    assert defects(diagnose(Case(file, tiny.expected(file))).roots) == []
