"""Holds phi4conv's own reading of a file's tokenizer against real llama.cpp, on any number of random strings.

    python -m benchmarks.tokenizer_fuzz FILE.gguf [--strings 1000000] [--seed N]

Every string is tokenized by phi4conv.reference.tokenizer and by llama.cpp (xllamacpp, in a child process), with special
tokens parsed and not parsed; every tenth answer is decoded again by both. Prints counts, the speed of both sides and
the first differences. Exits with 1 when anything differs; --seed and --strings of the run make the same strings again.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from benchmarks.machine import described
from phi4conv.check.fuzz import fuzz_texts
from phi4conv.gguf_file.read import read_gguf
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.tokenizer import FileTokenizer, file_tokenizer

BATCH = 10_000
DECODED_SHARE = 10
SHOWN = 5
PACKAGES = ("xllamacpp", "numpy")


@dataclass
class Tally:
    """What was compared, and what it took."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: {"phi4conv": 0.0, "llama.cpp": 0.0})
    differences: list[str] = field(default_factory=list)

    def compare(self, what: str, ours: object, theirs: object) -> None:
        """Count one comparison, and keep a difference in words."""
        self.counts["comparisons"] += 1
        if ours != theirs:
            self.counts["differences"] += 1
            if len(self.differences) < SHOWN:
                self.differences.append(f"{what}\n  phi4conv:  {ours}\n  llama.cpp: {theirs}")


def batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """The texts, BATCH at a time."""
    while batch := list(islice(texts, BATCH)):
        yield batch


def encode_both(ours: FileTokenizer, llama: LlamaCpp, texts: Sequence[str], tally: Tally, *, parse: bool) -> None:
    """Tokenize a batch on both sides and compare."""
    start = time.perf_counter()
    found = [ours.encode(text, parse_special=parse) for text in texts]
    between = time.perf_counter()
    expected = llama.tokenize(texts, parse_special=parse)
    tally.seconds["phi4conv"] += between - start
    tally.seconds["llama.cpp"] += time.perf_counter() - between
    for text, ids, theirs in zip(texts, found, expected, strict=True):
        tally.counts["tokens"] += len(theirs)
        tally.compare(f"{text!r}, parse_special={parse}", ids, theirs)
    for ids in expected[::DECODED_SHARE]:
        tally.compare(f"decoding of {ids}", ours.decode(ids), llama.detokenize(ids))


def main() -> None:
    """Compare, report, and exit with 1 on any difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--strings", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    print(described(PACKAGES))

    start = time.perf_counter()
    ours = file_tokenizer(read_gguf(options.file))
    print(f"{options.file.name}: {len(ours.vocab):,} tokens, pre {ours.vocab.pre}, read in", end=" ")
    print(f"{time.perf_counter() - start:.2f} s; {options.strings:,} strings of seed {seed}")
    special_texts = [ours.vocab.texts[token] for token in ours.vocab.special_tokens]
    tally = Tally()
    with LlamaCpp(threads=1) as llama:
        llama.load(options.file, vocab_only=True)
        for batch in batches(fuzz_texts(options.strings, seed, special_texts)):
            for parse in (True, False):
                encode_both(ours, llama, batch, tally, parse=parse)
            tally.counts["strings"] += len(batch)
            tally.counts["bytes"] += sum(len(text.encode()) for text in batch)
            if sys.stderr.isatty():
                print(f"\r{tally.counts['strings']:,}", end="", file=sys.stderr)

    counts = tally.counts
    print(f"{counts['strings']:,} strings of {counts['bytes']:,} bytes, special tokens parsed and not parsed:")
    for side, seconds in tally.seconds.items():
        print(
            f"  {side:<10}{seconds:8.1f} s  {2 * counts['strings'] / seconds:>12,.0f} strings/s"
            f"  {2 * counts['bytes'] / seconds / 1e6:6.2f} MB/s  {counts['tokens'] / seconds:>12,.0f} tokens/s"
        )
    print(f"{counts['comparisons']:,} comparisons, {counts['differences']:,} differences")
    for difference in tally.differences:
        print(difference)
    sys.exit(1 if counts["differences"] else 0)


if __name__ == "__main__":
    main()
