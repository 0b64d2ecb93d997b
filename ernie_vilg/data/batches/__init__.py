"""Samples to batches: tokens, pictures, workers, shared memory."""
