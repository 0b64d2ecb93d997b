"""The training loop of the transformer: start, steps, metrics, guards, callbacks."""
