"""Pages of training runs: one run, several side by side, the jobs of a sweep."""
