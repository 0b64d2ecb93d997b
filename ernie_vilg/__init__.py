"""ERNIE-ViLG: one transformer that writes images from text and text from images."""
