"""The fire drill: faults, the runs they strike, and what must hold afterwards."""
