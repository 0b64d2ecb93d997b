"""The image tokenizer's trainer."""
