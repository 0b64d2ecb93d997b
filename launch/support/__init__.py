"""Composition, environment, overrides and help of every program."""
