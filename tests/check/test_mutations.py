"""From a good file exactly one change: it is found, named for what it is, explains all that follows, and is mended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import TINY, TINY_BROKEN
from gguf import Keys, TokenType
from mutations import MUTATIONS
from one_change import LOADS, RESTORED, Mutation, changes_of, mutated
from proofs import COMPARISONS, RememberedFolder, defects, is_good, tensor_bytes
from vocabulary_files import written

from phi4conv.check.case import Case
from phi4conv.check.diagnosis import diagnose
from phi4conv.check.inferred import contradictions, expected_of_file
from phi4conv.check.model import Finding, Severity, worst
from phi4conv.check.proof import prove
from phi4conv.convert import convert
from phi4conv.errors import FormatError, RepairError
from phi4conv.files import AtomicFile
from phi4conv.fix import plan_repair, write_repaired
from phi4conv.gguf_file.edit import Change, edited, edited_size, write_edited
from phi4conv.gguf_file.layout import GGUFFile, i32s, texts
from phi4conv.gguf_file.read import read_gguf
from phi4conv.phi3 import ConversionOptions
from phi4conv.progress import Silent
from phi4conv.vocab import pad_text

K = Keys.Tokenizer

# These are proved in every run of the tests, the others in the slow ones.
TELLING = (
    "pre missing",
    "merges missing",
    "last merge dropped",
    "two adjacent merges swapped",
    "two tokens swapped",
    "specials typed NORMAL",
    "eos missing",
    "add_bos true",
    "template of the first release",
)

# Each mends another part of a file.
MENDING = (
    "merges missing",
    "tokens as raw text",
    "half of the tokens dropped",
    "called Phi-3",
    "model llama",
    "eos -1",
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    path = tmp_path_factory.mktemp("mutations") / "good.gguf"
    convert(TINY, path, ConversionOptions(vocab_only=True))
    return read_gguf(path)


@pytest.fixture(scope="module")
def tiny() -> Iterator[RememberedFolder]:
    folder = RememberedFolder(TINY)
    with pytest.MonkeyPatch.context() as patch:
        folder.use(patch)
        yield folder


def expected_defects(mutation: Mutation) -> list[tuple[str, str, str]]:
    return [(mutation.severity.name, *mutation.root)] if mutation.root else []


def told_by_the_file(mutation: Mutation) -> bool:
    """Whether a file without its source tells what is wrong: tokens are taken for right, templates for one's own."""
    if mutation.root is None or mutation.name == "tokens numbers":
        return False
    check, code = mutation.root
    if code == "unexpected":  # perhaps a publisher's choice
        return False
    return check != "tokenizer/tokens" and (check != "tokenizer/chat-template" or code == "first-release")


def consequences(finding: Finding) -> set[str]:
    return {each.id for each in finding.walk() if each is not finding}


def test_there_are_enough_mutations_and_one_of_each_kind() -> None:
    assert len(MUTATIONS) >= 70
    assert len({mutation.root for mutation in MUTATIONS.values()}) >= 40


def test_the_unchanged_file_is_good(good: GGUFFile, tiny: RememberedFolder) -> None:
    proof = prove(good, tiny.expected(good))
    assert is_good(proof)
    assert proof.findings == ()
    assert diagnose(Case(good, tiny.expected(good))).changes == ()


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_one_change_is_one_defect_and_its_mending_restores_the_file(
    good: GGUFFile, tiny: RememberedFolder, mutation: Mutation
) -> None:
    wrong = mutated(good, mutation)
    diagnosis = diagnose(Case(wrong, tiny.expected(wrong)))
    assert defects(diagnosis.roots) == expected_defects(mutation)
    assert (worst(diagnosis.roots) < Severity.FAIL) == mutation.is_harmless
    mended = diagnosis.mended
    assert defects(diagnose(mended).roots) == []
    if mutation.root is None:
        assert mended.file == wrong
    elif mutation.mended == RESTORED:
        assert mended.file.metadata == good.metadata


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(mutation, id=name, marks=() if name in TELLING else pytest.mark.slow)
        for name, mutation in MUTATIONS.items()
    ],
)
def test_all_that_follows_hangs_under_the_defect_and_fix_mends_it(
    tmp_path: Path, good: GGUFFile, tiny: RememberedFolder, mutation: Mutation
) -> None:
    path = written(mutated(good, mutation).metadata, tmp_path / "wrong.gguf")
    wrong = read_gguf(path)
    proof = prove(wrong, tiny.expected(wrong))
    assert defects(proof.findings) == expected_defects(mutation)
    assert proof.is_right == mutation.is_harmless
    below = set().union(*(consequences(finding) for finding in proof.findings))
    assert (mutation.llama_cpp != LOADS) == ("tokenizer/loads" in below)
    assert any(comparison.wrong for comparison in proof.comparisons) == bool(below & COMPARISONS - {"tokenizer/loads"})

    repair = plan_repair(path, TINY)
    assert repair.proof.is_right
    assert not defects(repair.proof.findings)
    assert not any(comparison.wrong for comparison in repair.proof.comparisons)
    mended = edited(wrong, repair.changes)
    if mutation.root is None:
        assert repair.changes == ()
    elif mutation.mended == RESTORED:
        assert mended.metadata == good.metadata


