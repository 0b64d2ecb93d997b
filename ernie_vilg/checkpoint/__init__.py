"""Checkpoints: commit, search, retention, resharding, export."""
