"""Health checks and records of a job's nodes."""
