"""The built-in scenes and their judge."""
