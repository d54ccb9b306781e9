"""Phi-4's full vocabulary, changed in one thing, has the same defect as the tiny one; no model folder is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import Keys
from mutations import MUTATIONS
from one_change import LOADS, Mutation, mutated
from phi4_folder import phi4_folder
from proofs import COMPARISONS, defects, is_good
from vocabulary_files import written

from phi4conv.check.case import Case
from phi4conv.check.diagnosis import diagnose
from phi4conv.check.expectation import expected_of_phi4
from phi4conv.check.model import Severity
from phi4conv.check.proof import prove
from phi4conv.convert import convert
from phi4conv.fix import plan_repair
from phi4conv.gguf_file.edit import edited
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.read import read_gguf
from phi4conv.phi3 import ConversionOptions

pytestmark = pytest.mark.slow

K = Keys.Tokenizer

# Those that need the model folder: the carried vocabulary goes with a file of Phi-4's size, and templates may be
# a fine-tune's.
LIKE_THE_TINY_ONE = [
    mutation
    for mutation in MUTATIONS.values()
    if mutation.root is not None
    and mutation.root not in {("tokenizer/tokens", "count"), ("tokenizer/tokens", "missing")}
    and mutation.root != ("tokenizer/chat-template", "different")
    and mutation.name != "tokens numbers"
]

# Through both tokenizers as well: what texts show, and what only the list of merges shows.
PROVED = (
    "pre missing",
    "last merge dropped",
    "two adjacent merges swapped",
    "two tokens swapped",
    "specials typed NORMAL",
    "eos out of range",
)


@pytest.fixture(scope="module")
def phi4(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    folder = phi4_folder(tmp_path_factory.mktemp("phi-4"))
    convert(folder, folder / "phi-4.gguf", ConversionOptions(vocab_only=True))
    return read_gguf(folder / "phi-4.gguf")


@pytest.mark.parametrize("mutation", [pytest.param(mutation, id=mutation.name) for mutation in LIKE_THE_TINY_ONE])
def test_the_full_vocabulary_has_the_same_defect(phi4: GGUFFile, mutation: Mutation) -> None:
    wrong = mutated(phi4, mutation)
    diagnosis = diagnose(Case(wrong, expected_of_phi4(wrong)))
    assert mutation.root is not None
    assert defects(diagnosis.roots) == [(mutation.severity.name, *mutation.root)]
    if mutation.mended == "restored":
        assert diagnosis.mended.file.metadata == phi4.metadata


@pytest.mark.parametrize("name", PROVED)
def test_all_that_follows_hangs_under_the_defect_and_fix_mends_it(tmp_path: Path, phi4: GGUFFile, name: str) -> None:
    mutation = MUTATIONS[name]
    path = written(mutated(phi4, mutation).metadata, tmp_path / "wrong.gguf")
    wrong = read_gguf(path)
    proof = prove(wrong, expected_of_phi4(wrong))
    (root,) = proof.findings
    assert (root.severity, (root.id, root.code)) == (Severity.FAIL, mutation.root)
    assert mutation.llama_cpp == LOADS
    shown = {finding.id for finding in root.walk()} & COMPARISONS
    assert any(comparison.wrong for comparison in proof.comparisons) == bool(shown)
    repair = plan_repair(path)
    assert is_good(repair.proof)
    assert edited(wrong, repair.changes).metadata == phi4.metadata


def test_only_the_list_itself_shows_two_adjacent_merges_swapped(phi4: GGUFFile) -> None:
    wrong = mutated(phi4, MUTATIONS["two adjacent merges swapped"])
    proof = prove(wrong, expected_of_phi4(wrong))
    (root,) = proof.findings
    assert {finding.id for finding in root.consequences} == {"tokenizer/merge-order"}
    assert not any(comparison.wrong for comparison in proof.comparisons)
    expected, actual = proof.digests["merges"]
    assert expected != actual
