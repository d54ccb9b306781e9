"""Times how fast a GGUF gets other metadata, beside `cp` of the same file in the same run.

    python -m benchmarks.copying [FILE.gguf] [--gigabytes 4] [--folder DIR] [--runs 5] [--json FILE]

Three programs copy the same bytes, in turn: phi4conv's write_edited with a longer header, which flushes what it has
written to the disk before the file gets its name; `cp`; and `cp` followed by `sync FILE`, which flushes as much. Each
is a process of its own, Python's start included, and begins when the system has nothing left to write. Ratios are
phi4conv / cp, round by round.

Without FILE one of Q4_K matrices and norms, full of random bytes, is made in the folder and deleted at the end: twice
its size is needed there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from benchmarks.machine import Run, described, measured
from phi4conv.gguf_file import layout
from phi4conv.gguf_file.write import encode_header

BLOCK = 1 << 24
TENSOR_BYTES = 100_000_000

# What `phi4conv fix` does once it knows its repairs, and nothing else.
EDIT = """
import sys
from pathlib import Path
from phi4conv.files import AtomicFile
from phi4conv.gguf_file import layout
from phi4conv.gguf_file.edit import Change, edited_size, write_edited
from phi4conv.gguf_file.read import read_gguf
from phi4conv.progress import Silent
source, target = map(Path, sys.argv[1:])
file = read_gguf(source)
changes = [Change("general.description", layout.text("general.description", "longer " * 1000))]
with AtomicFile(target, edited_size(file, changes), inputs=[source]) as out:
    write_edited(file, changes, out, Silent())
    out.commit()
"""
PROGRAMS = {
    "phi4conv": [sys.executable, "-c", EDIT, "SOURCE", "TARGET"],
    "cp": ["cp", "SOURCE", "TARGET"],
    "cp and sync": ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", "SOURCE", "TARGET"],
}


def make_model(path: Path, size: int) -> None:
    """A GGUF of about size bytes: Q4_K matrices with a norm behind each."""
    block_weights, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType.Q4_K]
    rows = TENSOR_BYTES // (20 * block_bytes)
    tensors: list[tuple[str, tuple[int, ...], GGMLQuantizationType]] = []
    for layer in range(max(1, size // TENSOR_BYTES)):
        tensors.append((f"blk.{layer}.ffn_up.weight", (rows, 20 * block_weights), GGMLQuantizationType.Q4_K))
        tensors.append((f"blk.{layer}.attn_norm.weight", (20 * block_weights,), GGMLQuantizationType.F32))
    header = encode_header([layout.text("general.architecture", "phi3")], tensors)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(header.data)
        for start in range(header.data_offset, header.size_bytes, BLOCK):
            file.write(random.bytes(min(BLOCK, header.size_bytes - start)))


def timed(source: Path, folder: Path, runs: int) -> dict[str, list[Run]]:
    """Every program's runs, round by round."""
    done: dict[str, list[Run]] = {name: [] for name in PROGRAMS}
    for number in range(runs):
        # Another one begins each round: what one leaves behind, such as freed pages, the next one meets.
        for name in [*PROGRAMS][number % len(PROGRAMS) :] + [*PROGRAMS][: number % len(PROGRAMS)]:
            target = folder / "copy.gguf"
            places = {"SOURCE": str(source), "TARGET": str(target)}
            done[name].append(measured([places.get(part, part) for part in PROGRAMS[name]], [source]))
            target.unlink()
    return done


def summary(figures: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(figures):.2f} ({min(figures):.2f}-{max(figures):.2f})"


def main() -> None:
    """Parse, make a file, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="an existing GGUF, which is only read")
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--folder", type=Path, help="where copies go; default: the file's folder, or the system's")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's figures here, too")
    arguments = parser.parse_args()
    parent = arguments.folder or (arguments.file.parent if arguments.file else None)
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        source = arguments.file.resolve() if arguments.file else folder / "source.gguf"
        if not arguments.file:
            make_model(source, int(arguments.gigabytes * 1e9))
        free = shutil.disk_usage(folder).free
        size = source.stat().st_size
        if free < size:
            parser.error(f"{folder} has {free:,} bytes free, and a copy takes {size:,}")
        machine = described(("phi4conv", "numpy"))
        print(f"{machine}\n{size:,} bytes in {folder}", flush=True)
        done = timed(source, folder, arguments.runs)
    for name, runs in done.items():
        cpu = statistics.median(run.cpu_seconds for run in runs)
        peak = max(run.peak_bytes for run in runs) / 1e6
        seconds = summary([run.seconds for run in runs])
        print(f"  {name:<12} {seconds:>20} s, cpu {cpu:5.2f} s, peak memory {peak:4.0f} MB")
    for name in ("cp", "cp and sync"):
        ratios = [ours.seconds / theirs.seconds for ours, theirs in zip(done["phi4conv"], done[name], strict=True)]
        print(f"  phi4conv / {name}: {summary(ratios)}")
    if arguments.json:
        runs_of = {name: [asdict(run) for run in runs] for name, runs in done.items()}
        facts = {"schema": "phi4conv-bench-copying/1", "machine": machine, "size_bytes": size, "runs": runs_of}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
