"""Checks and statistics of finished shards."""
