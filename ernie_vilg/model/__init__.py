"""The transformer as a list of pure torch layers: batch in, logits and losses out."""
