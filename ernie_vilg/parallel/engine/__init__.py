"""Engines, optimizer, update guard, pipeline, tensor parallelism."""
