"""One thin program per thing a person starts."""
