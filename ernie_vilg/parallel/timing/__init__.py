"""Time of the parts of a step, and of waiting for other ranks."""
