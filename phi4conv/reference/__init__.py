"""What a GGUF does when it runs, to hold against what its source does."""