def test_what_only_some_texts_or_none_show_is_found_all_the_same(good: GGUFFile, tiny: RememberedFolder) -> None:
    follows = {}
    for name in ("two adjacent merges swapped", "a merge cut elsewhere", "types one too many", "pre gpt-4o"):
        wrong = mutated(good, MUTATIONS[name])
        (root,) = prove(wrong, tiny.expected(wrong)).findings
        follows[name] = consequences(root)
    assert follows == {
        "two adjacent merges swapped": {"tokenizer/merge-order"},
        "a merge cut elsewhere": {"tokenizer/own-texts"},
        "types one too many": set(),
        "pre gpt-4o": {"tokenizer/texts"},
    }


def test_two_changes_are_two_defects_each_with_its_own_consequences(good: GGUFFile, tiny: RememberedFolder) -> None:
    names = ("pre gpt-2", "specials typed NORMAL", "eos of the first release", "template of the first release")
    wrong = edited(good, [change for name in names for change in changes_of(good, MUTATIONS[name])])
    proof = prove(wrong, tiny.expected(wrong))
    assert sorted(defects(proof.findings)) == sorted(
        defect for name in names for defect in expected_defects(MUTATIONS[name])
    )
    by_id = {finding.id: consequences(finding) for finding in proof.findings}
    assert "tokenizer/texts" in by_id["tokenizer/pre"]
    assert "tokenizer/texts" in by_id["tokenizer/token-types"]
    assert "tokenizer/conversations" in by_id["tokenizer/chat-template"]
    assert diagnose(Case(wrong, tiny.expected(wrong))).mended.file.metadata == good.metadata


def test_one_check_may_find_several_keys_wrong(good: GGUFFile, tiny: RememberedFolder) -> None:
    names = ("eom out of range", "fim_pre out of range", "eos stored as INT32", "add_bos a number")
    wrong = edited(good, [change for name in names for change in changes_of(good, MUTATIONS[name])])
    diagnosis = diagnose(Case(wrong, tiny.expected(wrong)))
    assert sorted(root.where for root in diagnosis.roots) == sorted([K.EOM_ID, K.FIM_PRE_ID, K.EOS_ID, K.ADD_BOS])
    assert diagnosis.mended.file.metadata == good.metadata


PADDING_ROWS = 3


@pytest.mark.parametrize("kind", [TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED])
def test_a_row_without_a_token_is_of_type_unused(good: GGUFFile, tiny: RememberedFolder, kind: TokenType) -> None:
    count = len(good.strings(K.LIST))
    rows = range(count, count + PADDING_ROWS)
    tokens = texts(K.LIST, [*good.strings(K.LIST), *map(pad_text, rows)])
    types = [*good.integers(K.TOKEN_TYPE), *[int(TokenType.UNUSED)] * PADDING_ROWS]
    padded = edited(good, [Change(K.LIST, tokens), Change(K.TOKEN_TYPE, i32s(K.TOKEN_TYPE, types))])
    assert is_good(prove(padded, tiny.expected(padded)))
    types[-1] = int(kind)
    wrong = edited(padded, [Change(K.TOKEN_TYPE, i32s(K.TOKEN_TYPE, types))])
    diagnosis = diagnose(Case(wrong, tiny.expected(wrong)))
    assert defects(diagnosis.roots) == [("FAIL", "tokenizer/token-types", "different")]
    assert diagnosis.mended.file.metadata == padded.metadata


