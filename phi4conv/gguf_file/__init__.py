"""The GGUF container: its layout as values, a tolerant reader and an exact writer."""
