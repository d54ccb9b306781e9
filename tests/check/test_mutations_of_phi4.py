"""Phi-4's full vocabulary, changed in one thing, has the same defect as the tiny one; no model folder is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutations import MUTATIONS
from one_change import RESTORED, mutated
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

LIKE_THE_TINY_ONE = (
    "pre missing",
    "pre gpt-2",
    "merges missing",
    "last merge dropped",
    "two adjacent merges swapped",
    "merges in reverse",
    "a token twice",
    "tokens as raw text",
    "two tokens swapped",
    "two special tokens swapped",
    "tokens shifted up",
    "types one short",
    "specials typed NORMAL",
    "model llama",
    "eos out of range",
    "eos of the first release",
    "eom a comma",
    "pre llama-bpe, which adds bos",
    "called Phi-3",
    "template of the first release",
    "template without generation prompt",
)

# Through both tokenizers as well, with what that has to show.
PROVED = {
    "pre missing": {"tokenizer/own-texts", "tokenizer/texts", "tokenizer/conversations"},
    "last merge dropped": {"tokenizer/own-texts"},
    "two adjacent merges swapped": {"tokenizer/merge-order"},
}


@pytest.fixture(scope="module")
def phi4(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    folder = phi4_folder(tmp_path_factory.mktemp("phi-4"))
    convert(folder, folder / "phi-4.gguf", ConversionOptions(vocab_only=True))
    return read_gguf(folder / "phi-4.gguf")


@pytest.mark.parametrize("name", LIKE_THE_TINY_ONE)
def test_the_full_vocabulary_has_the_same_defect(phi4: GGUFFile, name: str) -> None:
    mutation = MUTATIONS[name]
    wrong = mutated(phi4, mutation)
    diagnosis = diagnose(Case(wrong, expected_of_phi4(wrong)))
    assert mutation.root is not None
    assert defects(diagnosis.roots) == [("FAIL", *mutation.root)]
    if mutation.mended == RESTORED:
        assert diagnosis.mended.file.metadata == phi4.metadata


@pytest.mark.parametrize("name", PROVED)
def test_all_that_follows_hangs_under_the_defect_and_fix_mends_it(tmp_path: Path, phi4: GGUFFile, name: str) -> None:
    path = written(mutated(phi4, MUTATIONS[name]).metadata, tmp_path / "wrong.gguf")
    wrong = read_gguf(path)
    proof = prove(wrong, expected_of_phi4(wrong))
    (root,) = proof.findings
    assert (root.severity, (root.id, root.code)) == (Severity.FAIL, MUTATIONS[name].root)
    shown = {finding.id for finding in root.consequences}
    assert shown == PROVED[name]
    assert any(comparison.wrong for comparison in proof.comparisons) == bool(shown & COMPARISONS)
    expected, actual = proof.digests["merges"]
    assert (expected == actual) == (name == "pre missing")
    repair = plan_repair(path)
    assert is_good(repair.proof)
    assert edited(wrong, repair.changes).metadata == phi4.metadata
