"""Hugging Face model folders: configuration, tokenizer, model card, weights."""
