"""What every program shares: composition, environment, overrides, help."""
