"""What `benchmarks/checkpoint.py` is made of."""
