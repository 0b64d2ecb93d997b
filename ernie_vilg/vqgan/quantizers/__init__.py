"""Quantizers: rules by which a vector becomes a code, and training of the codes."""
