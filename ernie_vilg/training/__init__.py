"""The loop, its checkpoints, its metrics, and the weights that come out of it."""
