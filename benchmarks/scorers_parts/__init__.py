"""Parts of benchmarks/scorers.py."""
