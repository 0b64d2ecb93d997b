"""Pipelines from raw image-text pairs to curated image shards to token shards."""
