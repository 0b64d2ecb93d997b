"""The parts of benchmarks/reconstructor.py."""
