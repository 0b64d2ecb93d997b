"""Pairs that resemble each other or an evaluation set, over all shards, out of core."""
