"""Every measurement with one command: the codecs and, given a model, converting and verifying it.

    python -m benchmarks.run [--model MODEL_DIR] [--peer PATH] [--exact] [--quick] [--json FOLDER]

Runs benchmarks.codecs, then benchmarks.convert and benchmarks.verify_model if there is a model, then with --exact
benchmarks.exactness, each in a process of its own; their docstrings say what they measure, and their own options do
more. Exits with 1 when something differs from llama.cpp, or from the model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from phi4conv.machine import usable_cores

REPOSITORY = Path(__file__).resolve().parents[1]


def commands(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """What to run: module and its arguments."""
    cores = ["--cores", "1,2" if usable_cores() > 1 else "1"]
    found = {"codecs": [*cores, *(["--rounds", "2", "--weights", "1000000"] if arguments.quick else [])]}
    if arguments.model:
        peer = ["--peer", str(arguments.peer.resolve())] if arguments.peer else []
        found["convert"] = [str(arguments.model.resolve()), *cores, *peer]
        found["convert"] += ["--runs", "1", "--types", "Q4_K_M"] if arguments.quick else []
        found["verify_model"] = [str(arguments.model.resolve()), *(["--peers", ""] if arguments.quick else [])]
    if arguments.json:
        for name, options_of_it in found.items():
            options_of_it += ["--json", str((arguments.json / f"{name}.json").resolve())]
    if arguments.exact:
        found["exactness"] = ["--weights", "10000000"] if arguments.quick else []
    return found


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder from benchmarks/make_model.py")
    parser.add_argument("--peer", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--exact", action="store_true", help="also compare 100 million weights of each type with ggml")
    parser.add_argument("--quick", action="store_true", help="few and short rounds: whether all works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write the figures there, too")
    arguments = parser.parse_args()
    if arguments.json:
        arguments.json.mkdir(parents=True, exist_ok=True)
    good = True
    for name, options in commands(arguments).items():
        print(f"\n== {name} ==", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], cwd=REPOSITORY, check=False)
        good &= done.returncode == 0
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
