"""The image tokenizer: pictures to grids of codes, and back."""
