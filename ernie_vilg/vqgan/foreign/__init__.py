"""Public image tokenizers: their files, names and geometry."""
