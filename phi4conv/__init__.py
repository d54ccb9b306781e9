"""phi4conv: GGUF files of Microsoft's Phi-4 that hold the right tokenizer, and the proof of it."""

__version__ = "0.1.0"
