"""The transformer as a list of pure torch layers, from a batch to logits and losses."""
