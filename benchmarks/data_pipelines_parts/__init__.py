"""Parts of benchmarks/data_pipelines.py."""
