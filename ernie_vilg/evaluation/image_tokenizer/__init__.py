"""Evaluation of an image tokenizer on held-out pictures."""
