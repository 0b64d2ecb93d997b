"""Samples and health figures made of the weights while they train."""