def test_the_broken_sentencepiece_table_is_one_defect_beside_those_of_the_first_release(
    tiny: RememberedFolder,
) -> None:
    broken = read_gguf(TINY_BROKEN)
    proof = prove(broken, tiny.expected(broken))
    assert sorted(defects(proof.findings)) == [
        ("FAIL", "phi3/sliding-window", "wrong"),
        ("FAIL", "tokenizer/chat-template", "no-generation-prompt"),
        ("FAIL", "tokenizer/eos-id", "first-release"),
        ("FAIL", "tokenizer/model", "sentencepiece-from-bpe"),
        ("FAIL", "tokenizer/pad-id", "first-release"),
    ]
    table = next(finding for finding in proof.findings if finding.id == "tokenizer/model")
    assert consequences(table) >= {"tokenizer/ids", "tokenizer/own-texts", "tokenizer/texts", "tokenizer/conversations"}
    assert not proof.is_right
    mended = proof.diagnosis.mended.file
    assert is_good(prove(mended, tiny.expected(mended)))


@pytest.mark.parametrize(
    "mutation",
    [pytest.param(mutation, id=name) for name, mutation in MUTATIONS.items() if told_by_the_file(mutation)],
)
def test_without_the_model_folder_the_file_itself_tells_how_to_mend_it(
    good: GGUFFile, tiny: RememberedFolder, mutation: Mutation
) -> None:
    wrong = mutated(good, mutation)
    mended = diagnose(Case(wrong, expected_of_file(wrong))).mended.file
    if mutation.mended == RESTORED:
        assert mended.metadata == good.metadata
    assert defects(diagnose(Case(mended, tiny.expected(mended))).roots) == []


@pytest.mark.parametrize("mutation", [pytest.param(mutation, id=name) for name, mutation in MUTATIONS.items()])
def test_without_the_model_folder_no_repair_makes_a_file_worse(
    good: GGUFFile, tiny: RememberedFolder, mutation: Mutation
) -> None:
    wrong = mutated(good, mutation)
    try:
        diagnosis = diagnose(Case(wrong, expected_of_file(wrong)))
    except FormatError:
        return  # nothing follows from such tokens, and nothing is repaired
    if list(contradictions(diagnosis.mending)):
        return  # left to whoever has the model folder
    before, after = (
        defects(diagnose(Case(file, tiny.expected(file))).roots) for file in (wrong, diagnosis.mended.file)
    )
    assert set(after) <= set(before)


@pytest.mark.parametrize(
    "name", ["two tokens swapped", "two adjacent merges swapped", "tokens shifted up", "eos one too high"]
)
def test_without_the_model_folder_what_contradicts_itself_is_left_alone(
    tmp_path: Path, good: GGUFFile, name: str
) -> None:
    path = written(mutated(good, MUTATIONS[name]).metadata, tmp_path / "wrong.gguf")
    with pytest.raises(RepairError, match="--tokenizer"):
        plan_repair(path)


@pytest.mark.parametrize(
    "name", ["tokens missing", "tokens numbers", "a token twice", "tokens as raw text", "a byte's token renamed"]
)
def test_without_the_model_folder_tokens_that_tell_nothing_are_beyond_repair(
    tmp_path: Path, good: GGUFFile, name: str
) -> None:
    path = written(mutated(good, MUTATIONS[name]).metadata, tmp_path / "wrong.gguf")
    with pytest.raises(RepairError, match="do not tell what its tokenizer should be"):
        plan_repair(path)


def test_no_repair_touches_the_bytes_of_a_tensor(tmp_path: Path, good: GGUFFile, tiny: RememberedFolder) -> None:
    convert(TINY, tmp_path / "whole.gguf", ConversionOptions(file_type="Q8_0"))
    whole = read_gguf(tmp_path / "whole.gguf")
    before = dict(tensor_bytes(whole))
    assert sum(map(len, before.values())) == sum(entry.size_bytes for entry in whole.tensors) > 0
    assert tiny.expected(whole).vocabulary.texts == tuple(good.strings(K.LIST))
    for name in MENDING:
        path, mended = tmp_path / "wrong.gguf", tmp_path / "mended.gguf"
        changes = changes_of(whole, MUTATIONS[name])
        with AtomicFile(path, edited_size(whole, changes), force=True) as out:
            write_edited(whole, changes, out, Silent())
            out.commit()
        write_repaired(plan_repair(path, TINY), mended, force=True)
        assert dict(tensor_bytes(read_gguf(mended))) == before, name
        if MUTATIONS[name].mended == RESTORED:
            assert mended.read_bytes() == whole.path.read_bytes(), name
