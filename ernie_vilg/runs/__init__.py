"""The run folder: file names, lock, preflight, settings drift, phases."""
