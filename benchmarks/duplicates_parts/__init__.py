"""Parts of the benchmark of deduplication."""
