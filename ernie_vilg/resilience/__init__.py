"""Watchdog, heartbeats, stragglers, stopping, requeueing."""
