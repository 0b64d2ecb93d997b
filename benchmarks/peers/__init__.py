"""Runs that peers published, for benchmarks/plan_peers.py."""
