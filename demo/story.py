"""The project's story in four acts, told by real llama.cpp (from the xllamacpp package, no compiler, no torch).

make demo
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from phi4conv.reference.llama_cpp import LlamaCpp

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKPOINT = Path("fixtures/tiny-phi4")
BROKEN = Path("fixtures/tiny-phi4-broken.gguf")
OUT = Path("demo-output/tiny-phi4-Q4_K_M.gguf")
REPAIRED = Path("demo-output/tiny-phi4-repaired.gguf")

QUESTION = "Tell me a joke."
PROMPT = f"<|im_start|>user<|im_sep|>{QUESTION}<|im_end|><|im_start|>assistant<|im_sep|>"
ANSWER_TOKENS = 40


def run(*command: str) -> None:
    """Show a command of phi4conv and run it."""
    print(f"$ phi4conv {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", "phi4conv", *command], cwd=REPOSITORY, check=True)
    print(flush=True)


def ask(llama: LlamaCpp, path: Path) -> str:
    """Load a file in llama.cpp, put the question to it, and print question, tokens and answer."""
    llama.load(REPOSITORY / path)
    (prompt,) = llama.tokenize([PROMPT])
    (question,) = llama.tokenize([QUESTION])
    answer = llama.generate(prompt, ANSWER_TOKENS)
    spoken = [token for token in answer if token not in llama.end_of_generation()]
    text = b"".join(llama.pieces(spoken)).decode(errors="replace").strip()
    pieces = " | ".join(piece.decode(errors="replace") for piece in llama.pieces(question))
    print(f"  {path} loads and runs")
    print(f"    asked     {QUESTION}")
    print(f"    tokens    {pieces}")
    print(f"    answered  {text}\n")
    return text


def main() -> None:
    """Convert, then let the right file and the broken one answer the same question."""
    (REPOSITORY / OUT).parent.mkdir(exist_ok=True)
    print("1. A small Phi-4, trained to know fifteen answers, becomes a GGUF.\n")
    run("convert", str(CHECKPOINT), str(OUT), "--force")
    with LlamaCpp(threads=1) as llama:
        print(f"2. llama.cpp (xllamacpp {llama.version}) runs it.\n")
        right = ask(llama, OUT)
        print("3. The same weights, with the tokenizer written as many a published file had it: as a")
        print("   SentencePiece table made from the BPE tokens. No tool objects.\n")
        wrong = ask(llama, BROKEN)
        print("4. phi4conv finds out why, and repairs it. No weight is touched.\n")
        run("fix", str(BROKEN), str(REPAIRED), "--tokenizer", str(CHECKPOINT), "--force")
        repaired = ask(llama, REPAIRED)
    if "tokenizer" not in right or wrong == right or repaired != right:
        sys.exit("The story went wrong: the right file and the repaired one should tell a joke, the broken one none.")
    program = Path(sys.executable).with_name("phi4conv")
    print(f"The file to publish is {OUT}. See what is in it, and that its tokenizer is right, with")
    print(f"  {program} inspect {OUT}")
    print(f"  {program} verify-tokenizer {CHECKPOINT} {OUT}")


if __name__ == "__main__":
    main()
