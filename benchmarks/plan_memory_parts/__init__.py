"""The parts of benchmarks/plan_memory.py."""
