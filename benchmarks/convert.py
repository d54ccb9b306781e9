"""Times a full-width conversion and its peak memory, beside llama.cpp's own converter in the same run.

    python benchmarks/convert.py MODEL_DIR [--types BF16,Q8_0] [--runs 3] [--peer PATH/convert_hf_to_gguf.py]

MODEL_DIR comes from benchmarks/make_model.py. The peer is the script of llama.cpp's source, as it lies in
vendor/llama.cpp of the source distribution of llama-cpp-python; it needs torch and transformers. The two run
in turn; ratios are peer / phi4conv, pair by pair. Output files go to a temporary folder on the model's disk.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One process from start to end."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measured(command: list[str]) -> Run:
    """Run a command to its end; raises CalledProcessError with its output when it fails."""
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, log.read().decode(errors="replace"))
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def described(name: str, runs: list[Run]) -> str:
    """One line: medians, with the spread of the time."""
    seconds = sorted(run.seconds for run in runs)
    cpu = statistics.median(run.cpu_seconds for run in runs)
    peak = max(run.peak_bytes for run in runs)
    middle = statistics.median(seconds)
    spread = f"{seconds[0]:.1f}-{seconds[-1]:.1f}"
    return f"{name:<22} {middle:7.1f} s ({spread}), cpu {cpu:6.1f} s, peak memory {peak / 1e6:7.0f} MB"


def compare(model: Path, file_type: str, runs: int, peer: Path | None) -> None:
    """Time one type and print its lines."""
    ours: list[Run] = []
    theirs: list[Run] = []
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        out = Path(folder) / f"model-{file_type}.gguf"
        for _ in range(runs):
            ours.append(
                measured([sys.executable, "-m", "phi4conv", "convert", str(model), str(out), "--type", file_type])
            )
            size = out.stat().st_size
            out.unlink()
            if peer:
                command = [sys.executable, str(peer), str(model), "--outfile", str(out), "--outtype", file_type.lower()]
                theirs.append(measured(command))
                out.unlink()
    print(f"{file_type}: {size / 1e9:.2f} GB written")
    print("  " + described("phi4conv", ours))
    if theirs:
        print("  " + described("convert_hf_to_gguf.py", theirs))
        ratios = sorted(b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True))
        print(f"  ratio of times {statistics.median(ratios):.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f})")


def processor() -> str:
    """The processor's name, where Linux tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--types", default="BF16,Q8_0")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", type=Path)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("phi4conv", "numpy", "gguf", "tokenizers"))
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {packages}")
    for each in arguments.types.split(","):
        compare(arguments.model, each, arguments.runs, arguments.peer)
