"""Parts of benchmarks/image_tokenizer.py."""
