"""The same layers over many devices: process groups, tensor parallelism, two engines."""
