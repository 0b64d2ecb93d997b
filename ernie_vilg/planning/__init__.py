"""Memory, time and cost of a run, predicted without running it."""
