"""Position to sample: order, mixture, quarantine."""
