"""Figures that compare reconstructions with their originals."""
