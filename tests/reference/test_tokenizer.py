from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import TINY_BROKEN
from gguf import Keys
from vocabulary_files import changed, tiny_pairs, with_pre, written

from phi4conv.errors import FormatError
from phi4conv.gguf_file.layout import text
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.bpe import BPE
from phi4conv.reference.llama_vocab import RefusedByLlamaCpp
from phi4conv.reference.spm import SPM
from phi4conv.reference.tokenizer import file_tokenizer


def test_a_gpt2_vocabulary_is_run_as_bpe_and_a_llama_vocabulary_as_sentencepiece(tmp_path: Path) -> None:
    assert isinstance(file_tokenizer(read_gguf(written(tiny_pairs(), tmp_path / "good.gguf"))), BPE)
    assert isinstance(file_tokenizer(read_gguf(TINY_BROKEN)), SPM)


def test_a_split_regex_that_llama_cpp_knows_alone_is_no_refusal_by_llama_cpp(tmp_path: Path) -> None:
    file = read_gguf(written(with_pre(tiny_pairs(), "chameleon"), tmp_path / "chameleon.gguf"))
    with pytest.raises(FormatError, match="not known here") as error:
        file_tokenizer(file)
    assert not isinstance(error.value, RefusedByLlamaCpp)


def test_a_kind_of_vocabulary_that_llama_cpp_does_not_know_is_its_refusal(tmp_path: Path) -> None:
    file = read_gguf(written(changed(tiny_pairs(), text(Keys.Tokenizer.MODEL, "gpt4")), tmp_path / "unknown.gguf"))
    with pytest.raises(RefusedByLlamaCpp, match="'gpt4'"):
        file_tokenizer(file)


def test_the_proving_side_shares_no_code_with_the_proven_one() -> None:
    script = "import sys, phi4conv.reference.tokenizer; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "phi4conv.reference.spm" in loaded
    # `gguf` itself imports sentencepiece where it is installed, so that one says nothing.
    proven = ("tokenizers", "transformers", "regex", "phi4conv.hf", "phi4conv.phi3", "phi4conv.plan")
    assert [module for module in loaded if module.startswith(proven)] == []
