"""Quantizers: rules by which a vector becomes a code, and the choice and counts of codes."""
