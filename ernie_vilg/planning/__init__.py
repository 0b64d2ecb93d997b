"""What a run would need and do, worked out without running it."""
