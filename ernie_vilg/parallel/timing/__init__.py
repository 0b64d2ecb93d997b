"""Time spent waiting for other ranks."""
