"""What `phi4conv verify` is timed beside: the same tokens through transformers, and through real llama.cpp.

    python -m benchmarks.verify_peers tokens MODEL_DIR FILE.gguf TOKENS.json
    python -m benchmarks.verify_peers transformers MODEL_DIR TOKENS.json --dtype float32
    python -m benchmarks.verify_peers llama.cpp FILE.gguf TOKENS.json

The first writes the tokens of verify's built-in conversations, a list for each. The others load the whole model and
make the logits of every position, one conversation after the other, as either does it by itself. Each runs one side:
the comparison, and the search for what is wrong, are not in their time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def write_tokens(model: Path, file: Path, out: Path) -> None:
    """The tokens that verify runs by default."""
    from phi4conv.gguf_file.read import read_gguf  # noqa: PLC0415  # a peer's process is to hold its own libraries only
    from phi4conv.verify.prompts import read_windows  # noqa: PLC0415

    windows = read_windows(model, read_gguf(file)).windows
    out.write_text(json.dumps([window.ids for window in windows]))


def run_transformers(model: Path, prompts: list[list[int]], dtype: str) -> None:
    """Logits of every position, in torch."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), local_files_only=True)
    with torch.inference_mode():
        for ids in prompts:
            loaded(input_ids=torch.tensor([ids]))


def run_llama_cpp(file: Path, prompts: list[list[int]]) -> None:
    """Logits of every position, in llama.cpp."""
    from phi4conv.reference.llama_cpp import LlamaCpp  # noqa: PLC0415

    with LlamaCpp() as llama:
        llama.load(file)
        for ids in prompts:
            llama.logits(ids)


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tokens", "transformers", "llama.cpp"))
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    if len(arguments.paths) != (3 if arguments.what == "tokens" else 2):
        parser.error(f"another number of paths for {arguments.what}")
    if arguments.what == "tokens":
        write_tokens(*arguments.paths)
        return
    model, tokens = arguments.paths
    prompts = json.loads(tokens.read_text())
    if arguments.what == "transformers":
        run_transformers(model, prompts, arguments.dtype)
    else:
        run_llama_cpp(model, prompts)


if __name__ == "__main__":
    main()
