"""Losses of the image tokenizer: pixels, perception, and a discriminator."""
