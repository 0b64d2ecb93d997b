"""The contents of one step of a past run."""
