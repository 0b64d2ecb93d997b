"""Readers of raw pairs, one layout per file."""
