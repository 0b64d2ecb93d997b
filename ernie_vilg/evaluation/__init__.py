"""Scores of generated pictures and captions, and the pages and pictures that show them."""
