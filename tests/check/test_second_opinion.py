"""The real llama.cpp as a third opinion: where it does otherwise than expected, that is a finding of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import TINY
from mutations import MUTATIONS
from one_change import mutated
from vocabulary_files import tiny_pairs, written

from phi4conv.check.expectation import expected_from_folder
from phi4conv.check.proof import ProofOptions, prove
from phi4conv.gguf_file.read import read_gguf

pytest.importorskip("xllamacpp")


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("two tokens swapped", {"pieces", "different"}),
        ("eos of the first release", {"eos-id"}),
        ("merges missing", {"loads"}),
    ],
)
def test_a_file_that_llama_cpp_reads_otherwise_is_told(tmp_path: Path, name: str, codes: set[str]) -> None:
    good = read_gguf(written(tiny_pairs(), tmp_path / "good.gguf"))
    # What is examined is not what lies on the disk, and so not what llama.cpp loads.
    other = replace(mutated(good, MUTATIONS[name]), path=good.path)
    proof = prove(other, expected_from_folder(other, TINY), ProofOptions(llama_cpp=True))
    told = {finding.code for finding in proof.findings if finding.id == "tokenizer/llama.cpp"}
    assert told == codes


def test_ids_texts_and_prompts_are_asked(tmp_path: Path) -> None:
    good = read_gguf(written(tiny_pairs(), tmp_path / "good.gguf"))
    proof = prove(good, expected_from_folder(good, TINY), ProofOptions(llama_cpp=True))
    by_name = {each.name: each for each in proof.comparisons}
    asked = by_name["texts through llama.cpp"]
    others = ("ids decoded", "own texts of tokens", "built-in texts", "conversations")
    assert asked.texts == sum(by_name[name].texts for name in others)
    assert asked.wrong == 0
