"""The fire drill: faults, the runs they are injected into, and the assertions."""
