"""What can be wrong with a file: facts that are checked, findings, and the proof of a tokenizer."""
