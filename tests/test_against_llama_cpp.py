"""Real llama.cpp loads what was written, tokenizes it as Hugging Face does, and computes what transformers does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import SHARED_DATA, SPELLINGS, TINY
from texts import PLAIN, WITH_SPECIAL_TOKENS, random_texts
from tokenizers import Tokenizer

from phi4conv.convert import convert
from phi4conv.gguf_file.layout import u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.phi3 import ConversionOptions
from phi4conv.reference.llama_cpp import LlamaCpp

FUZZ_SEED = 20241212
PHI4 = SHARED_DATA / "phi-4"


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


def assert_same_tokens(llama: LlamaCpp, source: Tokenizer, texts: list[str]) -> None:
    expected = [encoding.ids for encoding in source.encode_batch(texts, add_special_tokens=False)]
    found = llama.tokenize([text.encode() for text in texts])
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        assert ours == theirs, repr(text)
    assert llama.tokenize(texts[:5], add_special=True) == [
        encoding.ids for encoding in source.encode_batch(texts[:5], add_special_tokens=True)
    ]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_tiny_model_is_tokenized_as_its_source(tmp_path: Path, llama: LlamaCpp, spelling: str) -> None:
    folder = SPELLINGS[spelling](tmp_path / "model")
    convert(folder, tmp_path / "out.gguf", ConversionOptions(file_type="Q8_0"))
    llama.load(tmp_path / "out.gguf")
    assert llama.log == []
    source = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert_same_tokens(llama, source, [*PLAIN, *WITH_SPECIAL_TOKENS, *random_texts(2000, FUZZ_SEED)])
    special = llama.special_ids()
    assert (special["bos"], special["eos"], special["eot"], special["pad"]) == (929, 937, 937, 1021)
    assert llama.end_of_generation() == {929, 937}


@pytest.mark.skipif(not PHI4.is_dir(), reason="needs the published tokenizer files beside the checkout")
@pytest.mark.parametrize("release", ["phi-4", "phi-4-original-release"])
def test_real_phi_4_is_tokenized_as_its_source(tmp_path: Path, llama: LlamaCpp, release: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (*PHI4.iterdir(), *(SHARED_DATA / release).iterdir()):
        if path.suffix == ".json" and "index" not in path.name:
            (folder / path.name).unlink(missing_ok=True)
            (folder / path.name).symlink_to(path)
    convert(folder, tmp_path / "out.gguf", ConversionOptions(vocab_only=True))
    llama.load(tmp_path / "out.gguf", vocab_only=True)
    assert llama.log == []
    source = Tokenizer.from_file(str(PHI4 / "tokenizer.json"))
    assert_same_tokens(llama, source, [*PLAIN, *WITH_SPECIAL_TOKENS, *random_texts(5000, FUZZ_SEED)])
    assert llama.token_texts() == [source.id_to_token(token) for token in range(source.get_vocab_size())]
    assert llama.end_of_generation() == {100257, 100265}
    assert llama.special_ids()["eot"] == 100265


@pytest.fixture(scope="module")
def logits_of_transformers() -> tuple[list[list[int]], list[np.ndarray]]:
    torch = pytest.importorskip("torch", reason="the reference run needs torch")
    transformers = pytest.importorskip("transformers")
    # BF16 weights widened to float32: model.float() after loading as bfloat16 would round inv_freq as well.
    model = transformers.Phi3ForCausalLM.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager").eval()
    source = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    prompts = [source.encode(text).ids for text in (*WITH_SPECIAL_TOKENS[:2], PLAIN[3], PLAIN[11] * 8)]
    with torch.no_grad():
        return prompts, [model(torch.tensor([ids])).logits[0].numpy() for ids in prompts]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_logits_of_the_f32_file_are_those_of_transformers(
    tmp_path: Path,
    llama: LlamaCpp,
    logits_of_transformers: tuple[list[list[int]], list[np.ndarray]],
    spelling: str,
) -> None:
    folder = SPELLINGS[spelling](tmp_path / "model")
    convert(folder, tmp_path / "out.gguf", ConversionOptions(file_type="F32"))
    llama.load(tmp_path / "out.gguf")
    for ids, expected in zip(*logits_of_transformers, strict=True):
        assert np.abs(llama.logits(ids) - expected).max() < 1e-4


@pytest.mark.skipif(not PHI4.is_dir(), reason="needs the published tokenizer files beside the checkout")
def test_real_phi_4_vocabulary_is_key_for_key_llama_cpps(tmp_path: Path) -> None:
    convert(PHI4, tmp_path / "out.gguf", ConversionOptions(vocab_only=True))
    ours, theirs = (
        [pair for key, pair in read_gguf(path).metadata.items() if key.startswith(("tokenizer.", "phi3."))]
        for path in (tmp_path / "out.gguf", PHI4 / "vocab-by-llama.cpp.gguf")
    )
    assert [pair for pair in ours if pair.key != "tokenizer.ggml.eot_token_id"] == theirs
    assert u32("tokenizer.ggml.eot_token_id", 100265) in ours
