"""Converts a full-width model to BF16, Q8_0 and Q4_K_M and proves all three in real llama.cpp.

    python benchmarks/full_width.py MODEL_DIR

MODEL_DIR comes from benchmarks/make_model.py with Phi-4's real tokenizer. For each type: seconds and peak
memory of the conversion, whether llama.cpp loads the file and runs it, and whether it tokenizes every text of the
test suite, and many random ones, as Hugging Face's tokenizers does. The files go to a temporary folder on
the model's disk. Exits with 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from phi4conv.reference.llama_cpp import LlamaCpp

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from texts import PLAIN, WITH_SPECIAL_TOKENS, random_texts

RANDOM_TEXTS = 100_000
SEED = 4


def convert(model: Path, out: Path) -> str:
    """Convert in a process of its own; returns what it took."""
    command = [sys.executable, "-m", "phi4conv", "convert", str(model), str(out), "--json"]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return (
        f"{result['size_bytes'] / 1e9:.2f} GB in {result['seconds']:.1f} s with {result['threads']} threads, "
        f"peak memory {result['peak_memory_bytes'] / 1e6:.0f} MB"
    )


def differences(llama: LlamaCpp, source: Tokenizer, texts: list[str]) -> list[str]:
    """The texts that llama.cpp tokenizes otherwise than the source."""
    expected = [encoding.ids for encoding in source.encode_batch(texts, add_special_tokens=False)]
    return [text for text, ids, other in zip(texts, llama.tokenize(texts), expected, strict=True) if ids != other]


def prove(model: Path, out: Path) -> bool:
    """Convert to one type, print the figures, and say whether all is well."""
    print(f"{out.name}: {convert(model, out)}")
    source = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = [*PLAIN, *WITH_SPECIAL_TOKENS, *random_texts(RANDOM_TEXTS, SEED)]
    with LlamaCpp() as llama:
        llama.load(out)
        wrong = differences(llama, source, texts)
        logits = llama.logits(source.encode(WITH_SPECIAL_TOKENS[0]).ids)
        finite = bool(np.isfinite(logits).all())
        print(f"  llama.cpp (xllamacpp {llama.version}) loads it; warnings: {llama.log or 'none'}")
    print(f"  {len(texts):,} texts tokenized, {len(wrong)} otherwise than by tokenizers {wrong[:3] or ''}")
    print(f"  logits {logits.shape} {'finite' if finite else 'NOT finite'}")
    return finite and not wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.model.parent) as folder:
        good = [prove(arguments.model, Path(folder) / f"phi-4-{name}.gguf") for name in ("BF16", "Q8_0", "Q4_K_M")]
    sys.exit(0 if all(good) else 1)
