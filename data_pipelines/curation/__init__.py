"""Rules that keep or reject a pair, and the models that score it."""
