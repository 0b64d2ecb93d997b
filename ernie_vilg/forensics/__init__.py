"""Forensics: the samples of one step of a past run."""
