"""Metrics out: Weights & Biases and metrics.jsonl."""
