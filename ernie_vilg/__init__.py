"""ERNIE-ViLG: one transformer that writes images from text and text from images."""

__version__ = "0.1.0"
"""Version of the whole project; `pyproject.toml` takes it from here."""
