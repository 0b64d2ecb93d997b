"""From exported weights to pictures and captions."""
