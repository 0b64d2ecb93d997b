"""Composition, environment, overrides, help and processes of every program."""
