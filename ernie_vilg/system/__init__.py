"""Processes, ports, progress, seeds, worker pool."""
