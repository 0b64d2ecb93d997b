"""Checks and records of the nodes of a job."""
