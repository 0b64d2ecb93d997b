"""Files, folders, locks, JSON and JSON Lines on disk."""
