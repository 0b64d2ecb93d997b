"""From a manifest and a position to a batch: a pure function of position."""
