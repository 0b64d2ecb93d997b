"""Checks of a run before its first step: data, tokenizers, order, and the dry run."""
