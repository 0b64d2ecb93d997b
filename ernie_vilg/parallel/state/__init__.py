"""Whole tensors from shards, and shards from whole tensors."""
