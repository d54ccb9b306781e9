"""Times verify-tokenizer on a whole vocabulary as a process, and both tokenizers on the texts of the proof.

    python -m benchmarks.verify [FILE.gguf [MODEL_DIR]] [--runs 5] [--fuzz N] [--json FILE]

Without FILE the vocabulary of Phi-4 that phi4conv carries is written to a file, and held against itself. Prints seconds
and peak memory of the process, and tokens per second of the source's side (the tokenizers library, on all cores) and
of the file's side (phi4conv, on one), each on the same texts in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import described, measured
from phi4conv.carried import phi4_vocabulary
from phi4conv.gguf_file import layout
from phi4conv.gguf_file.write import encode_header
from phi4conv.phi3.metadata import tokenizer_pairs

PACKAGES = ("tokenizers", "numpy")


def write_phi4(path: Path) -> None:
    """A vocabulary-only GGUF with Phi-4's vocabulary."""
    pairs = [
        layout.text("general.architecture", "phi3"),
        layout.u32("phi3.embedding_length", 5120),
        layout.u32("phi3.attention.sliding_window", 0),
        *tokenizer_pairs(phi4_vocabulary()),
    ]
    path.write_bytes(encode_header(pairs, []).data)


def main() -> None:
    """Run, and print medians and ranges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="FILE.gguf [MODEL_DIR]")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--fuzz", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, *model_dir = arguments.paths or [Path(folder) / "phi-4.gguf"]
        if not arguments.paths:
            write_phi4(file)
        command = [sys.executable, "-m", "phi4conv", "verify-tokenizer", *map(str, model_dir), str(file), "--json"]
        command += ["--fuzz", str(arguments.fuzz), "--quiet"]
        runs, documents = [], []
        for _ in range(arguments.runs):
            answer = Path(folder) / "answer.json"
            runs.append(
                measured(["sh", "-c", 'exec "$@" > "$ANSWER"', "sh", *command], [file], {"ANSWER": str(answer)})
            )
            documents.append(json.loads(answer.read_text()))
    print(described(PACKAGES))
    peak = max(run.peak_bytes for run in runs) / 1e6
    print(f"  verify-tokenizer  {spread([run.seconds for run in runs])} s, {peak:.0f} MB")
    figures = {"seconds": [run.seconds for run in runs]}
    for side, label in (("source_seconds", "tokenizers"), ("file_seconds", "phi4conv")):
        rates = [rate(document["comparisons"], side) for document in documents]
        figures[label] = rates
        print(f"  {label:<16}  {spread([value / 1e6 for value in rates])} million tokens/s")
    ratios = [own / theirs for own, theirs in zip(figures["phi4conv"], figures["tokenizers"], strict=True)]
    print(f"  ratio             {spread(ratios)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    if not all(document["verdict"]["right"] for document in documents):
        sys.exit("the tokenizer is wrong")


def rate(comparisons: list[dict[str, float]], side: str) -> float:
    """Tokens per second of one side over all texts; decoding of single ids is another matter."""
    encoded = [group for group in comparisons if "decoded" not in str(group["name"]) and group[side]]
    return sum(group["tokens"] for group in encoded) / sum(group[side] for group in encoded)


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
