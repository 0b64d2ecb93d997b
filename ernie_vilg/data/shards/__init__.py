"""Tar to sample: index, folder, cache, damage."""
